"""The team: every thread gets every step, what one raises reaches the caller, and closing ends the threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.compile import Kernels, load_kernels
from kvist.kernels.cpu.jobs import run_ops
from kvist.kernels.cpu.team import Team

PIECES = 64
LONGER_THAN_THEY_LINGER = 0.02


@pytest.fixture(scope="module")
def kernels() -> Iterator[Kernels]:
    made = load_kernels()
    yield made
    made.close()


class Spied:
    """Real kernels that note what is done with the board, and can be made to raise before or after."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels, self.closed = kernels, 0
        self.calls: list[tuple[int, int]] = []
        self.before: dict[tuple[int, int], list[BaseException]] = {}
        self.after: dict[tuple[int, int], list[BaseException]] = {}

    def run(self, action: int, board: int, tid: int) -> int:
        self.calls.append((action, tid))
        if self.before.get((action, tid)):
            raise self.before[action, tid].pop()
        result = self.kernels.run(action, board, tid)
        if self.after.get((action, tid)):
            raise self.after[action, tid].pop()
        return result

    def close(self) -> None:
        self.closed += 1


def team(spied: Spied, threads: int) -> Team:
    made: Any = spied
    return Team(made, threads)


def step(made: Team, ops: int = 3) -> None:
    """Run a step and see that all of it was done: READ leaves nothing, so the counters tell."""
    buffer = np.zeros(PIECES * 512, np.uint8)
    counters = np.zeros((ops, made.threads + 1), np.int64)
    table, context = np.zeros((ops, abi.OP_SLOTS), np.int64), np.zeros(abi.CONTEXT_SLOTS, np.int64)
    scratch = np.zeros((made.threads, 512), np.int64)
    table[:, abi.CODE], table[:, abi.ARG], table[:, abi.ARG + 1] = abi.READ, buffer.ctypes.data, PIECES
    table[:, abi.ARG + 2] = 512
    context[abi.SCRATCH], context[abi.SCRATCH_BYTES] = scratch.ctypes.data, scratch.strides[0]
    context[abi.THREADS], context[abi.COUNTERS] = made.threads, counters.ctypes.data
    try:
        made.run(table.ctypes.data, ops, context.ctypes.data)
    finally:
        left = int(made._board[abi.BOARD_LINE])
        posted = int(made._board[abi.BOARD_STEP])
        for tid in range(1, made.threads):
            assert made._board[(1 + tid) * abi.BOARD_LINE] == posted, "each worker has taken the step"
        assert left == made.threads - 1 or posted == 0, "and nobody still works on the tables when run is left"
    assert (counters[:, 0] == PIECES).all(), "every piece of every op is done"


def workers(before: set[threading.Thread]) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread not in before}


def until_asleep(made: Team) -> None:
    """Wait until every worker has stopped to linger."""
    time.sleep(LONGER_THAN_THEY_LINGER)
    end = time.monotonic() + 30
    while not all(made._board[(1 + tid) * abi.BOARD_LINE + 1] for tid in range(1, made.threads)):
        assert time.monotonic() < end, "they go to sleep"
        time.sleep(0.001)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_thread_takes_every_step(kernels: Kernels, threads: int) -> None:
    made = team(Spied(kernels), threads)
    for _ in range(50):
        step(made)
    assert made._board[abi.BOARD_STEP] == 50
    made.close()


def test_workers_that_sleep_are_woken(kernels: Kernels) -> None:
    spied = Spied(kernels)
    made = team(spied, 3)
    for count in range(1, 5):
        step(made)
        until_asleep(made)
        assert spied.calls.count((abi.SERVE, 1)) >= count
    made.close()


def test_steps_that_follow_soon_wake_nobody(kernels: Kernels) -> None:
    spied = Spied(kernels)
    made = team(spied, 2)
    step(made)
    asleep = 0
    for _ in range(200):
        before = len(spied.calls)
        step(made)
        asleep += (abi.LEAD, 0) in spied.calls[before:]
    assert asleep < 200, "a worker lingers"
    made.close()


@pytest.mark.parametrize("pause", [0.0, 0.0019, 0.002, 0.0021, 0.004])
def test_a_step_posted_while_a_worker_goes_to_sleep_is_seen(kernels: Kernels, pause: float) -> None:
    """Around the moment at which workers stop to linger."""
    made = team(Spied(kernels), 4)
    for i in range(40):
        step(made, 1)
        time.sleep(pause + i * 1e-5)
    made.close()


@pytest.mark.parametrize("when", ["before it is posted", "after it is posted", "while it is led"])
def test_a_caller_that_is_interrupted_leaves_nobody_behind(kernels: Kernels, when: str) -> None:
    """The tables are freed when `run` is left: no thread may work on them then."""
    spied = Spied(kernels)
    made = team(spied, 4)
    for _ in range(20):
        if when == "before it is posted":
            spied.before[abi.START, 0] = [KeyboardInterrupt()]
        elif when == "after it is posted":
            spied.after[abi.START, 0] = [KeyboardInterrupt()]
        else:
            until_asleep(made)  # so that they must be woken, and the caller leads in another call
            spied.before[abi.LEAD, 0] = [KeyboardInterrupt()]
        spied.before[abi.JOIN, 0] = [KeyboardInterrupt(), KeyboardInterrupt()]  # who presses Ctrl-C presses it again
        with pytest.raises(KeyboardInterrupt):
            step(made)
        spied.before.clear()
        spied.after.clear()
        step(made)
    made.close()


def test_a_failure_of_a_worker_reaches_the_caller_and_the_team_goes_on(kernels: Kernels) -> None:
    spied = Spied(kernels)
    made = team(spied, 3)
    spied.before[abi.SERVE, 2] = [ValueError("thread 2")]
    buffer = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="thread 2"):
        run_ops(made, [[abi.READ, 0, buffer.ctypes.data, 0, 512]])
    time.sleep(LONGER_THAN_THEY_LINGER)
    step(made)
    step(made)
    made.close()


def test_close_ends_the_threads_and_can_be_repeated(kernels: Kernels) -> None:
    before = set(threading.enumerate())
    spied = Spied(kernels)
    made = team(spied, 4)
    step(made)
    assert len(workers(before)) == 3 and not spied.closed
    for _ in range(3):
        made.close()
    assert spied.closed, "what is still being built is ended too"
    end = time.monotonic() + 5
    while workers(before) and time.monotonic() < end:
        time.sleep(0.001)
    assert not workers(before)


def test_two_callers_take_turns(kernels: Kernels) -> None:
    made = team(Spied(kernels), 3)
    failures: list[BaseException] = []

    def call() -> None:
        try:
            for _ in range(50):
                run_ops(made, [[abi.READ, 0, buffer.ctypes.data, PIECES, 512]])
        except BaseException as error:
            failures.append(error)

    buffer = np.zeros(PIECES * 512, np.uint8)
    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures and made._board[abi.BOARD_STEP] == 200
    made.close()
