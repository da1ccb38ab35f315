"""Sampling: candidates against a sort that anyone can read, draws against the distribution, and each draw a function
of its inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kvist.engine.params import SamplingParams
from kvist.engine.sampler import Row, Sampler
from kvist.engine.sampling.draws import branch_seed, uniform
from kvist.errors import InternalError
from kvist.kernels.choosing import Chooser, Draw
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.cpu.chooser import CpuChooser
from kvist.kernels.reference_choosing import ReferenceChooser, filtered, weights_of

LOGITS = arrays(np.float32, st.integers(1, 400), elements=st.floats(-30, 30, width=32))
TIED = arrays(np.float32, st.integers(1, 400), elements=st.sampled_from([-3.0, -0.0, 0.0, 0.5, 2.0]))  # many equals
FAR = st.builds(lambda row, by: row + np.float32(by), LOGITS, st.sampled_from([-500.0, 300.0]))  # largest subtracted
ANY_LOGITS = LOGITS | TIED | FAR
quick = settings(max_examples=300, deadline=None, derandomize=True)


@pytest.fixture(scope="module", params=["compiled", "plain"])
def sampler(request: pytest.FixtureRequest, backend: CpuBackend) -> Sampler:
    """Of either kind: `tests/kernels/test_choosing.py` shows that they never differ."""
    chooser: Chooser = CpuChooser(backend.team) if request.param == "compiled" else ReferenceChooser()
    return Sampler(chooser)


def drawn(
    sampler: Sampler, logits: np.ndarray, params: SamplingParams, seed: int, position: int, likeliest: int = -1
) -> int:
    return sampler.choose([Row(logits, likeliest, params, seed, position)])[0]


def kept(logits: np.ndarray, params: SamplingParams) -> list[int]:
    """The tokens that may be drawn, by id."""
    p = params
    ids, weights = filtered(
        logits, Draw(logits, -1, p.temperature, max(p.top_k, 0), p.top_p, p.min_p, p.typical_p, 0.0, None)
    )
    assert np.array_equal(weights, weights_of(logits, p.temperature)[ids])
    return [int(i) for i, weight in zip(ids, weights, strict=True) if weight > 0]


def naive(logits: np.ndarray, params: SamplingParams) -> tuple[list[int], bool]:
    """The kept ids by sorting everything; and whether typical_p was decided by less than rounding."""
    weights = weights_of(logits, params.temperature)
    order = [i for i in sorted(range(len(logits)), key=lambda i: (-weights[i], i)) if weights[i] > 0]
    close = False
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1.0:
        order = prefix(order, weights, params.top_p * math.fsum(weights[order]))
    if params.min_p > 0.0:
        order = [i for i in order if weights[i] >= np.float32(params.min_p)]
    if params.typical_p < 1.0:
        total = math.fsum(weights[order])
        chances = {i: weights[i] / total for i in order}
        entropy = -math.fsum(p * math.log(p) for p in chances.values())
        distance = {i: abs(-math.log(p) - entropy) for i, p in chances.items()}
        by_distance = sorted(order, key=lambda i: (distance[i], i))
        found = prefix(by_distance, weights, params.typical_p * total)
        at = len(found)
        order, close = found, at < len(order) and distance[by_distance[at]] - distance[by_distance[at - 1]] < 1e-4
    return sorted(order), close


def prefix(order: Sequence[int], weights: np.ndarray, wanted: float) -> list[int]:
    """The first so many that reach a sum."""
    return list(order[: int(np.count_nonzero(np.cumsum(weights[list(order)]) < wanted)) + 1])


@quick
@given(logits=ANY_LOGITS, seed=st.integers(0, 2**70), position=st.integers(0, 1 << 20), data=st.data())
def test_greedy_is_the_first_of_the_largest(
    sampler: Sampler, logits: np.ndarray, seed: int, position: int, data: st.DataObject
) -> None:
    best = next(i for i in range(len(logits)) if logits[i] == logits.max())
    top_p, min_p = data.draw(st.floats(0.01, 1)), data.draw(st.floats(0, 1))
    assert drawn(sampler, logits, SamplingParams(temperature=0.0, top_p=top_p, min_p=min_p), seed, position) == best
    assert drawn(sampler, logits, SamplingParams(temperature=3.0, top_k=1), seed, position) == best
    assert drawn(sampler, logits, SamplingParams(temperature=0.9e-5), seed, position) == best


SHARES = st.one_of(st.just(1.0), st.floats(0.001, 1.0))


@quick
@given(
    logits=ANY_LOGITS, temperature=st.floats(0.05, 5), top_k=st.integers(-1, 70), top_p=SHARES,
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)), typical_p=SHARES,
)  # fmt: skip
def test_candidates_are_those_of_a_plain_sort(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p)
    expected, close = naive(logits, params)
    assume(not close)
    assert kept(logits, params) == expected


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize(
    "options",
    [{"top_p": p} for p in (0.1, 0.5, 0.95, 0.999, 0.9999)]
    + [{"top_k": k} for k in (1, 2, 20, 50, 63, 64, 500, 4999, 5000)]
    + [{"min_p": 0.05}, {"typical_p": 0.9}, {"typical_p": 0.2}, {"top_p": 0.9, "min_p": 0.02}, {"top_k": 40, "typical_p": 0.5}],
)  # fmt: skip
def test_candidates_of_a_large_vocabulary_are_those_of_a_plain_sort(spread: float, options: dict[str, Any]) -> None:
    """For flat and for peaked rows."""
    logits = (np.random.RandomState(5).standard_normal(5000) * spread).astype(np.float32)
    params = SamplingParams(temperature=0.8, **options)
    expected, _ = naive(logits, params)  # none of these cases is as close as rounding
    assert kept(logits, params) == expected


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"top_k": 2}, [3, 1]),
        ({"top_k": 3}, [3, 1, 0]),  # of the equals 0 and 4 the first
        ({"top_k": 5, "min_p": 1e-9}, [3, 1, 0, 4, 2]),
        ({"top_k": 99, "min_p": 1e-9}, [3, 1, 0, 4, 2]),
        ({"top_p": 0.3}, [3]),
        ({"top_p": 0.41}, [3, 1]),
        ({"top_p": 0.75}, [3, 1, 0]),
        ({"top_p": 0.95}, [3, 1, 0, 4]),
        ({"min_p": 0.5}, [3, 1]),
        ({"min_p": 0.4}, [3, 1, 0, 4]),
        ({"min_p": 1.0}, [3]),
        ({"top_k": 3, "top_p": 0.8}, [3, 1]),  # top_p counts what top_k left: 0.4 + 0.3 of 0.86
        ({"top_k": 4, "min_p": 0.75}, [3, 1]),
        ({"typical_p": 0.25}, [1]),  # of 1.06: entropy 1.42; information 0.98 (3), 1.26 (1), 1.89 (0, 4), 3.28 (2)
        ({"typical_p": 0.5}, [3, 1]),
        ({"typical_p": 0.7}, [3, 1, 0]),
        ({"typical_p": 0.9}, [3, 1, 0, 4]),
        ({"top_k": 2, "typical_p": 0.5}, [3]),
    ],
)
def test_candidates_of_known_probabilities(params: dict[str, Any], expected: list[int]) -> None:
    probabilities = np.array([0.16, 0.3, 0.04, 0.4 - 1e-6, 0.16])
    logits = np.log(probabilities).astype(np.float32)
    assert kept(logits, SamplingParams(**params)) == sorted(expected)


@quick
@given(
    logits=ANY_LOGITS, temperature=st.floats(0.05, 5), top_k=st.integers(0, 70), top_p=SHARES, min_p=st.floats(0, 1),
    seed=st.integers(-(2**65), 2**65), position=st.integers(0, 1 << 31),
)  # fmt: skip
def test_a_draw_is_one_of_the_candidates_and_repeats(
    sampler: Sampler,
    logits: np.ndarray,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    before = logits.copy()
    token = drawn(sampler, logits, params, seed, position)
    assert not params.filters or token in kept(logits, params) or params.greedy
    assert type(token) is int
    assert np.array_equal(logits, before), "the logits are the runner's"
    assert drawn(sampler, np.array(logits), params, seed, position) == token
    assert drawn(sampler, logits, params, seed, position, likeliest=int(logits.argmax())) == token


@quick
@given(data=st.data(), size=st.sampled_from([1, 63, 64, 65, 300, 700]))
def test_rows_together_are_each_alone(sampler: Sampler, data: st.DataObject, size: int) -> None:
    """A batch gives each row the token it has by itself: rows of every kind side by side, in any order."""
    seed = data.draw(st.integers(0, 1 << 30))
    source = np.random.RandomState(seed)
    rows = []
    for i in range(12):
        logits = (source.standard_normal(size) * source.choice([0.1, 1, 10]) + source.choice([0, 200])).astype(
            np.float32
        )
        params = SamplingParams(
            temperature=float(source.choice([0.0, 0.3, 1.0, 2.0])), top_k=int(source.choice([0, 5])),
            top_p=float(source.choice([1.0, 0.9])), min_p=float(source.choice([0.0, 0.1])),
            typical_p=float(source.choice([1.0, 0.8])),
        )  # fmt: skip
        rows.append(Row(logits, int(source.choice([-1, int(logits.argmax())])), params, i, 7))
    alone = [sampler.choose([row])[0] for row in rows]
    order = data.draw(st.permutations(range(12)))
    assert sampler.choose([rows[i] for i in order]) == [alone[i] for i in order]


@quick
@given(logits=ANY_LOGITS, temperature=st.floats(0.05, 50), number=st.floats(0, 1, exclude_max=True))
def test_a_draw_is_where_the_sum_of_weights_exceeds_the_number(
    logits: np.ndarray, temperature: float, number: float
) -> None:
    """In the order of ids, by exact fractions; at the very end of the number's 53 bits the product is rounded."""
    weights = [Fraction(float(weight)) for weight in weights_of(logits, temperature)]
    total, sums = sum(weights), list(itertools.accumulate(weights))
    (token,) = ReferenceChooser().draw([Draw(logits, -1, temperature, 0, 1.0, 0.0, 1.0, number, None)])
    assert weights[token] > 0
    slack = Fraction(1, 1 << 52)
    assert sums[token] - weights[token] <= (Fraction(number) + slack) * total and Fraction(number) * total < sums[token]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-12, 1e-3, 100.0])
