"""Rate a row of logits: the norm of its log-probabilities, a token's rank, the likeliest tokens."""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.logits import INFINITY, largest, load_some
from kvist.kernels.cpu.math import exp, jit
from kvist.kernels.cpu.scalar import get_f32, get_i64, put_f32, put_f64, put_i64, slot
from kvist.kernels.cpu.vector import add, keep_first, maximum, reduce_add, reduce_max, splat, sub, where_less
from kvist.kernels.cpu.wide import add_wide, reduce_wide, widen

GROUP = 256  # logits whose largest is known


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
    """Of a row the largest logit (-1: no numbers), the sum of exp(x - largest), a token's rank, the likeliest."""
    row, size, best = slot(query, abi.RATE_LOGITS), slot(query, abi.RATE_SIZE), slot(query, abi.RATE_LIKELIEST)
    out, spare, none = slot(query, abi.RATE_OUT), memory + 6 * room, splat(-INFINITY)
    if best < 0:
        best = largest(row, size, spare)
    put_i64(out + abi.RATED_LARGEST * 8, best)
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
    put_f64(out + abi.RATED_TOP * 8, get_f32(row + best * 4))
    put_f64(out + abi.RATED_SUM * 8, reduce_wide(own))
    token, count, ids = slot(query, abi.RATE_TOKEN), slot(query, abi.RATE_COUNT), out + abi.RATED_IDS * 8
    if token >= 0:
        put_i64(out + abi.RATED_RANK * 8, rank_of(row, size, token, spare))
        put_f64(out + abi.RATED_LOGIT * 8, get_f32(row + token * 4))
    if count > 0:
        best_of(row, size, memory, count, ids)
        for i in range(count):
            put_f64(slot(query, abi.RATE_LOGITS_OUT) + i * 8, get_f32(row + get_i64(ids + i * 8) * 4))
