"""How the threads of a team pass a step to each other: a few numbers that all of them look at.

::

    line 0     step | table | count | context | threads      written by the caller, `step` last
    line 1     left                                          workers that have left this step
    line 1+t   seen | asleep                                 of worker t: the last step it took, whether it sleeps

To wake a thread, and to be told by it that it is done, takes longer than all of a small step but its matrices. So a
worker that has left a step looks for the next one a while (`LINGER`), and the caller looks until all have left. A
worker says that it will sleep before it looks a last time, the caller posts a step before it asks who
sleeps: one of them always sees the other.
"""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.interpreter import SPINS, run_table, wait
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import get_i64, let_others_run, nanoseconds, peek, put_i64, slot, take

LINGER = 2_000_000  # nanoseconds
LOOKS = 64  # looks between looks at the clock
LINE = abi.BOARD_LINE * 8


@jit
def lead(board: int) -> None:
    """The caller's part of a step, and waiting until every worker has left it."""
    run_table(slot(board, abi.BOARD_TABLE), slot(board, abi.BOARD_COUNT), slot(board, abi.BOARD_CONTEXT), 0)
    wait(board + LINE, slot(board, abi.BOARD_THREADS) - 1)


@jit
def start(board: int) -> int:
    """Post the step that is written on the board. If nobody sleeps, lead it; else say how many must be woken first."""
    put_i64(board + LINE, 0)
    take(board + abi.BOARD_STEP * 8)
    asleep = 0
    for tid in range(1, slot(board, abi.BOARD_THREADS)):
        asleep += peek(board + (1 + tid) * LINE + 8)
    if asleep == 0:
        lead(board)
    return asleep


@jit
def serve(board: int, tid: int) -> None:
    """Take step after step as worker `tid`; returns, asleep, when there was none for a while."""
    mine = board + (1 + tid) * LINE
    put_i64(mine + 8, 0)
    looks, since = 0, nanoseconds()
    while True:
        step = peek(board + abi.BOARD_STEP * 8)
        if step != get_i64(mine):
            put_i64(mine, step)
            run_table(slot(board, abi.BOARD_TABLE), slot(board, abi.BOARD_COUNT), slot(board, abi.BOARD_CONTEXT), tid)
            take(board + LINE)
            looks, since = 0, nanoseconds()
            continue
        looks += 1
        if looks > SPINS:
            let_others_run()
        if looks % LOOKS == 0 and nanoseconds() - since > LINGER:
            take(mine + 8)
            if peek(board + abi.BOARD_STEP * 8) == step:
                return
            put_i64(mine + 8, 0)


def run(action: int, board: int, tid: int, unused: int) -> int:
    """What Python calls: one of the actions of `abi`."""
    if action == abi.START:
        return start(board)
    if action == abi.LEAD:
        lead(board)
    elif action == abi.SERVE:
        serve(board, tid)
    elif action == abi.LEAVE:  # for a worker that could not
        put_i64(board + (1 + tid) * LINE, slot(board, abi.BOARD_STEP))
        take(board + LINE)
    else:
        wait(board + LINE, slot(board, abi.BOARD_THREADS) - 1)
    return 0
