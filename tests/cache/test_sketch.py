"""Sketches of pages: what they keep, and how well they tell which pages matter."""

from __future__ import annotations

import numpy as np
import pytest

from kvist.cache.sketch import page_weights, rounded, sketch, sketch_bytes, turned, width

SHAPES = [(64, 16), (64, 128), (80, 16), (16, 32), (128, 64), (256, 16)]


@pytest.mark.parametrize(("dims", "slots"), SHAPES)
def test_turning_keeps_angles_and_makes_everything_longer(dims: int, slots: int) -> None:
    x = np.random.default_rng(0).normal(size=(slots, dims)).astype(np.float32)
    assert np.allclose(turned(x) @ turned(x).T, width(dims) * x @ x.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("dims", "slots"), SHAPES)
def test_the_pages_that_matter_are_found(dims: int, slots: int) -> None:
    """Of 200 pages most of the 20 with the largest attention, and nearly all of what they get."""
    random = np.random.default_rng(dims + slots)
    keys = random.normal(size=(200, slots, dims)) + 2 * random.normal(size=(200, 1, dims))
    queries = 2 * random.normal(size=(3, dims))
    kept = np.stack([sketch(page) for page in keys.astype(np.float32)])
    assert kept.shape == (200, sketch_bytes(dims, slots))
    found = page_weights(queries.astype(np.float32), kept, dims**-0.5)
    scores = np.einsum("hd,psd->hps", queries, keys) * dims**-0.5
    weights = np.exp(scores - scores.max((1, 2), keepdims=True)).sum(2)
    truth = (weights / weights.sum(1, keepdims=True)).sum(0)
    best, guessed = np.argsort(-truth)[:20], np.argsort(-found)[:20]
    assert len(np.intersect1d(best, guessed)) >= 14
    assert truth[guessed].sum() > 0.95 * truth[best].sum()
    assert np.isclose(found.sum(), 3), "every head gives one whole away"


def test_a_single_key_that_stands_out_is_seen() -> None:
    """A page's mean hides it, and the bounds of its dims are those of many pages."""
    random = np.random.default_rng(3)
    keys = random.normal(size=(100, 16, 64)).astype(np.float32)
    query = random.normal(size=(1, 64)).astype(np.float32)
    keys[37, 5] = query[0]
    kept = np.stack([sketch(page) for page in keys])
    assert int(np.argmax(page_weights(query, kept, 1.0))) == 37


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf, 3e38, 1e-40])
def test_whatever_keys_are_there_are_weights(value: float) -> None:
    random = np.random.default_rng(4)
    keys = random.normal(size=(5, 16, 64)).astype(np.float32)
    keys[1], keys[2, 3, 4] = value, value
    kept = np.stack([sketch(page) for page in keys])
    found = page_weights(random.normal(size=(2, 64)).astype(np.float32), kept, 0.125)
    assert np.isfinite(found).all() and np.isclose(found.sum(), 2)


def test_rounding_uses_all_of_a_byte() -> None:
    codes, step = rounded(np.array([-2.0, 0.0, 0.5, 1.0], np.float32))
    assert codes.tolist() == [-127, 0, 32, 64] and step == np.float32(2 / 127)
    assert rounded(np.zeros(4, np.float32))[1] == 0
