"""What changes a few logits of a row: in place, and put back once the token is drawn.

A row that another one shares (branches of a request have their first token from the same logits) is copied instead.
"""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.logits import INFINITY
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import get_f32, get_i64, put_f32, slot, slot_f32


@jit
def touches(query: int) -> int:
    """How many ids the three steps have together."""
    return slot(query, abi.DRAW_HELD) + slot(query, abi.DRAW_BIASED) + slot(query, abi.DRAW_SEEN)


@jit
def remember(query: int, row: int, memory: int) -> None:
    """Keep the logits that will be changed."""
    ids = slot(query, abi.DRAW_IDS)
    for i in range(touches(query)):
        put_f32(memory + i * 4, get_f32(row + get_i64(ids + i * 8) * 4))


@jit
def put_back(query: int, row: int, memory: int) -> None:
    """The row as it was."""
    ids = slot(query, abi.DRAW_IDS)
    for i in range(touches(query)):
        put_f32(row + get_i64(ids + i * 8) * 4, get_f32(memory + i * 4))


@jit
def change(query: int, row: int, best: int) -> int:
    """Hold ends back, add biases, then penalties; each step rounded to float32.

    best: the index of the largest logit if all are finite, or -1. What it is now, -1 where the row must be searched.
    """
    before = get_f32(row + best * 4) if best >= 0 else INFINITY
    ids, values = slot(query, abi.DRAW_IDS), slot(query, abi.DRAW_VALUES)
    biased = slot(query, abi.DRAW_HELD)
    seen = biased + slot(query, abi.DRAW_BIASED)
    for i in range(biased):
        put_f32(row + get_i64(ids + i * 8) * 4, -INFINITY)
    for i in range(biased, seen):
        place = row + get_i64(ids + i * 8) * 4
        put_f32(place, get_f32(place) + get_f32(values + i * 4))
    factor, once = slot_f32(query, abi.DRAW_REPETITION), slot_f32(query, abi.DRAW_PRESENCE)
    each = slot_f32(query, abi.DRAW_FREQUENCY)
    for i in range(seen, touches(query)):
        place, times = row + get_i64(ids + i * 8) * 4, get_f32(values + i * 4)
        x = get_f32(place)
        x = x / factor if x > 0.0 else x * factor
        x = x - each * times
        put_f32(place, x - once if times > 0.0 else x)
    if best < 0 or get_f32(row + best * 4) < before:  # another one may be the largest that nothing touched
        return -1
    for i in range(touches(query)):
        token = get_i64(ids + i * 8)
        x, top = get_f32(row + token * 4), get_f32(row + best * 4)
        if x > top or (x == top and token < best):
            best = token
    return best if get_f32(row + best * 4) < INFINITY else -1
