"""Tokens from rows of logits, and log-probabilities of them: a unit of its own, a piece of work is a row.

::

    logits ── copied only if something changes them ──► weights ── a filter: select, then cut ──► draw
                                                           │  in place: what is cut weighs 0
                                                           └─ with them sums of blocks of 1,024 tokens

What a token is, is defined by `kernels.choosing`. Sums of weights are exact there, so it does not matter in what order
they are added here; the other two sums (a mean, the sum of exp) run in sixteen lanes, then by one tree. A row of 49,152
logits and its weights stay in a core's second-level cache from the first pass to the last.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.math import exp, jit
from kvist.kernels.cpu.scalar import (
    arg,
    get_f32,
    get_f64,
    get_i64,
    put_f32,
    put_f64,
    put_i64,
    slot,
    slot_f32,
    slot_f64,
)
from kvist.kernels.cpu.select import select_keys, select_pairs
from kvist.kernels.cpu.vector import (
    absolute,
    add,
    first,
    keep_first,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    splat,
    sub,
    where_less,
)
from kvist.kernels.cpu.vector_memory import load_f32, store_f32
from kvist.kernels.cpu.wide import add_wide, as_bits, as_float, count_equal, mul_wide, reduce_wide, widen

INFINITY = float("inf")
BLOCK = 1024  # tokens whose weights are added before the sum is kept
GROUP = 256  # logits whose largest is known
LEAST = 2.0**-32  # the smallest weight; all are multiples of it
COARSE = 2.0**-9  # below it float32 numbers may lie between multiples of LEAST
AFAR = 64.0  # nearness of a token whose information is the mean


@jit
def load_some(row: int, d: int, size: int, spare: int) -> Any:
    """Logits d to d + 15; behind the row's end minus infinity."""
    if size - d >= 16:
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


@jit
def change(query: int, row: int) -> None:
    """Hold ends back, add biases, then penalties; each a few numbers of the row, rounded to float32 after each step."""
    ids = slot(query, abi.DRAW_HELD)
    for i in range(slot(query, abi.DRAW_HELD_COUNT)):
        put_f32(row + get_i64(ids + i * 8) * 4, -INFINITY)
    ids, values = slot(query, abi.DRAW_BIASED), slot(query, abi.DRAW_BIAS)
    for i in range(slot(query, abi.DRAW_BIASED_COUNT)):
        place = row + get_i64(ids + i * 8) * 4
        put_f32(place, get_f32(place) + get_f32(values + i * 4))
    ids, values = slot(query, abi.DRAW_SEEN), slot(query, abi.DRAW_TIMES)
    factor, once = slot_f32(query, abi.DRAW_REPETITION), slot_f32(query, abi.DRAW_PRESENCE)
    each = slot_f32(query, abi.DRAW_FREQUENCY)
    for i in range(slot(query, abi.DRAW_SEEN_COUNT)):
        place, times = row + get_i64(ids + i * 8) * 4, get_f32(values + i * 4)
        x = get_f32(place)
        x = x / factor if x > 0.0 else x * factor
        x = x - each * times
        put_f32(place, x - once if times > 0.0 else x)


@jit
def scaled(x: Any, top: Any, inverse: Any) -> Any:
    """(logit - largest) / temperature."""
    return mul(sub(x, top), inverse)


