"""Scores against their definitions, number by number in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvist.cache.policy.evict import Evict
from kvist.cache.score import SCORES, Prompt, Seen, score
from kvist.errors import UnknownNameError

HEADS, GROUP, COUNT, DIMS, HALF = 2, 3, 40, 16, 6
random = np.random.default_rng(3)
KEYS, VALUES = random.standard_normal((2, HEADS, COUNT, DIMS), np.float32)
ATTENTION = random.random((HEADS, COUNT), np.float32)


def test_knorm_keeps_short_keys() -> None:
    found = score("knorm").importance(Seen(KEYS, VALUES, 0.25))
    for head in range(HEADS):
        for i in range(COUNT):
            assert found[head, i] == pytest.approx(-sum(float(x) ** 2 for x in KEYS[head, i]), rel=1e-12)


@pytest.mark.parametrize("name", ["tova", "h2o"])
def test_attention_is_taken_as_it_is(name: str) -> None:
    assert np.array_equal(score(name).importance(Seen(KEYS, VALUES, 0.25, ATTENTION)), ATTENTION)


def around(own: list[float], i: int, reach: int) -> list[float]:
    """Entries from i - reach to i + reach, 0 beyond the ends."""
    return [own[j] if 0 <= j < COUNT else 0.0 for j in range(i - reach, i + reach + 1)]


def test_snapkv_takes_the_mean_of_neighbours() -> None:
    found = score("snapkv").importance(Seen(KEYS, VALUES, 0.25, ATTENTION))
    for head in range(HEADS):
        for i in range(COUNT):
            near = around(ATTENTION[head].tolist(), i, 2)
            assert found[head, i] == pytest.approx(sum(near) / 5, rel=1e-6)


def test_kvzip_weighs_attention_by_values() -> None:
    found = score("kvzip").importance(Seen(KEYS, VALUES, 0.25, ATTENTION))
    for head in range(HEADS):
        for i in range(COUNT):
            length = math.sqrt(sum(float(x) ** 2 for x in VALUES[head, i]))
            assert found[head, i] == pytest.approx(float(ATTENTION[head, i]) * length, rel=1e-12)


def test_rows_that_repeat_count_the_root_of_a_surprise() -> None:
    """A row counts what came after it at first; those of the instruction and the last of the prompt count nothing."""
    surprisals = np.arange(2999, dtype=np.float64) ** 2
    first, second = score("kvzip").passes(Prompt(range(3000), (9001, 9002), surprisals))
    assert first.counts is not None and second.counts is not None
    assert first.counts.tolist() == [0, 0, *range(2048)]
    assert second.counts.tolist() == [0, 0, *range(2048, 2999), 0]


@pytest.mark.parametrize("turned", [True, False])
def test_expected_attention(turned: bool) -> None:
    mean = random.standard_normal((HEADS * GROUP, DIMS))
    samples = random.standard_normal((HEADS * GROUP, 30, DIMS))
    covariance = samples.transpose(0, 2, 1) @ samples / 30
    turn = random.random((2, HALF)) if turned else None
    found = score("expected").importance(Seen(KEYS, VALUES, 0.25, None, mean, covariance, turn))
    for head in range(HEADS):
        shares = np.zeros(COUNT)
        for h in range(head * GROUP, (head + 1) * GROUP):
            scores = []
            for k in KEYS[head].astype(np.float64):
                # k.(R m) = (R' k).m, and so for the covariance
                back = k.copy()
                if turn is not None:
                    for i in range(HALF):
                        back[i] = turn[0, i] * k[i] + turn[1, i] * k[i + HALF]
                        back[i + HALF] = turn[0, i] * k[i + HALF] - turn[1, i] * k[i]
                scores.append(0.25 * back @ mean[h] + 0.25**2 * (back @ covariance[h] @ back) / 2)
            weights = np.exp(scores) / np.exp(scores).sum()
            shares += weights / GROUP
        expected = (shares + 0.01) * np.linalg.norm(VALUES[head].astype(np.float64), axis=1)
        assert found[head] == pytest.approx(expected, rel=1e-9)


def test_what_is_run() -> None:
    prompt, instruction = list(range(5000)), [9001, 9002]
    told = Prompt(prompt, instruction, np.ones(4999))
    found = {name: [(list(p.tokens), p.start) for p in score(name).passes(told)] for name in SCORES}
    assert found["knorm"] == []
    assert found["tova"] == [([4999], 4999)]
    assert found["snapkv"] == [(prompt[-32:], 4968)]
    assert found["h2o"] == [(prompt, 0)]
    assert found["expected"] == [(prompt[4:], 4)]
    chunks = [prompt[:2048], prompt[2048:4096], prompt[4096:]]
    assert found["kvzip"] == [([*instruction, *chunk], 5000) for chunk in chunks]
    for name in SCORES:
        reached = [start + len(tokens) - 5000 for tokens, start in found[name]]
        assert max(reached, default=0) <= score(name).beyond(5000)


def test_an_unknown_score_is_named_with_those_that_are_known() -> None:
    with pytest.raises(UnknownNameError, match=r"score .*kvzap.*did you mean kvzip"):
        score("kvzap")


@pytest.mark.parametrize(
    ("positions", "kept"), [(1, 1), (132, 132), (256, 256), (257, 256), (512, 256), (513, 384), (8000, 4096)]
)
def test_how_many_are_kept(positions: int, kept: int) -> None:
    assert Evict(0.5, "knorm").kept(positions) == kept
