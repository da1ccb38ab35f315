"""Rows of logits, read sixteen at a time from whatever address, and their largest."""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import get_f32, prefetch, put_f32
from kvist.kernels.cpu.vector import add, keep_first, maximum, reduce_add, reduce_max, splat, where_less
from kvist.kernels.cpu.vector_memory import load_f32

INFINITY = float("inf")
AHEAD = 4096  # bytes that a pass asks memory for before it reads them: another core may have written them just now


@jit
def load_some(row: int, d: int, size: int, spare: int) -> Any:
    """Logits d to d + 15; behind the row's end minus infinity."""
    if size - d >= 16:
        prefetch(row + d * 4 + AHEAD)
        return load_f32(row + d * 4)
    for i in range(size - d):
        put_f32(spare + i * 4, get_f32(row + (d + i) * 4))
    return keep_first(load_f32(spare), size - d, splat(-INFINITY))


@jit
def largest(row: int, size: int, spare: int) -> int:
    """The index of the largest, the first of equals; -1 if one is NaN or above all numbers, or none is finite."""
    top, unfit = splat(-INFINITY), splat(0.0)
    for d in range(0, size, 16):
        x = load_some(row, d, size, spare)
        top = maximum(x, top)
        unfit = add(unfit, where_less(x, splat(INFINITY), splat(0.0), splat(1.0)))
    best, found = reduce_max(top), 0
    if reduce_add(unfit) > 0.0 or best == -INFINITY:
        return -1
    while get_f32(row + found * 4) != best:
        found += 1
    return found
