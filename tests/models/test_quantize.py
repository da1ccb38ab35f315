"""Float weights to blocks of 8-bit integers: as near as a step allows, and as the gguf package does it."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from kvist.models import quantize
from kvist.models.quantize import quantize_q8_0
from kvist.models.weights import TensorInfo, unpack
from ops import numbers

Q8 = gguf.GGMLQuantizationType.Q8_0


def parts(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales (rows, blocks) and integers (rows, blocks, 32)."""
    split = blocks.reshape(len(blocks), -1, 34)
    return np.ascontiguousarray(split[..., :2]).view(np.float16)[..., 0], split[..., 2:].view(np.int8)


def restored(blocks: np.ndarray) -> np.ndarray:
    return unpack(TensorInfo("t", "q8_0", (len(blocks), blocks.shape[1] // 34 * 32)), blocks)


def matrix(scale: float = 1.0, rows: int = 300, columns: int = 160) -> np.ndarray:
    """Rows of all sizes around `scale`, some blocks with one outlier."""
    made = numbers(1, rows, columns) * np.exp2(numbers(2, rows, 1)) * np.float32(scale)
    made[::7, 40] *= 30
    return made.astype(np.float32)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_within_one_step_of_the_gguf_package(scale: float) -> None:
    values = matrix(scale)
    theirs = gguf.quants.quantize(values, Q8)
    mine = quantize_q8_0(values)
    assert mine.dtype == np.uint8 and mine.shape == theirs.shape and mine.flags.c_contiguous
    (d, q), (their_d, their_q) = parts(mine), parts(theirs)
    assert d.tobytes() == their_d.tobytes()
    assert np.abs(q.astype(int) - their_q).max() == 1 and (q == their_q).mean() > 0.95
    exact = values.astype(np.float64)
    assert np.abs(restored(mine) - exact).sum() <= np.abs(restored(theirs) - exact).sum()


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_no_number_is_off_by_more_than_half_a_step(scale: float) -> None:
    """Half a step, or what the rounding of the scale itself (11 bits) takes from the largest number."""
    values = matrix(scale)
    d, q = parts(quantize_q8_0(values))
    step = d.astype(np.float64)[..., None]
    error = np.abs(values.reshape(q.shape) - step * q)
    assert (error <= step / 2 * (1 + 1e-6)).all() and error.max() > 0.4 * step.max() / 2
    assert q.min() == -127 and q.max() == 127, "the whole range is used, and it is symmetric"
    assert (np.abs(q).max(-1) == 127).all()


def test_tiny_blocks() -> None:
    """Scales end at 2**-24: below, a step is large beside the numbers, and the smallest become zero."""
    for size in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-30, 1e-45):
        values = (numbers(3, 50, 64) * np.float32(size)).astype(np.float32)
        d, q = parts(quantize_q8_0(values))
        largest = np.abs(values.reshape(q.shape)).max(-1, keepdims=True).astype(np.float64)
        step = d.astype(np.float64)[..., None]
        cut = np.maximum(largest - 127 * step, 0)  # of numbers beyond 127 steps
        error = np.abs(values.reshape(q.shape) - step * q)
        assert (error <= np.maximum(step / 2 * (1 + 1e-6), cut * (1 + 1e-6))).all()
        assert (cut <= 127 * 2.0**-25 * (1 + 1e-3) + largest * 2.0**-11).all()
        assert np.isfinite(d).all() and (q[step[..., 0] == 0] == 0).all()


def test_zeros_and_lone_numbers() -> None:
    values = np.zeros((3, 64), np.float32)
    values[1, 5], values[2, 63] = -2.54, 127.0
    blocks = quantize_q8_0(values)
    d, q = parts(blocks)
    assert not blocks[0].any() and (d[0] == 0).all()
    assert q[1, 0, 5] == -127 and np.count_nonzero(q) == 2
    assert restored(blocks)[2, 63] == 127.0 and d[2, 1] == 1.0, "whole numbers are exact"
    assert np.array_equal(restored(quantize_q8_0(restored(blocks))), restored(blocks)), "again changes nothing"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 65520.0 * 127])
def test_what_has_no_scale_is_seen_in_it(value: float) -> None:
    """The search for what is not finite finds it there."""
    values = numbers(4, 4, 96).copy()
    values[2, 40] = value
    d, _ = parts(quantize_q8_0(values))
    assert not np.isfinite(d[2, 1]) and np.isfinite(d).sum() == d.size - 1


@pytest.mark.parametrize("rows", [1, 4, 5, 8, 13])
def test_rows_a_few_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = matrix(rows=rows)
    whole = quantize_q8_0(values)
    monkeypatch.setattr(quantize, "ROWS_A_TURN", 4)
    assert np.array_equal(quantize_q8_0(values), whole)
    assert np.array_equal(np.concatenate([quantize_q8_0(row[None]) for row in values]), whole)
