"""Key norms (Devoto et al. 2024): entries whose keys are short get the most attention, so those are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvist.cache.score.base import Array, Pass, Prompt, Seen, Watch


@dataclass(frozen=True, slots=True)
class KeyNorm:
    """See the module."""

    watch: ClassVar[Watch] = "nothing"
    ahead: ClassVar[int] = 0
    surprised: ClassVar[bool] = False

    def beyond(self, positions: int) -> int:
        """See `Score`."""
        return 0

    def passes(self, prompt: Prompt) -> Iterator[Pass]:
        """See `Score`."""
        return iter(())

    def importance(self, seen: Seen) -> Array:
        """See `Score`."""
        squares: Array = np.square(seen.keys.astype(np.float64)).sum(-1)
        return -squares


SCORE = KeyNorm()
