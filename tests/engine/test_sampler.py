"""Sampling: candidates against a sort that anyone can read, draws against the distribution, and each draw a function
of its inputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kvist.engine.params import SamplingParams
from kvist.engine.sampler import candidates, sample, uniform
from kvist.errors import InternalError, UsageError

LOGITS = arrays(np.float32, st.integers(1, 60), elements=st.floats(-30, 30, width=32))
TIED = arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([-3.0, 0.0, 0.5, 2.0]))  # many equals
ANY_LOGITS = LOGITS | TIED
quick = settings(max_examples=300, deadline=None, derandomize=True)


def weights_of(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities relative to the likeliest, in float64."""
    return np.exp((logits.astype(np.float64) - float(logits.max())) / temperature)


def naive(logits: np.ndarray, params: SamplingParams) -> tuple[list[int], bool]:
    """The kept ids by sorting everything; and whether top_p or min_p was decided by less than rounding."""
    weights = weights_of(logits, params.temperature)
    order = sorted(range(len(logits)), key=lambda i: (-weights[i], i))
    if params.top_k > 0:
        order = order[: params.top_k]
    close = False
    if params.top_p < 1.0:
        wanted, reached, kept = params.top_p * math.fsum(weights[order]), [], []
        for i in order:
            kept.append(i)
            reached.append(math.fsum(weights[kept]))
            if reached[-1] >= wanted:
                break
        close = any(abs(sum_ - wanted) < 1e-9 * wanted for sum_ in reached)
        order = kept
    if params.min_p > 0.0:
        order = [i for i in order if weights[i] >= params.min_p]
    return sorted(order), close


@quick
@given(logits=ANY_LOGITS, seed=st.integers(0, 2**70), position=st.integers(0, 1 << 20), data=st.data())
def test_greedy_is_the_first_of_the_largest(logits: np.ndarray, seed: int, position: int, data: st.DataObject) -> None:
    largest = next(i for i in range(len(logits)) if logits[i] == logits.max())
    top_p, min_p = data.draw(st.floats(0.01, 1)), data.draw(st.floats(0, 1))
    assert sample(logits, SamplingParams(temperature=0.0, top_p=top_p, min_p=min_p), seed, position) == largest
    assert sample(logits, SamplingParams(temperature=3.0, top_k=1), seed, position) == largest


@quick
@given(
    logits=ANY_LOGITS, temperature=st.floats(0.05, 5), top_k=st.integers(-1, 70),
    top_p=st.one_of(st.just(1.0), st.floats(0.001, 1.0)), min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
)  # fmt: skip
def test_candidates_are_those_of_a_plain_sort(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected, close = naive(logits, params)
    assume(not close)
    ids, weights = candidates(logits, params)
    assert ids.tolist() == expected
    assert np.array_equal(weights, weights_of(logits, temperature)[ids])
    assert int(np.argmax(weights_of(logits, temperature))) in expected, "the likeliest is always kept"


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 3}, [0, 1, 3]),  # of the equals 0 and 4 the first
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.3}, [3]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.75}, [0, 1, 3]),
        ({"top_p": 0.95}, [0, 1, 3, 4]),
        ({"min_p": 0.5}, [1, 3]),
        ({"min_p": 0.4}, [0, 1, 3, 4]),
        ({"min_p": 1.0}, [3]),
        ({"top_k": 3, "top_p": 0.8}, [1, 3]),  # top_p counts what top_k left: 0.4 + 0.3 of 0.86
        ({"top_k": 4, "min_p": 0.75}, [1, 3]),
    ],
)
def test_candidates_of_known_probabilities(params: dict[str, Any], expected: list[int]) -> None:
    probabilities = np.array([0.16, 0.3, 0.04, 0.4 - 1e-6, 0.16])
    logits = np.log(probabilities).astype(np.float32)
    assert candidates(logits, SamplingParams(**params))[0].tolist() == expected


@quick
@given(
    logits=ANY_LOGITS, temperature=st.floats(0.05, 5), top_k=st.integers(0, 70), top_p=st.floats(0.001, 1.0), min_p=st.floats(0, 1),
    seed=st.integers(-(2**65), 2**65), position=st.integers(0, 1 << 31),
)  # fmt: skip
def test_a_draw_is_one_of_the_candidates_and_repeats(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, position: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    before = logits.copy()
    token = sample(logits, params, seed, position)
    assert token in candidates(logits, params)[0]
    assert type(token) is int
    assert np.array_equal(logits, before), "the logits are the runner's"
    assert sample(np.array(logits), params, seed, position) == token


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-12, 1e-3, 100.0])
def test_extreme_temperatures(temperature: float) -> None:
    logits = np.array([1.0, 3.0, -50.0, 2.999], np.float32)
    params = SamplingParams(temperature=temperature)
    drawn = {sample(logits, params, seed, 0) for seed in range(300)}
    assert drawn == ({1} if temperature < 1e-3 else {1, 3} if temperature == 1e-3 else {0, 1, 2, 3})


