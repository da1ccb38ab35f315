"""Log-probabilities and ranks against a plain log-softmax."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kvist.engine.sampling.logprobs import likeliest_logprobs, token_logprobs

ROWS = arrays(np.float32, st.integers(1, 300), elements=st.floats(-300, 300, width=32) | st.sampled_from([0.0, 1.0]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(row=ROWS, data=st.data())
def test_log_probabilities_are_those_of_a_log_softmax(row: np.ndarray, data: st.DataObject) -> None:
    token, count = data.draw(st.integers(0, len(row) - 1)), data.draw(st.integers(0, 20))
    exact = row.astype(np.longdouble)
    exact = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    found = token_logprobs(row, token, count)
    assert [one.token_id for one in found] == [token, *order[:count]]
    assert [one.rank for one in found] == [order.index(one.token_id) + 1 for one in found]
    for one in found:
        assert abs(one.logprob - float(exact[one.token_id])) < 1e-12 * max(1.0, abs(float(exact[one.token_id])))
    ids, logprobs = likeliest_logprobs(row, min(count + 1, len(row)))
    assert ids.tolist() == order[: count + 1]
    again = {one.token_id: one.logprob for one in found}
    assert all(again.get(i, logprob) == logprob for i, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True))


def test_a_row_in_a_batch_has_the_log_probabilities_it_has_alone() -> None:
    """Rows of a matrix begin at any address: sums must not depend on it."""
    rows = np.random.RandomState(0).standard_normal((7, 1003)).astype(np.float32) * np.float32(4)
    for row in rows:
        assert token_logprobs(row, 5, 3) == token_logprobs(row.copy(), 5, 3)
