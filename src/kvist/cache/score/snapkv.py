"""SnapKV (Li et al. 2024): the attention of the last 32 queries, averaged over neighbours.

It depends on how the prompt ends: where a question stands there, what answers it is kept, and little else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvist.cache.score.base import Array, Attended, Seen

ROWS = 32
NEIGHBOURS = 2
"""On either side: what stands beside an entry that is looked at is kept with it."""


@dataclass(frozen=True, slots=True)
class SnapKV(Attended):
    """See the module."""

    def importance(self, seen: Seen) -> Array:
        """See `Score`."""
        assert seen.attention is not None
        wide = np.pad(seen.attention.astype(np.float64), ((0, 0), (NEIGHBOURS, NEIGHBOURS)))
        scores: Array = np.lib.stride_tricks.sliding_window_view(wide, 2 * NEIGHBOURS + 1, axis=1).mean(-1)
        return scores


SCORE = SnapKV(ROWS)