def test_extreme_temperatures(sampler: Sampler, temperature: float) -> None:
    logits = np.array([1.0, 3.0, -50.0, 2.999], np.float32)
    params = SamplingParams(temperature=temperature)
    found = {drawn(sampler, logits, params, seed, 0) for seed in range(300)}
    assert found == ({1} if temperature < 1e-3 else {1, 3} if temperature == 1e-3 else {0, 1, 2, 3})


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}, {"typical_p": 0.9}])
def test_extreme_logits(sampler: Sampler, options: dict[str, Any]) -> None:
    for temperature in (1e-5, 1.0, 100.0):
        params = SamplingParams(temperature=temperature, **options)
        large = np.array([-3e38, 3e38, 2.9e38, -3e38] + [0.0] * 70, np.float32)
        assert {drawn(sampler, large, params, seed, 0) for seed in range(20)} == {1}
        low = np.full(80, -3e38, np.float32)
        low[[7, 70]] = -2e38
        assert {drawn(sampler, low, params, seed, 0) for seed in range(40)} == {7, 70}


def test_logits_that_are_minus_infinity_are_never_drawn(sampler: Sampler) -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0] * 40, np.float32)
    for options in ({}, {"top_p": 0.999999}, {"top_k": 150}, {"min_p": 1e-12}, {"typical_p": 0.999999}):
        assert {drawn(sampler, logits, SamplingParams(**options), seed, 1) % 2 for seed in range(100)} == {1}
    assert drawn(sampler, logits, SamplingParams(temperature=0.0), 0, 0) == 1


