"""Expected attention (Devoto et al. 2025): what queries to come would give an entry, if they are like those there were.

Queries before rotation are taken as normally distributed, with the mean m and covariance C of the prompt's; R is the
mean rotation of the next 512 positions. An entry's expected share is
softmax(scale k.Rm + scale^2 k.RCR'k / 2), averaged over the heads of the group; its score (share + 0.01) |v|.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvist.cache.score.base import Array, Pass, Prompt, Seen, Watch, lengths

SINKS = 4
"""Queries at the beginning that are not like others."""

AHEAD = 512
FLOOR = 0.01


@dataclass(frozen=True, slots=True)
class Expected:
    """See the module."""

    watch: ClassVar[Watch] = "queries"
    ahead: ClassVar[int] = AHEAD
    surprised: ClassVar[bool] = False

    def beyond(self, positions: int) -> int:
        """See `Score`."""
        return 0

    def passes(self, prompt: Prompt) -> Iterator[Pass]:
        """See `Score`."""
        yield Pass(prompt.tokens[SINKS:], SINKS)

    def importance(self, seen: Seen) -> Array:
        """See `Score`."""
        assert seen.mean is not None and seen.covariance is not None
        keys = seen.keys.astype(np.float64)
        kv_heads, positions, dims = keys.shape
        rotation = mean_rotation(seen.turn, dims)
        mean = (seen.mean @ rotation.T).reshape(kv_heads, -1, dims)
        covariance = (rotation @ seen.covariance @ rotation.T).reshape(kv_heads, -1, dims, dims)
        shares = np.zeros((kv_heads, positions))
        for head, k in enumerate(keys):
            for m, c in zip(mean[head], covariance[head], strict=True):
                exponents = seen.scale * (k @ m) + seen.scale**2 / 2 * ((k @ c) * k).sum(-1)
                weights = np.exp(exponents - exponents.max())
                shares[head] += weights / weights.sum()
        scores: Array = (shares / mean.shape[1] + FLOOR) * lengths(seen.values)
        return scores


def mean_rotation(turn: Array | None, dims: int) -> Array:
    """The matrix, (dims, dims), that turns the pairs (i, i + half) by mean cosines and sines, (2, half)."""
    rotation = np.eye(dims)
    if turn is not None:
        half = turn.shape[1]
        first, second = np.arange(half), np.arange(half, 2 * half)
        rotation[first, first] = rotation[second, second] = turn[0]
        rotation[first, second], rotation[second, first] = -turn[1], turn[1]
    return rotation


SCORE = Expected()
