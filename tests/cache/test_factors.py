"""Factors that packed numbers are multiplied with: bytes, and sums of products that fit in 16 bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.cache.codec import any_codec
from kvist.cache.codec.base import Packed
from kvist.cache.codec.factors import SPLIT, TILE, asked, counting, pairs_together, step_of, weighed
from kvist.cache.codec.packed import grid
from kvist.errors import UsageError
from kvist.kernels.cpu import abi

NAMES = ("int8", "int6", "int5", "int4", "int3", "kivi4", "kivi2", "lm4", "lm3")


def numbers_of_all_kinds(seed: int, size: int) -> npt.NDArray[np.float64]:
    """Rows: normal ones, all the same, one alone, two neighbours, one half of each four, ties, one large among many."""
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal(size) * 10.0 ** rng.uniform(-6, 6) for _ in range(200)]
    rows += [np.full(size, 0.7), np.eye(size)[3], np.eye(size)[6] + np.eye(size)[7], np.tile([1.0, 1, 0, 0], size // 4)]
    rows += [np.tile([0.0, 0, 3, 3], size // 4), rng.integers(0, 9, size) + 0.5, np.r_[99.0, np.full(size - 1, 0.5)]]
    return np.stack([*rows, np.zeros(size)])


def multiplied(codec: Packed, keys: bool) -> npt.NDArray[np.float64]:
    """The numbers that codes are multiplied as."""
    steps = grid(codec).astype(np.float64)
    return steps - (steps.min() if codec.grid == "bell" and keys else 0 if keys else codec.below)


@pytest.mark.parametrize(("size", "keys"), [(16, True), (64, True), (128, True), (64, False)])
@pytest.mark.parametrize("name", NAMES)
def test_sums_fit(name: str, size: int, keys: bool) -> None:
    codec = any_codec(name)
    assert isinstance(codec, Packed)
    numbers = numbers_of_all_kinds(1, size)
    numbers = numbers if keys else np.abs(numbers)
    step = step_of(codec, np.abs(numbers), keys=keys)
    found = np.rint(np.divide(numbers, step, out=np.zeros_like(numbers), where=step > 0))
    assert np.abs(found).max() <= (127 if keys else 255) and (np.abs(found).max(1) > 8)[:-1].all()
    codes = multiplied(codec, keys)
    high, low = np.where(found > 0, codes.max(), codes.min()), np.where(found > 0, codes.min(), codes.max())
    together = pairs_together(codec, keys=keys) or size // 4
    for worst in (found * high, found * low):  # the largest sums there can be, the smallest ones
        pairs = worst.reshape(len(found), -1, 2, 2).sum(-1)  # row, four numbers, half of them
        sums = pairs.reshape(len(found), -1, together, 2).sum(2)
        assert sums.max() < 1 << 15 and sums.min() >= -(1 << 15)


def test_more_products_than_a_sum_has_room_for_are_refused() -> None:
    codec = any_codec("int8")
    assert isinstance(codec, Packed)
    for size in (1008, 1024, 2048, 1 << 14):
        codec.check(16, size)
    with pytest.raises(UsageError, match=r"at most 1024.*1040: choose fp8"):
        codec.check(16, 1040)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("kivi")])
def test_factors_are_fine(name: str) -> None:
    """What rounding changes is less than what packing does, by far where there are few bits."""
    codec = any_codec(name)
    assert isinstance(codec, Packed)
    rng = np.random.default_rng(2)
    queries = rng.standard_normal((500, 64))
    error = asked(codec, queries) - queries
    assert 1e-6 < np.square(error).mean() < 3e-4
    values, ones = rng.standard_normal((64, 64)), np.ones((64, 64))
    for weights in (np.full(64, 1 / 64), np.exp(rng.standard_normal(64)), np.eye(64)[5]):
        made, exact = weighed(codec, weights, values, ones, 0 * ones), weights @ values
        assert np.abs(made - exact).max() < 0.01 * weights.sum()
    assert np.array_equal(weighed(codec, np.eye(64)[5], np.full((64, 64), 2.0), ones, 2 * ones), np.full(64, 2.0))


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), length=st.integers(1, 3000), spread=st.floats(0, 8), above=st.integers(0, 40),
    page_size=st.sampled_from([16, 128]),
)  # fmt: skip
def test_what_is_left_out_weighs_little(seed: int, length: int, spread: float, above: int, page_size: int) -> None:
    rng, slots = np.random.default_rng(seed), np.arange(length)
    scores = rng.standard_normal(length) * spread
    scores[0] += above
    found = counting(scores, slots, length, page_size, scores[:16].max() if length > 16 else -np.inf)
    assert np.exp(scores - scores.max())[~found].sum() < 0.25
    exact = (slots < page_size) | (slots // page_size == (length - 1) // page_size)
    assert found[scores.argmax()] and found[exact].all()
    for tile in range(0, length, TILE):
        assert len(set(found[tile : tile + TILE])) == 1


def test_each_split_begins_anew() -> None:
    """What is far below the first block is left out everywhere; below what only another split has, nowhere."""
    scores, slots = np.zeros(3 * SPLIT), np.arange(3 * SPLIT)
    scores[20] = 50
    own = slots >= 3 * SPLIT - TILE
    assert np.array_equal(counting(scores, slots, 3 * SPLIT, 16, 50.0), (slots < TILE) | own)
    assert np.array_equal(counting(scores, slots, 3 * SPLIT, 16), (slots < TILE) | (slots >= SPLIT))
    later = slots[TILE:]  # a window's
    assert np.array_equal(counting(scores[later], later, 3 * SPLIT, 16, before=90.0), later >= SPLIT)
    assert counting(scores[later], later, 3 * SPLIT, 16).all()


def test_kernels_cut_where_the_definition_does() -> None:
    assert (TILE, SPLIT) == (abi.TILE, abi.SPLIT)
