"""Log-probabilities and ranks against a plain log-softmax."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kvist.errors import InternalError
from kvist.kernels.choosing import Chooser, Rating
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.cpu.chooser import CpuChooser
from kvist.kernels.reference_choosing import ReferenceChooser

ROWS = arrays(np.float32, st.integers(1, 700), elements=st.floats(-300, 300, width=32) | st.sampled_from([0.0, 1.0]))


@pytest.fixture(scope="module", params=["compiled", "reference"])
def chooser(request: pytest.FixtureRequest, backend: CpuBackend) -> Chooser:
    return CpuChooser(backend.team) if request.param == "compiled" else ReferenceChooser()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(row=ROWS, data=st.data())
def test_log_probabilities_are_those_of_a_log_softmax(chooser: Chooser, row: np.ndarray, data: st.DataObject) -> None:
    token, count = data.draw(st.integers(0, len(row) - 1)), data.draw(st.integers(0, 40))
    exact = row.astype(np.longdouble)
    exact = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    likeliest = data.draw(st.sampled_from([-1, order[0]]))
    (found,) = chooser.rate([Rating(row, likeliest, token, count)])
    assert found.ids == order[:count]
    assert found.rank == order.index(token) + 1
    for one, logprob in zip([token, *found.ids], [found.logprob, *found.logprobs], strict=True):
        assert abs(logprob - float(exact[one])) < 2e-7 + 1e-14 * abs(float(exact[one]))
        assert one != token or logprob == found.logprob


def test_rows_together_are_each_alone(chooser: Chooser) -> None:
    """Rows of a matrix begin at any address, and ask for different numbers of tokens: results must not depend on it."""
    rows = np.random.RandomState(0).standard_normal((7, 1003)).astype(np.float32) * np.float32(4)
    asked = [Rating(row, -1, 5 * i - 1, 3 * i) for i, row in enumerate(rows)]
    together = chooser.rate(asked)
    assert together == [chooser.rate([one._replace(logits=one.logits.copy())])[0] for one in asked]
    assert [len(one.ids) for one in together] == [0, 3, 6, 9, 12, 15, 18]
    assert together[0].rank == 0 and all(one.rank > 0 for one in together[1:])


def test_minus_infinity_is_never_likely(chooser: Chooser) -> None:
    row = np.array([-np.inf, 1.0, -np.inf, 1.0] * 30, np.float32)
    (found,) = chooser.rate([Rating(row, -1, 0, 61)])
    assert (found.logprob, found.rank, found.ids[60]) == (-np.inf, 61, 0)
    assert found.ids[:3] == [1, 3, 5] and found.logprobs[59] == pytest.approx(-np.log(60), abs=2e-7)


@pytest.mark.parametrize("bad", [[0.0, np.nan], [np.nan, 0.0], [0.0, np.inf], [-np.inf, -np.inf], [np.nan] * 300])
def test_logits_that_are_no_numbers_are_an_error(chooser: Chooser, bad: list[float]) -> None:
    fine = Rating(np.zeros(300, np.float32), -1, 0, 3)
    with pytest.raises(InternalError, match="NaN or infinite"):
        chooser.rate([fine, Rating(np.array(bad, np.float32), -1, 0, 1), fine])