@pytest.mark.parametrize("bad", [[0.0, np.nan], [np.nan, 0.0], [0.0, np.inf], [-np.inf, -np.inf], [np.nan] * 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(sampler: Sampler, bad: list[float], temperature: float) -> None:
    with pytest.raises(InternalError, match="NaN or infinite"):
        drawn(sampler, np.array(bad, np.float32), SamplingParams(temperature=temperature), 0, 0)


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
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"typical_p": 0.8},
        {"temperature": 2.0, "top_p": 0.9},
    ],
)
def test_draws_follow_the_distribution(sampler: Sampler, params: dict[str, Any]) -> None:
    logits = np.random.RandomState(3).standard_normal(12).astype(np.float32) * np.float32(1.5)
    follow(sampler, logits, SamplingParams(**params))


@pytest.mark.parametrize("params", [{}, {"temperature": 2.0}, {"top_p": 0.9}, {"top_k": 30}, {"typical_p": 0.7}])
def test_draws_from_many_follow_the_distribution(sampler: Sampler, params: dict[str, Any]) -> None:
    """More than a few vectors of them."""
    logits = np.random.RandomState(4).standard_normal(64 * 3 + 11).astype(np.float32) * np.float32(2.5)
    follow(sampler, logits, SamplingParams(**params))


def follow(sampler: Sampler, logits: np.ndarray, params: SamplingParams) -> None:
    ids, _ = naive(logits, params)
    exact = np.exp(logits.astype(np.float64)[ids] / params.temperature)
    exact /= exact.sum()
    count = 8000
    rows = [Row(logits, -1, params, seed=42 + i % 4, position=i) for i in range(count)]
    found = np.array(sampler.choose(rows))
    often = count * exact >= 5  # rarer ones are counted together
    counts = np.array([(found == i).sum() for i in ids])
    assert counts.sum() == count and len(ids) > 1
    counts, exact = (np.append(a[often], a[~often].sum()) for a in (counts, exact))
    counts, exact = counts[exact > 0], exact[exact > 0]
    freedom = len(counts) - 1
    assert chi_square(counts, count * exact) < freedom + 4.5 * (2 * freedom) ** 0.5


def test_seeds_and_positions_give_different_draws(sampler: Sampler) -> None:
    logits = np.zeros(50, np.float32)
    texts = {
        tuple(drawn(sampler, logits, SamplingParams(), seed, position) for position in range(20)) for seed in range(50)
    }
    assert len(texts) == 50


def test_branches_have_seeds_of_their_own() -> None:
    assert [branch_seed(seed, 0) for seed in (0, 7, -3, 2**70)] == [0, 7, -3, 2**70]
    seeds = {branch_seed(seed, branch) for seed in range(100) for branch in range(64)}
    assert len(seeds) == 6400
    numbers = np.array([uniform(branch_seed(7, branch), 3) for branch in range(4000)])
    assert chi_square(np.bincount((numbers * 16).astype(int), minlength=16), np.full(16, 250)) < 45
