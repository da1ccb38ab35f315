"""The compiled chooser gives the tokens and the bits of the plain one: whatever the row, its neighbours, the threads."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.errors import InternalError
from kvist.kernels.choosing import Changes, Chooser, Draw, Rating
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.cpu.chooser import CpuChooser
from kvist.kernels.reference_choosing import ReferenceChooser, exp, fma, weights_of

PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
SIZES = [1, 2, 15, 16, 17, 63, 255, 256, 1023, 1024, 1025, 3000]
SHARES = st.just(1.0) | st.floats(0.001, 1.0) | st.sampled_from([0.5, 0.9, 0.95, 0.999999, 1.0 - 2.0**-53])


def logits_of(seed: int, size: int, kind: str) -> np.ndarray:
    source = np.random.RandomState(seed)
    row = source.standard_normal(size) * {"flat": 0.01, "wide": 9.0}.get(kind, 2.0)
    if kind == "ties":
        row = np.round(row)
    if kind == "equal":
        row[:] = 3.0
    if kind == "far":
        row += source.choice([-3e38, -500, 300, 3e38])
    if kind == "holes":
        row[source.random_sample(size) < 0.5] = -np.inf
        row[source.randint(size)] = 0.0
    return row.astype(np.float32)


@st.composite
def draws(draw: st.DrawFn) -> Draw:
    size, kind = (
        draw(st.sampled_from(SIZES)),
        draw(st.sampled_from(["flat", "usual", "wide", "ties", "equal", "far", "holes"])),
    )
    logits = logits_of(draw(st.integers(0, 1 << 20)), size, kind)
    changes = draw(st.none() | changed(size, int(logits.argmax())))
    known = draw(st.booleans()) and np.isfinite(logits).all()
    return Draw(
        logits, int(logits.argmax()) if known else -1,
        draw(st.sampled_from([0.0, 1e-5, 0.3, 0.7, 1.0, 1.5, 100.0]) | st.floats(1e-5, 100.0)),
        draw(st.sampled_from([0, 0, 1, 2, 50, 1000, size, size + 1])), draw(SHARES),
        draw(st.sampled_from([0.0, 0.0, 1.0]) | st.floats(0.0, 1.0)), draw(SHARES),
        draw(st.floats(0.0, 1.0, exclude_max=True) | st.sampled_from([0.0, 1.0 - 2.0**-53])), changes,
    )  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, size: int, left: int) -> Changes:
    some = st.lists(st.integers(0, size - 1), max_size=30, unique=True).map(lambda ids: np.array(ids, np.int64))
    held, biased, seen, source = draw(some), draw(some), draw(some), np.random.RandomState(draw(st.integers(0, 99)))
    held = held[held != left]  # one that is finite
    halves = st.sampled_from([0.0, 0.7, -1.1, 2.0])
    values = [np.zeros(len(held)), source.standard_normal(len(biased)) * 5, source.randint(0, 4, len(seen))]
    return Changes(
        np.concatenate([held, biased, seen]), np.concatenate(values).astype(np.float32), len(held), len(biased),
        draw(st.sampled_from([1.0, 1.1, 0.5])), draw(halves), draw(halves),
    )  # fmt: skip


def outcome(chooser: Chooser, row: Draw) -> int | None:
    """The token, None where the row is refused (a change went beyond float32)."""
    try:
        return chooser.draw([row])[0]
    except InternalError:
        return None


@settings(max_examples=400, deadline=None, derandomize=True)
@given(rows=st.lists(draws(), min_size=1, max_size=6), data=st.data())
def test_the_tokens_are_those_of_the_plain_chooser(
    backend: CpuBackend, one_thread: CpuBackend, rows: list[Draw], data: st.DataObject
) -> None:
    """Together, in any order, with one thread and with two. Logits stay as they are."""
    whole = [row.logits for row in rows]
    before = [logits.tobytes() for logits in whole]
    found = [outcome(ReferenceChooser(), row) for row in rows]
    assert found == [outcome(CpuChooser(backend.team), row) for row in rows]
    rows, expected = (
        [one for one, token in zip(some, found, strict=True) if token is not None] for some in (rows, found)
    )
    order = data.draw(st.permutations(range(len(expected))))
    for made in (backend, one_thread):
        assert not rows or CpuChooser(made.team).draw([rows[i] for i in order]) == [expected[i] for i in order]
    assert [logits.tobytes() for logits in whole] == before


def test_rows_that_are_changed_may_share_logits_or_be_read_only(backend: CpuBackend) -> None:
    """Branches have their first token from one row; each changes it for itself."""
    whole = logits_of(3, 6000, "usual")
    before = whole.copy()
    for shared in (whole, before):  # one that may be written to, one that may not
        before.flags.writeable = shared is whole
        rows = []
        for i in range(24):
            ids = np.random.RandomState(i).permutation(3000)[:50]
            values = np.linspace(0, 9, 50, dtype=np.float32)
            part = shared[i * 40 : i * 40 + 3000] if i % 2 else shared[:3000]
            changes = Changes(ids, values, 2, 20, 1.3, 0.3, 0.2) if i % 5 else None
            rows.append(Draw(part, int(part.argmax()) if i % 3 else -1, number=i / 24, changes=changes, **PLAIN))
        expected = ReferenceChooser().draw(rows)
        assert CpuChooser(backend.team).draw(rows) == expected
        assert [CpuChooser(backend.team).draw([row])[0] for row in rows] == expected
    assert np.array_equal(whole, before)


@pytest.mark.parametrize("kind", ["flat", "usual", "wide", "ties", "equal"])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.3}, {"top_p": 0.95}, {"top_p": 0.5, "temperature": 1.5}, {"top_k": 50}, {"top_k": 1000, "top_p": 0.9},
     {"min_p": 0.05}, {"typical_p": 0.95}, {"typical_p": 0.2, "temperature": 1.5}, {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.5}],
)  # fmt: skip
def test_a_large_vocabulary(backend: CpuBackend, kind: str, options: dict[str, Any]) -> None:
    """One chooser for rows of several lengths, the longest in between: what it keeps of one shows in no other."""
    chooser = CpuChooser(backend.team)
    sizes = (5000, 49_152, 5001, 50_257, 16, 33)
    rows = [
        Draw(logits_of(i, size, kind), -1, number=i / 7, changes=None, **PLAIN | options)
        for i, size in enumerate(sizes)
    ]
    for some in (rows[:1], rows, rows[::-1]):
        assert chooser.draw(some) == ReferenceChooser().draw(some)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 20), size=st.sampled_from(SIZES), data=st.data())
def test_log_probabilities_are_those_of_the_plain_chooser(
    backend: CpuBackend, seed: int, size: int, data: st.DataObject
) -> None:
    rows = []
    for kind in ("flat", "usual", "wide", "ties", "equal", "far", "holes"):
        logits = logits_of(seed, size, kind)
        known = int(logits.argmax()) if data.draw(st.booleans()) and np.isfinite(logits).all() else -1
        rows.append(
            Rating(logits, known, data.draw(st.integers(-1, size - 1)), data.draw(st.sampled_from([0, 1, 5, 20, 300])))
        )
    assert CpuChooser(backend.team).rate(rows) == ReferenceChooser().rate(rows)


def test_a_sum_of_logits_in_rising_order_has_its_likeliest_at_the_end(backend: CpuBackend) -> None:
    """Every logit is the largest so far: each displaces one that was held."""
    row = np.arange(2000, dtype=np.float32) / 7
    for logits in (row, row[::-1].copy(), np.repeat(row, 3)):
        asked = [Rating(logits, -1, 1234, count) for count in (1, 20, 64, 2000)]
        assert CpuChooser(backend.team).rate(asked) == ReferenceChooser().rate(asked)


def test_the_plain_exp_is_near_and_its_multiply_adds_round_once() -> None:
    x = np.linspace(-87, 0, 200_001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(exp(x) - exact) < 2.5e-7 * exact).all() and exp(np.zeros(1, np.float32)) == 1
    source = np.random.RandomState(1)
    a, b, c = (
        (source.standard_normal(3000) * 10.0 ** source.uniform(-6, 6, 3000)).astype(np.float32) for _ in range(3)
    )
    c[::2] = (-(a.astype(np.float64) * b))[::2].astype(np.float32)  # what is left is the product's own rounding
    c[::3] *= np.float32(1 + 2**-12)
    for x1, y1, z1, found in zip(a, b, c, fma(a, b, c), strict=True):
        true = Fraction(float(x1)) * Fraction(float(y1)) + Fraction(float(z1))
        near = (np.nextafter(found, np.float32(-np.inf)), np.nextafter(found, np.float32(np.inf)))
        assert all(abs(Fraction(float(found)) - true) <= abs(Fraction(float(other)) - true) for other in near)


def test_weights_are_multiples_and_near() -> None:
    logits = (np.random.RandomState(2).standard_normal(20_000) * 6).astype(np.float32)
    for temperature in (0.3, 1.0, 1.5):
        weights = weights_of(logits, temperature)
        assert ((weights * 2.0**32) % 1 == 0).all() and weights.max() == 1
        exact = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
        assert (np.abs(weights - exact) <= 2.0**-33 + 2e-6 * exact * (1 + 1 / temperature)).all()
        assert weights.sum() == math.fsum(weights), "sums are exact"
