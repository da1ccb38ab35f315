from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvist.cache.codec import FLOATS, any_codec, codec
from kvist.errors import UnknownNameError

floats = st.floats(width=32, allow_nan=False)


def one(name: str, number: float) -> float:
    c = codec(name)
    return float(c.decode(c.encode(np.array([number], np.float32)))[0])


@pytest.mark.parametrize("name", FLOATS)
def test_what_every_codec_promises(name: str) -> None:
    c = codec(name)
    numbers = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
    stored = c.encode(numbers)
    assert (c.name, stored.shape, stored.dtype, stored.itemsize) == (name, numbers.shape, c.dtype, c.itemsize)
    read = c.decode(stored)
    assert read.dtype == np.float32
    assert np.array_equal(c.encode(read), stored), "encoding what was decoded changes nothing"
    assert c.encode(numbers[:, ::2, 1]).shape == (2, 2), "strided input"
    assert c.encode(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_item_sizes() -> None:
    assert {name: codec(name).itemsize for name in FLOATS} == {"f32": 4, "f16": 2, "bf16": 2}


@pytest.mark.parametrize("name", FLOATS)
def test_special_numbers_stay_special(name: str) -> None:
    assert one(name, math.inf) == math.inf
    assert one(name, -math.inf) == -math.inf
    assert math.isnan(one(name, math.nan))
    assert math.copysign(1, one(name, -0.0)) == -1


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_stored_pattern_survives(name: str) -> None:
    c = codec(name)
    patterns = np.arange(1 << 16, dtype=np.uint16)
    numbers = c.decode(patterns.view(c.dtype))
    again = c.encode(numbers).view(np.uint16)
    nan = np.isnan(numbers)
    assert np.array_equal(again[~nan], patterns[~nan])
    assert np.isnan(c.decode(again[nan].view(c.dtype))).all(), "NaN kept NaN, whatever its payload"


def test_every_nan_of_the_upper_and_lower_half_stays_nan_in_bf16() -> None:
    bits = np.array([0x7F800001, 0x7F80FFFF, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7F817FFF], np.uint32)
    stored = codec("bf16").encode(bits.view(np.float32))
    assert np.isnan(codec("bf16").decode(stored)).all()


@given(floats)
def test_bf16_is_the_nearest_and_the_even_one_of_two(number: float) -> None:
    bits = int(np.float32(number).view(np.uint32))
    below = bits & 0xFFFF0000
    candidates = [below >> 16, (below >> 16) + 1]
    values = [float(np.uint32(c << 16).view(np.float32)) for c in candidates]
    if math.isinf(values[0]):
        return
    if math.isinf(values[1]):  # rounding treats the overflow threshold as one more step of the last exponent
        values[1] = math.copysign(2.0**128, values[1])
    distance = [abs(v - number) for v in values]
    nearest = 0 if distance[0] < distance[1] or (distance[0] == distance[1] and candidates[0] % 2 == 0) else 1
    assert int(codec("bf16").encode(np.array([number], np.float32))[0]) == candidates[nearest]


@given(floats)
def test_f16_rounds_as_ieee_and_saturates_what_is_finite(number: float) -> None:
    expected = number if math.isinf(number) else max(-65504.0, min(65504.0, number))
    assert one("f16", number) == float(np.float16(expected))
    assert math.isfinite(one("f16", number)) == math.isfinite(number)


def test_f16_never_overflows() -> None:
    assert [one("f16", n) for n in (65504, 65519, 65520, 1e30, -1e30)] == [65504, 65504, 65504, 65504, -65504]


@given(floats)
def test_f32_is_the_number_itself(number: float) -> None:
    assert one("f32", number) == number


def test_an_unknown_codec_lists_those_that_are_near() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown KV cache codec 'fp16': did you mean .*f16"):
        any_codec("fp16")
    with pytest.raises(UnknownNameError, match=r"unknown KV cache codec 'zz': known are bf16, f16, f32, .*int8"):
        any_codec("zz")
    with pytest.raises(UnknownNameError, match="unknown float type 'int4': known are bf16, f16, f32"):
        codec("int4")
