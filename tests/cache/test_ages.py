"""How long pages live, told to who observes."""

from __future__ import annotations

import pytest

from kvist.cache import ages
from kvist.cache.ages import PageAges


def test_lifetimes_and_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(ages.time, "monotonic", lambda: now[0])
    lifetimes: list[float] = []
    gaps: list[float] = []
    watch = PageAges(lifetimes.append, gaps.append)
    for at, told in [
        (1, watch.sealed), (2, watch.shared), (3, watch.left), (5, watch.left), (9, watch.shared), (10, watch.left),
        (20, watch.forgotten), (21, watch.forgotten), (22, watch.shared),
    ]:  # fmt: skip
        now[0] = at
        told(7)
    assert (lifetimes, gaps) == ([19], [6])
