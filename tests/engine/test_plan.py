"""How much is drafted: what a row costs is learnt, and the best trade is found."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.engine.params import RequestMetrics, SamplingParams
from kvist.engine.sequence import Sequence
from kvist.engine.speculative.plan import FREE_ROWS, WORTH, Odds, StepCost, choose


def sequence(name: str) -> Sequence:
    return Sequence(name, [1], 1, SamplingParams(), 100, frozenset(), 0, b"", RequestMetrics(1))


def learnt(row: float, fixed: float, rows: tuple[int, ...]) -> StepCost:
    cost = StepCost()
    for _ in range(200):
        for n in rows:
            cost.note(n, fixed + row * n)
    return cost


def test_a_line_is_learnt_from_steps_that_differ() -> None:
    _, slope, _ = learnt(0.002, 0.010, (1, 9)).line()
    assert slope == pytest.approx(0.002, rel=0.1)
    _, slope, _ = learnt(0.0, 0.010, (1, 9)).line()  # rows for nothing, as on a machine that waits for memory
    assert slope < 0.0002


def test_steps_of_one_size_say_nothing_about_a_row() -> None:
    mean, slope, rows = learnt(0.002, 0.010, (4,)).line()
    assert (mean, rows) == (pytest.approx(0.018), pytest.approx(4))
    assert slope == pytest.approx(0.018 / (4 + FREE_ROWS))


def test_one_very_slow_step_does_not_stay_in_mind() -> None:
    cost = learnt(0.001, 0.010, (1, 5))
    before = cost.line()[1]
    cost.note(5, 10.0)
    assert cost.line()[1] < 2 * before
    for _ in range(200):
        cost.note(1, 0.011)
        cost.note(5, 0.015)
    assert cost.line()[1] == pytest.approx(before, rel=0.01)


def test_the_better_odds_come_first() -> None:
    good, bad = sequence("good"), sequence("bad")
    odds = {good: Odds(right=9, tried=10), bad: Odds(right=1, tried=10)}
    plan = choose(2, {good: 4, bad: 4}, odds, learnt(0.001, 0.010, (1, 9)), 0.0, room=3)
    assert plan == {good: 3}
    assert (
        choose(2, {good: 4, bad: 4}, odds, learnt(0.010, 0.0, (1, 9)), 0.0, room=100) == {}
    )  # every row its full price
    free = choose(2, {good: 4, bad: 4}, odds, learnt(0.0, 0.010, (1, 9)), 0.0, room=100)
    assert free == {good: 4, bad: 1}  # whatever may come true, where a row costs nothing; 1 in 100 is not looked at
    assert (
        choose(2, {good: 4}, odds, learnt(0.001, 0.010, (1, 9)), 1.0, room=100) == {}
    )  # a proposer that takes a second


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 3)), min_size=1, max_size=3),
    st.floats(0.0001, 0.01),
    st.floats(0.001, 0.1),
    st.integers(0, 6),
)
def test_no_other_choice_promises_more(given_: list[tuple[int, int]], row: float, fixed: float, room: int) -> None:
    """Against all choices there are; nothing is drafted unless that promises WORTH times the rate."""
    sequences = [sequence(str(i)) for i in range(len(given_))]
    odds = {s: Odds(right=right, tried=10) for s, (right, _) in zip(sequences, given_, strict=True)}
    depths = {s: depth for s, (_, depth) in zip(sequences, given_, strict=True)}
    cost, rows = learnt(row, fixed, (1, 4, 9)), len(sequences)
    mean, slope, rows_mean = cost.line()

    def rate(counts: tuple[int, ...]) -> float:
        gained = sum(odds[s].chance ** j for s, n in zip(sequences, counts, strict=True) for j in range(1, n + 1))
        return (rows + gained) / (mean + slope * (rows + sum(counts) - rows_mean))

    every = itertools.product(*(range(depths[s] + 1) for s in sequences))
    best = max(rate(counts) for counts in every if sum(counts) <= room)
    plan = choose(rows, depths, odds, cost, 0.0, room)
    none = (0,) * len(sequences)
    if plan:
        assert rate(tuple(plan.get(s, 0) for s in sequences)) == pytest.approx(best, rel=0.01)
        assert best > WORTH * rate(none)
    else:
        assert best <= WORTH * rate(none) * 1.001
