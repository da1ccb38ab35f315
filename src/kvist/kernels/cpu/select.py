"""Find where the largest of many numbers reach a sum, without sorting them.

Keys are float32 from 0, and each has a measure: 1, the key itself, or a number beside it. Wanted is the largest key t
whose keys of at least t together measure a target. Bits of such floats are ordered as the floats are, so t is searched
as an integer: each round measures what is above four numbers between the bounds, and packs what lies in the fifth that
t must be in. What is left shrinks fast, so all rounds together read little more than the first.

All sums are exact (weights are multiples of 2**-32, see `kernels.choosing`), so no order of adding is meant by them.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.vector import splat
from kvist.kernels.cpu.vector_memory import load_f32, store_f32
from kvist.kernels.cpu.wide import add_where, as_float, count_between, pack_between, reduce_wide, widen

INFINITY = float("inf")


def make_pack(paired: bool) -> Any:
    """Packs keys alone, or keys and the values beside them."""

    @jit
    def pack(keys: int, values: int, count: int, low: int, high: int, lists: int, room: int) -> int:
        """Put the keys from low up to, not including, high (bits) side by side in lists; how many. In place too."""
        bottom, top, kept = splat(as_float(low)), splat(as_float(high)), 0
        for d in range(0, count * 4, 64):
            key = load_f32(keys + d)
            if paired:
                pack_between(lists + room + kept * 4, load_f32(values + d), key, bottom, top)
            kept += pack_between(lists + kept * 4, key, key, bottom, top)
        store_f32(lists + kept * 4, splat(0.0))  # a key of 0 is below every bound
        return kept

    return pack


@jit
def count_above(keys: int, values: int, count: int, t1: float, t2: float, t3: float, t4: float) -> Any:
    """How many keys are at least each of four numbers."""
    end, m1, m2, m3, m4 = splat(INFINITY), 0, 0, 0, 0
    a, b, c, e = splat(t1), splat(t2), splat(t3), splat(t4)
    for d in range(0, count * 4, 64):
        key = load_f32(keys + d)
        m1, m2 = m1 + count_between(key, a, end), m2 + count_between(key, b, end)
        m3, m4 = m3 + count_between(key, c, end), m4 + count_between(key, e, end)
    return float(m1), float(m2), float(m3), float(m4)


def make_sum_above(paired: bool) -> Any:
    """Adds keys, or the values beside them."""

    @jit
    def sum_above(keys: int, values: int, count: int, t1: float, t2: float, t3: float, t4: float) -> Any:
        """What the keys measure that are at least each of four numbers."""
        s1 = s2 = s3 = s4 = widen(splat(0.0))
        a, b, c, e = splat(t1), splat(t2), splat(t3), splat(t4)
        for d in range(0, count * 4, 64):
            key = load_f32(keys + d)
            measure = widen(load_f32(values + d) if paired else key)
            s1, s2 = add_where(s1, key, a, measure), add_where(s2, key, b, measure)
            s3, s4 = add_where(s3, key, c, measure), add_where(s4, key, e, measure)
        return reduce_wide(s1), reduce_wide(s2), reduce_wide(s3), reduce_wide(s4)

    return sum_above


def make_select(measure: Any, paired: bool) -> Any:
    """A search by a measure."""
    pack = make_pack(paired)

    @jit
    def select(keys: int, values: int, count: int, low: int, high: int, target: float, lists: int, room: int) -> Any:
        """The largest t from low to high - 1 (bits) that reaches the target, else low; and what is above it.

        keys, values: `count` float32, then zeros up to a multiple of 16; nothing measures from `high` on. lists: room
        for what is packed, `room` bytes each for keys and values.
        """
        above = 0.0
        while high - low > 1:
            span = high - low
            b1, b2, b3, b4 = low + span // 5, low + span * 2 // 5, low + span * 3 // 5, low + span * 4 // 5
            m1, m2, m3, m4 = measure(keys, values, count, as_float(b1), as_float(b2), as_float(b3), as_float(b4))
            if above + m4 >= target:
                low = b4
            elif above + m3 >= target:
                low, high, above = b3, b4, above + m4
            elif above + m2 >= target:
                low, high, above = b2, b3, above + m3
            elif above + m1 >= target:
                low, high, above = b1, b2, above + m2
            else:
                high, above = b1, above + m1
            count = pack(keys, values, count, low, high, lists, room)
            keys, values = lists, lists + room
        return low, above

    return select


select_by_count = make_select(count_above, False)
select_by_sum = make_select(make_sum_above(False), False)
select_by_value = make_select(make_sum_above(True), True)
