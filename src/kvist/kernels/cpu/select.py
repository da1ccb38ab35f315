"""Find where the largest of many numbers reach a sum, without sorting them.

Keys are float32 from 0, and each has a measure: 1, the key itself, or a number beside it. Wanted is the largest key t
whose keys of at least t together measure a target. Bits of such floats are ordered as the floats are, so t is searched
as an integer: each round measures what is above four numbers between the bounds and keeps what lies in the fifth that
t must be in. What is kept shrinks fast, so all rounds together read the row about three times.

All sums are exact (weights are multiples of 2**-32, see `kernels.choosing`), so no order of adding is meant by them.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.vector import maximum, splat
from kvist.kernels.cpu.vector_memory import load_f32, store_f32
from kvist.kernels.cpu.wide import add_where, as_float, pack_between, reduce_wide, widen


def make_select(paired: bool) -> Any:
    """A search over keys alone, or over keys with values beside them."""

    @jit
    def select(
        keys: int, values: int, count: int, low: int, high: int, target: float, floor: float, lists: int, room: int
    ) -> Any:
        """The largest t from low to high - 1 (bits) that reaches the target, and what is above it; else low.

        keys, values: `count` float32, a multiple of 16; a key's measure is its value, or itself, at least floor.
        Nothing measures from `high` on. lists: room for what is kept, `room` bytes for each of the two.
        """
        above, zero, least = 0.0, splat(0.0), splat(floor)
        while high - low > 1:
            span = high - low
            b1, b2, b3, b4 = low + span // 5, low + span * 2 // 5, low + span * 3 // 5, low + span * 4 // 5
            t1, t2, t3, t4 = splat(as_float(b1)), splat(as_float(b2)), splat(as_float(b3)), splat(as_float(b4))
            s1 = s2 = s3 = s4 = widen(zero)
            for d in range(0, count * 4, 64):
                key = load_f32(keys + d)
                measure = widen(maximum(load_f32(values + d) if paired else key, least))
                s1, s2 = add_where(s1, key, t1, measure), add_where(s2, key, t2, measure)
                s3, s4 = add_where(s3, key, t3, measure), add_where(s4, key, t4, measure)
            m1, m2, m3, m4 = reduce_wide(s1), reduce_wide(s2), reduce_wide(s3), reduce_wide(s4)
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
            bottom, top, kept = splat(as_float(low)), splat(as_float(high)), 0
            for d in range(0, count * 4, 64):
                key = load_f32(keys + d)
                if paired:
                    pack_between(lists + room + kept * 4, load_f32(values + d), key, bottom, top)
                kept += pack_between(lists + kept * 4, key, key, bottom, top)
            store_f32(lists + kept * 4, zero)  # a key of 0 is below every bound
            keys, values, count = lists, lists + room, (kept + 15) // 16 * 16
        return low, above

    return select


select_keys = make_select(False)
select_pairs = make_select(True)
