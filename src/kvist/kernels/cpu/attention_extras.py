"""What some families do to scores: soft caps, a window's lower edge, sinks. A row at a time, asking for what is next.

None of it knows more than the row's own position, so it keeps the contract: a row's bits depend on its position alone.
"""

from __future__ import annotations

from kvist.kernels.cpu.abi import TILE
from kvist.kernels.cpu.attention_row import LOWEST, NEVER, softmax_row
from kvist.kernels.cpu.math import apart, exp, jit, tanh
from kvist.kernels.cpu.scalar import get_f32, prefetch, put_f32
from kvist.kernels.cpu.vector import div, first, fma, keep_first, maximum, mul, splat, sub
from kvist.kernels.cpu.vector_memory import load_f32, store_f32

LOG_2 = 0.6931472


@jit
def ask_for(address: int, size: int) -> None:
    """Let memory bring what is read next."""
    for line in range(0, size, 64):
        prefetch(address + line)


@jit
def share_of(size: int, rows: int) -> int:
    """Bytes, whole lines, that each of some rows asks for, so that all ask for `size`."""
    return (size // rows + 63) & -64 if rows > 0 else 0


@apart
def cap_scores(p: int, cap: float) -> None:
    """A tile's scores s become cap * tanh(s / cap), in place."""
    limit = splat(cap)
    for i in range(0, 256, 64):
        store_f32(p + i, mul(limit, tanh(div(load_f32(p + i), limit))))


@apart
def hide_before(p: int, low: int) -> None:
    """Slots 0..low-1 of a tile's scores become lower than any: the row's window begins at `low`.

    Their weights come out as e**-86 at most, too little to change the sum of a row that has a weight of 1; nothing
    reads their values.
    """
    lowest = splat(LOWEST)
    for i in range(4):
        store_f32(p + i * 64, keep_first(lowest, low - i * 16, load_f32(p + i * 64)))


@jit
def join_sink(sink: int, total: int, total_max: int, total_sum: int, dims: int) -> None:
    """Let the score at address `sink` take part in a row's softmax; no value goes with it."""
    old, new = splat(get_f32(total_max)), splat(get_f32(sink))
    top = maximum(old, new)
    a, b = exp(sub(old, top)), exp(sub(new, top))
    put_f32(total_sum, first(fma(splat(get_f32(total_sum)), a, b)))
    for d in range(0, dims, 16):
        store_f32(total + d * 4, mul(load_f32(total + d * 4), a))


@jit
def far_below(far: float, seen: int) -> float:
    """How far below the maximum scores count as nothing: `far`, and more with each bit of the positions up to a row."""
    while far < NEVER and seen > 0:
        far += LOG_2
        seen >>= 1
    return far


@apart
def soften(
    p: int, skip: int, stop: int, group: int, position: int, begin: int, row_max: int, row_sum: int, acc: int,
    dims: int, window: int, cap: float, following: int, share: int, far: float,
) -> None:  # fmt: skip
    """The softmax of a tile for rows `skip` to `stop`. Each asks for `share` bytes more of what follows.

    far: see `far_below`, where all weights become 0.
    """
    end_slot = position + skip // group + 1 - begin
    for token in range(skip, stop, group):
        least = far_below(far, begin + end_slot)
        for r in range(token, token + group):  # its heads
            if cap > 0.0:
                cap_scores(p + r * 256, cap)
            if end_slot > window:
                hide_before(p + r * 256, end_slot - window)
            ask_for(following, share)
            following += share
            own = acc + r * dims * 4
            softmax_row(p + r * 256, min(TILE, end_slot), row_max + r * 4, row_sum + r * 4, own, dims, least)
        end_slot += 1
