"""How sure a mean is: intervals from documents drawn again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
SHARE = 0.95


def interval(sums: npt.ArrayLike, counts: npt.ArrayLike, seed: int = 0) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean over documents: document i adds `sums[i]` over `counts[i]` positions.

    Documents are drawn with replacement, always the same ones for the same seed and count of documents: so methods are
    compared on the same draws.
    """
    totals, weights = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(totals), (RESAMPLES, len(totals)))
    means = totals[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)
