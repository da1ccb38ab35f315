"""Draw a token from a row of logits: the compiled definition of `kernels.choosing`.

::

    logits ── changes, for a while ──► weights ── a filter: select, then keep ──► pick
                                             in place: weights and ids of what is left

Sums of weights are exact, so it does not matter in what order they are added. A row of 49,152 logits and its weights
stay in a core's second-level cache from the first pass to the last.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.changing import change, put_back, remember, touches
from kvist.kernels.cpu.logits import INFINITY, largest, load_some
from kvist.kernels.cpu.math import exp, jit
from kvist.kernels.cpu.scalar import (
    get_f32,
    get_i32,
    put_f32,
    put_i32,
    slot,
    slot_f32,
    slot_f64,
)
from kvist.kernels.cpu.select import select_by_count, select_by_sum, select_by_value
from kvist.kernels.cpu.vector import absolute, add, mul, splat, sub, where_less
from kvist.kernels.cpu.vector_memory import load_f32, store_f32
from kvist.kernels.cpu.wide import (
    add_where,
    add_wide,
    as_bits,
    as_float,
    count_between,
    numbered,
    pack_between,
    reduce_wide,
    widen,
)

BLOCK = 1024  # weights that are added before the sum is looked at
LEAST = 2.0**-32  # the smallest weight; all are multiples of it
COARSE = 2.0**-9  # below it float32 numbers may lie between multiples of LEAST
AFAR = 64.0  # nearness of a token whose information is the mean


@jit
def scaled(x: Any, top: Any, inverse: Any) -> Any:
    """(logit - largest) / temperature."""
    return mul(sub(x, top), inverse)


@jit
def weigh(row: int, size: int, top: float, inverse: float, weights: int, spare: int) -> float:
    """Every token's weight; their sum."""
    largest, factor, coarse, total = splat(top), splat(inverse), splat(COARSE), widen(splat(0.0))
    for d in range(0, size, 16):
        e = exp(scaled(load_some(row, d, size, spare), largest, factor))
        w = where_less(e, coarse, sub(add(e, coarse), coarse), e)
        store_f32(weights + d * 4, w)
        total = add_wide(total, widen(w))
    return float(reduce_wide(total))


@jit
def keep(
    keys: int, weights: int, ids: int, count: int, low: int, above: float, target: float, floor: float, whole: bool
) -> Any:
    """Leave the weights and ids (int32) whose keys are above `low` (bits), and the first at it that reach the target.

    above: what all keys above measure. A measure is the weight, at least floor. whole: of the row, ids are not there
    yet. How many are left, and their sum.
    """
    least, bound, end = splat(as_float(low)), splat(as_float(low + 1)), splat(INFINITY)
    total, ties, kept = widen(splat(0.0)), 0.0, 0
    for d in range(0, count, 16):
        key = load_f32(keys + d * 4)
        if count_between(key, least, end) == 0:
            continue
        w, own = load_f32(weights + d * 4), numbered(d) if whole else load_f32(ids + d * 4)
        if count_between(key, least, bound) == 0:
            pack_between(ids + kept * 4, own, key, bound, end)
            kept += pack_between(weights + kept * 4, w, key, bound, end)
            total = add_where(total, key, bound, widen(w))
            continue
        store_f32(ids + d * 4, own)
        for i in range(d * 4, d * 4 + 64, 4):
            at, x, token = get_f32(keys + i), get_f32(weights + i), get_i32(ids + i)
            tied = at == as_float(low)
            if (tied and above < target) or at >= as_float(low + 1):
                above += max(x, floor) if tied else 0.0
                ties += x
                put_f32(weights + kept * 4, x)
                put_i32(ids + kept * 4, token)
                kept += 1
    store_f32(weights + kept * 4, splat(0.0))
    return kept, ties + reduce_wide(total)


@jit
def mean_of(row: int, size: int, top: float, inverse: float, weights: int, total: float, spare: int) -> float:
    """The weighted mean of (logit - largest) / temperature."""
    largest, factor, zero = splat(top), splat(inverse), splat(0.0)
    own = widen(zero)
    for d in range(0, size, 16):
        w = load_f32(weights + d * 4)
        x = where_less(zero, w, scaled(load_some(row, d, size, spare), largest, factor), zero)
        own = add_wide(own, widen(mul(x, w)))
    return float(reduce_wide(own) / total)


@jit
def near(
    row: int, size: int, top: float, inverse: float, mean: float, least: float, keys: int, weights: int, ids: int,
    whole: bool, spare: int,
) -> int:  # fmt: skip
    """Leave the tokens that weigh anything and are at least so near to the mean, their nearness in keys; how many."""
    largest, factor, middle, afar, zero = splat(top), splat(inverse), splat(mean), splat(AFAR), splat(0.0)
    bound, end, kept = splat(least), splat(INFINITY), 0
    for d in range(0, size, 16):
        w, own = load_f32(weights + d * 4), numbered(d) if whole else load_f32(ids + d * 4)
        x = scaled(load_some(row, d, size, spare), largest, factor)
        key = where_less(zero, w, sub(afar, absolute(sub(x, middle))), zero)
        pack_between(weights + kept * 4, w, key, bound, end)
        pack_between(ids + kept * 4, own, key, bound, end)
        kept += pack_between(keys + kept * 4, key, key, bound, end)
    store_f32(keys + kept * 4, zero)
    store_f32(weights + kept * 4, zero)
    return int(kept)


