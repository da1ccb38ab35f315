"""How far predictions of the next token are from those of a reference, position by position.

In float64, a row at a time: a row of logits stays in the processor's cache. Sums are NumPy's own, not a BLAS's, whose
threads would wait for the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distances:
    """Of n positions; every array has the shape (n,), log-probabilities and divergences are in nats.

    own, reference: log-probability of the token that came. divergence: Kullback-Leibler divergence of the
    predictions from the reference's, over the whole vocabulary. same: whether the likeliest token is. margin: how far
    the reference's likeliest token is ahead of its second.
    """

    own: Row
    reference: Row
    divergence: Row
    same: npt.NDArray[np.bool_]
    margin: Row


def distances(logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], tokens: Sequence[int]) -> Distances:
    """Compare logits with a reference's, both (n, vocab), where `tokens` (n) came next.

    Equal rows are exactly 0 apart.
    """
    found, same = np.empty((4, len(tokens))), np.empty(len(tokens), np.bool_)
    own, theirs, weights = (np.empty(reference.shape[1]) for _ in range(3))
    for i, token in enumerate(tokens):
        own_sum = _shifted(logits[i], own, weights)
        sum_ = _shifted(reference[i], theirs, weights)
        found[:2, i] = own[token] - np.log(own_sum), theirs[token] - np.log(sum_)
        np.subtract(theirs, own, out=own)
        found[2, i] = np.einsum("i,i", weights, own) / sum_ - (np.log(sum_) - np.log(own_sum))
        best = int(reference[i].argmax())
        same[i] = int(logits[i].argmax()) == best
        theirs[best] = -np.inf  # what remains is below the best one, which is at 0
        found[3, i] = -theirs.max()
    return Distances(found[0], found[1], found[2], same, found[3])


def log_probabilities(logits: npt.NDArray[np.float32], tokens: Sequence[int]) -> Row:
    """Of the `tokens` (n) that came next, by logits (n, vocab), in nats."""
    found, shifted, weights = np.empty(len(tokens)), np.empty(logits.shape[1]), np.empty(logits.shape[1])
    for i, token in enumerate(tokens):
        total = _shifted(logits[i], shifted, weights)
        found[i] = shifted[token] - np.log(total)
    return found


def _shifted(logits: npt.NDArray[np.float32], shifted: Row, weights: Row) -> float:
    """Fill `shifted` with the logits less their maximum and `weights` with its exponentials; the sum of these."""
    np.subtract(logits, logits.max(), out=shifted, dtype=np.float64)
    np.exp(shifted, out=weights)
    return float(weights.sum())