def test_logits_that_are_minus_infinity_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0], np.float32)
    assert {sample(logits, SamplingParams(), seed, 1) for seed in range(100)} == {1, 3}
    assert sample(logits, SamplingParams(temperature=0.0), 0, 0) == 1


@pytest.mark.parametrize("bad", [[0.0, np.nan], [np.nan, 0.0], [0.0, np.inf], [-np.inf, -np.inf], [np.nan] * 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(bad: list[float], temperature: float) -> None:
    with pytest.raises(InternalError, match="NaN or infinite"):
        sample(np.array(bad, np.float32), SamplingParams(temperature=temperature), 0, 0)


# --- randomness
# ---------------------------------------------------------------------------------------------------------


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_uniform_is_in_range_and_repeats() -> None:
    for seed in (0, 1, -1, 2**64 - 1, 2**64, 2**200):
        for position in (0, 1, 2**31, 2**70):
            number = uniform(seed, position)
            assert 0.0 <= number < 1.0 and number == uniform(seed, position)
    assert uniform(1, 5) != uniform(1, 6) != uniform(2, 6)


def split_mix(state: int, count: int) -> list[int]:
    """The generator as published (Steele, Lea, Flood 2014): the state advances, each output is its finaliser."""
    outputs = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs


@pytest.mark.parametrize("seed", [0, 1, 42, 2**64 - 1])
def test_uniform_is_split_mix_from_a_mixed_seed(seed: int) -> None:
    """Texts of a seed stay what they are: position p is output p of the stream that begins at the mixed seed."""
    assert split_mix(0, 1) == [0xE220A8397B1DCDAF], "the published first output"
    stream = split_mix(split_mix(seed, 1)[0], 20)
    assert [uniform(seed, position) for position in range(20)] == [(output >> 11) / 2**53 for output in stream]


@pytest.mark.parametrize("along", ["positions", "seeds", "both"])
def test_uniform_is_spread_evenly(along: str) -> None:
    """Over positions of a seed, over seeds at a position, over both: 64 equal bins, pairs of neighbours,
    correlation.
    """
    count = 20_000
    pairs = {"positions": (lambda i: (7, i)), "seeds": (lambda i: (i, 7)), "both": (lambda i: (i // 100, i % 100))}[
        along
    ]
    numbers = np.array([uniform(*pairs(i)) for i in range(count)])
    assert len(set(numbers)) == count
    bins = np.bincount((numbers * 64).astype(int), minlength=64)
    assert chi_square(bins, np.full(64, count / 64)) < 110, "63 degrees of freedom: 110 is exceeded once in 4,000 times"
    squares = (numbers[:-1] * 8).astype(int) * 8 + (numbers[1:] * 8).astype(int)
    assert chi_square(np.bincount(squares, minlength=64), np.full(64, (count - 1) / 64)) < 110
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / count**0.5
    assert abs(numbers.mean() - 0.5) < 4 / (12 * count) ** 0.5


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 2.0, "top_p": 0.9}],
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    logits = np.random.RandomState(3).standard_normal(12).astype(np.float32) * 1.5
    made = SamplingParams(**params)
    kept, _ = naive(logits, made)
    exact = weights_of(logits, made.temperature)[kept]
    exact /= exact.sum()
    count = 8000
    drawn = np.array([sample(logits, made, seed=42 + i % 4, position=i) for i in range(count)])
    counts = np.array([(drawn == i).sum() for i in kept])
    assert counts.sum() == count and len(kept) > 1
    freedom = len(kept) - 1
    assert chi_square(counts, count * exact) < freedom + 4.5 * (2 * freedom) ** 0.5


def test_seeds_and_positions_give_different_draws() -> None:
    logits = np.zeros(50, np.float32)
    texts = {tuple(sample(logits, SamplingParams(), seed, position) for position in range(20)) for seed in range(50)}
    assert len(texts) == 50


# --- parameters
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -0.1), ("temperature", 101), ("temperature", math.nan), ("top_k", -2), ("top_p", 0.0), ("top_p", 1.1),
     ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.5), ("max_tokens", 0), ("max_tokens", -5)],
)  # fmt: skip
def test_parameters_that_cannot_be_meant(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=name):
        SamplingParams(**options)
