"""Mean and covariance of queries: of all rows, with the same bits however they come."""

from __future__ import annotations

import numpy as np
import pytest

from kvist.engine.moments import Moments


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_moments_are_those_of_all_rows(count: int) -> None:
    rows = np.random.default_rng(1).standard_normal((count, 3, 8), np.float32)
    found = []
    for sizes in ([count], [1], [5, 70, 3]):
        moments, at, turn = Moments(rows), 0, 0
        while at < count:
            moments.add(rows[at : at + sizes[turn % len(sizes)]])
            at, turn = at + sizes[turn % len(sizes)], turn + 1
        found.append(moments.result())
    wide = rows.astype(np.float64)
    assert found[0][0] == pytest.approx(wide.mean(0), abs=1e-12)
    for head in range(3):
        assert found[0][1][head] == pytest.approx(np.cov(wide[:, head].T, bias=True).reshape(8, 8), abs=1e-12)
    for mean, covariance in found[1:]:
        assert mean.tobytes() == found[0][0].tobytes() and covariance.tobytes() == found[0][1].tobytes()