@jit
def weigh(row: int, size: int, top: float, inverse: float, weights: int, sums: int, spare: int) -> float:
    """Every token's weight, and the sums of blocks; the sum of all."""
    largest, factor, coarse, total = splat(top), splat(inverse), splat(COARSE), 0.0
    for start in range(0, size, BLOCK):
        own = widen(splat(0.0))
        for d in range(start, min(size, start + BLOCK), 16):
            e = exp(scaled(load_some(row, d, size, spare), largest, factor))
            w = where_less(e, coarse, sub(add(e, coarse), coarse), e)
            store_f32(weights + d * 4, w)
            own = add_wide(own, widen(w))
        put_f64(sums + start // BLOCK * 8, reduce_wide(own))
        total += get_f64(sums + start // BLOCK * 8)
    return total


@jit
def cut(
    keys: int, weights: int, size: int, least: float, above: float, target: float, floor: float, sums: int
) -> float:
    """Set weights to 0 whose keys are below `least`, and those at it but for the first that reach the target.

    above: what all keys above `least` measure. A measure is the weight, at least floor. Sums anew; the sum of all.
    """
    bound, total = splat(least), 0.0
    for start in range(0, size, BLOCK):
        own = widen(splat(0.0))
        for d in range(start, min(size, start + BLOCK), 16):
            key, w = load_f32(keys + d * 4), load_f32(weights + d * 4)
            if count_equal(key, least) > 0:
                for i in range(d * 4, d * 4 + 64, 4):
                    if get_f32(keys + i) == least:
                        if above < target:
                            above += max(get_f32(weights + i), floor)
                        else:
                            put_f32(weights + i, 0.0)
                w = load_f32(weights + d * 4)
            w = where_less(key, bound, splat(0.0), w)
            store_f32(weights + d * 4, w)
            own = add_wide(own, widen(w))
        put_f64(sums + start // BLOCK * 8, reduce_wide(own))
        total += get_f64(sums + start // BLOCK * 8)
    return total


@jit
def typical(row: int, size: int, top: float, inverse: float, weights: int, total: float, keys: int, spare: int) -> None:
    """Keys: how near each token's information is to its mean, from AFAR down; 0 for what weighs nothing."""
    largest, factor, zero = splat(top), splat(inverse), splat(0.0)
    own = widen(zero)
    for d in range(0, size, 16):
        w = load_f32(weights + d * 4)
        x = where_less(zero, w, scaled(load_some(row, d, size, spare), largest, factor), zero)
        store_f32(keys + d * 4, x)
        own = add_wide(own, mul_wide(widen(x), widen(w)))
    mean, afar = splat(reduce_wide(own) / total), splat(AFAR)
    for d in range(0, size, 16):
        near = sub(afar, absolute(sub(load_f32(keys + d * 4), mean)))
        store_f32(keys + d * 4, where_less(zero, load_f32(weights + d * 4), near, zero))


@jit
def pick(weights: int, size: int, sums: int, total: float, number: float) -> int:
    """The token that a number from 0 to 1 falls on: the first whose weight and those before it exceed their share."""
    target, start = min(number * total, total - LEAST / 2), 0
    below = get_f64(sums)
    while below <= target:
        start += BLOCK
        below += get_f64(sums + start // BLOCK * 8)
    below -= get_f64(sums + start // BLOCK * 8)
    token = start - 1
    while below <= target:
        token += 1
        below += get_f32(weights + token * 4)
    return token


@jit
def draw(query: int, memory: int, room: int) -> int:
    """The token of a row, -1 if its logits are no numbers.

    memory: rows of `room` bytes for changed logits, weights, keys and two lists; then sums; then a few logits.
    """
    row, size, best = slot(query, abi.DRAW_LOGITS), slot(query, abi.DRAW_SIZE), slot(query, abi.DRAW_LIKELIEST)
    weights, keys, lists, sums = memory + room, memory + 2 * room, memory + 3 * room, memory + 5 * room
    spare = memory + 6 * room - 64
    if slot(query, abi.DRAW_CHANGED) != 0:
        for d in range(0, size, 16):
            store_f32(memory + d * 4, load_some(row, d, size, spare))
        change(query, memory)
        row, best = memory, -1
    if best < 0:
        best = largest(row, size, spare)
    inverse = slot_f32(query, abi.DRAW_INVERSE)
    if best < 0 or inverse == 0.0:
        return best
    top, count = get_f32(row + best * 4), (size + 15) // 16 * 16
    total = weigh(row, size, top, inverse, weights, sums, spare)
    wanted, share = slot_f64(query, abi.DRAW_TOP_K), slot_f64(query, abi.DRAW_TOP_P)
    end = as_bits(1.0) + 1
    if wanted > 0.0:
        low, above = select_keys(weights, weights, count, as_bits(LEAST), end, wanted, 1.0, lists, room)
        total = cut(weights, weights, size, as_float(low), above, wanted, 1.0, sums)
    if share < 1.0:
        least = max(LEAST, 0.999 * (1.0 - share) * total / size)  # what is below it is too little to be missed
        wanted = share * total
        low, above = select_keys(weights, weights, count, as_bits(least), end, wanted, 0.0, lists, room)
        total = cut(weights, weights, size, as_float(low), above, wanted, 0.0, sums)
    if slot_f32(query, abi.DRAW_MIN_P) > 0.0:
        total = cut(weights, weights, size, slot_f32(query, abi.DRAW_MIN_P), 0.0, INFINITY, 0.0, sums)
    if slot_f64(query, abi.DRAW_TYPICAL_P) < 1.0:
        typical(row, size, top, inverse, weights, total, keys, spare)
        wanted, end = slot_f64(query, abi.DRAW_TYPICAL_P) * total, as_bits(AFAR) + 1
        low, above = select_pairs(keys, weights, count, as_bits(AFAR / 2), end, wanted, 0.0, lists, room)
        total = cut(keys, weights, size, as_float(low), above, wanted, 0.0, sums)
    return pick(weights, size, sums, total, slot_f64(query, abi.DRAW_NUMBER))


@jit
def rank_of(row: int, size: int, token: int, spare: int) -> int:
    """A token's place among all, from 1: behind larger logits, and behind equal ones of lower ids."""
    value, one, zero = splat(get_f32(row + token * 4)), splat(1.0), splat(0.0)
    ahead = zero
    for d in range(0, size, 16):
        x = load_some(row, d, size, spare)
        larger = where_less(value, x, one, zero)
        ahead = add(ahead, keep_first(where_less(x, value, zero, one), token - d, larger))
    return 1 + int(reduce_add(ahead))


@jit
def best_of(row: int, size: int, tops: int, count: int, ids: int) -> None:
    """The ids (int64) of the `count` largest logits, the largest first, of equals the lower id. tops: of groups."""
    held = 0
    for start in range(0, size, GROUP):
        if held == count and get_f32(tops + start // GROUP * 4) <= get_f32(row + get_i64(ids + held * 8 - 8) * 4):
            continue
        for token in range(start, min(size, start + GROUP)):
            x = get_f32(row + token * 4)
            if held == count and x <= get_f32(row + get_i64(ids + held * 8 - 8) * 4):
                continue
            place = held if held < count else count - 1
            while place > 0 and get_f32(row + get_i64(ids + place * 8 - 8) * 4) < x:
                put_i64(ids + place * 8, get_i64(ids + place * 8 - 8))
                place -= 1
            put_i64(ids + place * 8, token)
            held = min(held + 1, count)


@jit
def rate(query: int, memory: int, room: int) -> None:
    """Of a row the largest logit's index (-1: no numbers), a token's rank, the sum of exp(x - largest), the likeliest."""
    row, size, best = slot(query, abi.RATE_LOGITS), slot(query, abi.RATE_SIZE), slot(query, abi.RATE_LIKELIEST)
    out, spare, none = slot(query, abi.RATE_OUT), memory + 6 * room - 64, splat(-INFINITY)
    if best < 0:
        best = largest(row, size, spare)
    put_i64(out, best)
    if best < 0:
        return
    top, own = splat(get_f32(row + best * 4)), widen(splat(0.0))
    for start in range(0, size, GROUP):
        high = none
        for d in range(start, min(size, start + GROUP), 16):
            x = load_some(row, d, size, spare)
            high = maximum(high, x)
            own = add_wide(own, widen(where_less(none, x, exp(sub(x, top)), splat(0.0))))
        put_f32(memory + start // GROUP * 4, reduce_max(high))
    put_f64(out + 16, reduce_wide(own))
    if slot(query, abi.RATE_TOKEN) >= 0:
        put_i64(out + 8, rank_of(row, size, slot(query, abi.RATE_TOKEN), spare))
    if slot(query, abi.RATE_COUNT) > 0:
        best_of(row, size, memory, slot(query, abi.RATE_COUNT), out + 24)


def run(ctx: int, op: int, piece: int, tid: int) -> int:
    """Entry of the unit. Arguments of the op: queries, their count, bytes of one, memory, bytes a thread, room."""
    query, memory, room = arg(op, 0) + piece * arg(op, 2), arg(op, 3) + tid * arg(op, 4), arg(op, 5)
    if slot(op, abi.CODE) == abi.DRAW:
        put_i64(arg(op, 6) + piece * 8, draw(query, memory, room))
    else:
        rate(query, memory, room)
    return 0