@jit
def lost_below(share: float, total: float, count: int) -> int:
    """Bits of a weight: all that weigh less are together less than what a share leaves out."""
    return int(as_bits(max(LEAST, 0.999 * (1.0 - share) * total / count)))


@jit
def power_below(bits: int) -> float:
    """A number below the logarithm of all that is rounded to a weight (it may be half of it), by less than 1.4."""
    return (bits // (1 << 23) - 128) * 0.6931472


@jit
def pick(weights: int, count: int, total: float, number: float) -> int:
    """Where a number from 0 to 1 falls: on the first weight that together with those before it exceeds its share."""
    target, below, after, place = min(number * total, total - LEAST / 2), 0.0, 0.0, -BLOCK
    while after <= target:
        own, below, place = widen(splat(0.0)), after, place + BLOCK
        for d in range(place * 4, min(place + BLOCK, count) * 4, 64):
            own = add_wide(own, widen(load_f32(weights + d)))
        after = below + reduce_wide(own)
    place -= 1
    while below <= target:
        place += 1
        below += get_f32(weights + place * 4)
    return place


@jit
def draw(query: int, memory: int, room: int) -> int:
    """The token of a row, -1 if its logits are no numbers.

    memory: rows of `room` bytes for what changes touch, weights, ids, keys and two lists, then a few logits.
    """
    row, size, best = slot(query, abi.DRAW_LOGITS), slot(query, abi.DRAW_SIZE), slot(query, abi.DRAW_LIKELIEST)
    touched = touches(query)
    if touched == 0:
        return draw_from(query, row, size, best, memory, room)
    if slot(query, abi.DRAW_ALONE) == 0 or touched > size:
        for d in range(0, size, 16):
            store_f32(memory + d * 4, load_some(row, d, size, memory + 6 * room))
        best = change(query, memory, best)
        return draw_from(query, memory, size, best, memory, room)
    remember(query, row, memory)
    best = change(query, row, best)
    token = draw_from(query, row, size, best, memory, room)
    put_back(query, row, memory)
    return token


@jit
def draw_from(query: int, row: int, size: int, best: int, memory: int, room: int) -> int:
    """The token of a row that is changed already."""
    weights, ids, keys, lists = memory + room, memory + 2 * room, memory + 3 * room, memory + 4 * room
    spare = memory + 6 * room
    if best < 0:
        best = largest(row, size, spare)
    inverse = slot_f32(query, abi.DRAW_INVERSE)
    if best < 0 or inverse == 0.0:
        return best
    top, count, whole = get_f32(row + best * 4), size, True
    total = weigh(row, size, top, inverse, weights, spare)
    wanted, share = slot_f64(query, abi.DRAW_TOP_K), slot_f64(query, abi.DRAW_TOP_P)
    end = as_bits(1.0) + 1
    if wanted > 0.0:
        low, above = select_by_count(weights, weights, count, as_bits(LEAST), end, wanted, lists, room)
        count, total = keep(weights, weights, ids, count, low, above, wanted, 1.0, whole)
        whole = False
    if share < 1.0:
        wanted, low = share * total, lost_below(share, total, count)
        count, total = keep(weights, weights, ids, count, low, 0.0, INFINITY, 0.0, whole)
        low, above = select_by_sum(weights, weights, count, low, end, wanted, lists, room)
        count, total = keep(weights, weights, ids, count, low, above, wanted, 0.0, False)
        whole = False
    if slot_f32(query, abi.DRAW_MIN_P) > 0.0:
        low = as_bits(slot_f32(query, abi.DRAW_MIN_P))
        count, total = keep(weights, weights, ids, count, low, 0.0, INFINITY, 0.0, whole)
        whole = False
    if slot_f64(query, abi.DRAW_TYPICAL_P) < 1.0:
        if not whole:
            for i in range(0, count * 4, 4):
                put_f32(lists + i, get_f32(row + get_i32(ids + i) * 4))
            row = lists
        share = slot_f64(query, abi.DRAW_TYPICAL_P)
        mean, wanted = mean_of(row, count, top, inverse, weights, total, spare), share * total
        least = AFAR - 0.001 - max(-mean, mean - power_below(lost_below(share, total, count)))
        count = near(row, count, top, inverse, mean, least, keys, weights, ids, whole, spare)
        low, above = select_by_value(keys, weights, count, as_bits(least), as_bits(AFAR) + 1, wanted, lists, room)
        count, total = keep(keys, weights, ids, count, low, above, wanted, 0.0, False)
        whole = False
    place = pick(weights, count, total, slot_f64(query, abi.DRAW_NUMBER))
    return place if whole else get_i32(ids + place * 4)
