"""What attention does with one query row: the softmax of a tile, folding splits, the last division."""

from __future__ import annotations

from kvist.kernels.cpu.math import exp, exp_below, jit
from kvist.kernels.cpu.mix import unmix
from kvist.kernels.cpu.scalar import get_f32, put_f32
from kvist.kernels.cpu.vector import add, div, first, fma, keep_first, maximum, mul, reduce_add, reduce_max, splat, sub
from kvist.kernels.cpu.vector_memory import load_f32, store_f32

LOWEST = -3.0e38  # below every score; finite, so that differences stay numbers
NEVER = 3.0e38  # further than scores lie apart


@jit
def fold(
    total: int, total_max: int, total_sum: int, part: int, part_max: int, part_sum: int, dims: int, begin: bool
) -> None:
    """Fold one row's split into its running total: rescale both to the larger maximum and add."""
    if begin:
        for d in range(0, dims, 16):
            store_f32(total + d * 4, load_f32(part + d * 4))
        put_f32(total_max, get_f32(part_max))
        put_f32(total_sum, get_f32(part_sum))
        return
    old, new = splat(get_f32(total_max)), splat(get_f32(part_max))
    top = maximum(old, new)
    a, b = exp(sub(old, top)), exp(sub(new, top))
    for d in range(0, dims, 16):
        store_f32(total + d * 4, fma(load_f32(total + d * 4), a, mul(load_f32(part + d * 4), b)))
    put_f32(total_max, first(top))
    put_f32(total_sum, first(fma(splat(get_f32(total_sum)), a, mul(splat(get_f32(part_sum)), b))))


@jit
def finish(out: int, total: int, total_sum: int, dims: int, signs: int) -> None:
    """out = total / sum, for one row; signs: address of those that values were mixed with (0: they were not)."""
    divisor = splat(get_f32(total_sum))
    for d in range(0, dims, 16):
        store_f32(out + d * 4, div(load_f32(total + d * 4), divisor))
    if signs != 0:
        unmix(out, signs, dims)


@jit
def softmax_row(p: int, valid: int, row_max: int, row_sum: int, acc: int, dims: int, far: float) -> None:
    """Scores of a tile -> weights e**(s - max), in place; rescale what the row has summed so far.

    Slots from `valid` on are 0. Where all scores are more than `far` below the maximum so far, all are 0.
    """
    s0, s1, s2, s3 = load_f32(p), load_f32(p + 64), load_f32(p + 128), load_f32(p + 192)
    if valid < 64:
        low = splat(LOWEST)
        s0, s1 = keep_first(s0, valid, low), keep_first(s1, valid - 16, low)
        s2, s3 = keep_first(s2, valid - 32, low), keep_first(s3, valid - 48, low)
    old = get_f32(row_max)
    new = reduce_max(maximum(maximum(s0, s1), maximum(s2, s3)))
    if new < old - far:
        for i in range(0, 256, 64):
            store_f32(p + i, splat(0.0))
        return
    top = splat(max(old, new))
    p0, p1 = exp_below(sub(s0, top)), exp_below(sub(s1, top))
    p2, p3 = exp_below(sub(s2, top)), exp_below(sub(s3, top))
    if valid < 64:
        zero = splat(0.0)
        p0, p1 = keep_first(p0, valid, zero), keep_first(p1, valid - 16, zero)
        p2, p3 = keep_first(p2, valid - 32, zero), keep_first(p3, valid - 48, zero)
    store_f32(p, p0)
    store_f32(p + 64, p1)
    store_f32(p + 128, p2)
    store_f32(p + 192, p3)
    tile_sum = reduce_add(add(add(p0, p1), add(p2, p3)))
    if new > old:
        scale = exp(sub(splat(old), top))
        put_f32(row_sum, first(fma(splat(get_f32(row_sum)), scale, splat(tile_sum))))
        put_f32(row_max, new)
        for d in range(0, dims, 16):
            store_f32(acc + d * 4, mul(load_f32(acc + d * 4), scale))
    else:  # the scale would be e**0 = 1, exactly
        put_f32(row_sum, get_f32(row_sum) + tile_sum)
