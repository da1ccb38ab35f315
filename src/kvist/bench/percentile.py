"""Percentiles that were measured."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(samples: Sequence[float], percent: int) -> float:
    """The smallest sample that `percent` (1 to 100) of them do not exceed; nothing is interpolated.

    Raises IndexError where there are none.
    """
    return sorted(samples)[-(-percent * len(samples) // 100) - 1]
