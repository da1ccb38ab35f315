"""Distances between predictions: by hand on three words, and what must be exactly 0."""

from __future__ import annotations

import numpy as np
import pytest

from kvist.divergence import distances

LN2 = float(np.log(2))


def logits(*probabilities: float) -> np.ndarray:
    return np.log(np.array([probabilities], np.float32)) + np.float32(3)


def test_three_words_by_hand() -> None:
    found = distances(logits(0.25, 0.5, 0.25), logits(0.5, 0.25, 0.25), [0])
    # 1/2 ln(2) + 1/4 ln(1/2) + 1/4 ln(1)
    assert found.divergence[0] == pytest.approx(0.25 * LN2, rel=1e-6)
    assert found.own[0] == pytest.approx(-2 * LN2, rel=1e-6)
    assert found.reference[0] == pytest.approx(-LN2, rel=1e-6)
    assert found.margin[0] == pytest.approx(LN2, rel=1e-6)
    assert not found.same[0]


def test_the_divergence_is_from_the_reference_and_not_to_it() -> None:
    one, other = logits(0.9, 0.05, 0.05), logits(0.4, 0.3, 0.3)
    there, back = distances(one, other, [0]).divergence[0], distances(other, one, [0]).divergence[0]
    assert there == pytest.approx(0.4 * np.log(0.4 / 0.9) + 0.6 * np.log(0.3 / 0.05), rel=1e-6)
    assert back == pytest.approx(0.9 * np.log(0.9 / 0.4) + 0.1 * np.log(0.05 / 0.3), rel=1e-6)


def test_equal_logits_are_exactly_no_distance_apart() -> None:
    rows = np.random.default_rng(1).normal(size=(7, 1000)).astype(np.float32) * 5
    found = distances(rows, rows.copy(), range(7))
    assert not found.divergence.any() and found.same.all()
    assert np.array_equal(found.own, found.reference) and (found.margin >= 0).all()


def test_one_changed_bit_is_noticed() -> None:
    rows = np.random.default_rng(2).normal(size=(1, 1000)).astype(np.float32)
    other = rows.copy()
    other.view(np.uint32)[0, 17] ^= 1 << 12
    found = distances(other, rows, [17])
    assert found.divergence[0] > 0 and found.own[0] != found.reference[0]


def test_large_logits_do_not_overflow_and_a_tie_has_no_margin() -> None:
    rows = np.array([[3e4, 3e4, -3e4]], np.float32)
    found = distances(rows, rows, [1])
    assert found.own[0] == pytest.approx(-LN2) and found.margin[0] == 0
