"""What a token is, given a row of logits: the words for it, and the definition that every chooser keeps to.

* The token without temperature is the largest logit, the first of equals.
* A token's **weight** is exp((logit - largest) / temperature): each operation in float32, by the kernels' own `exp`,
  the result rounded to a multiple of 2**-32. So the likeliest weighs 1, what is 2**33 times less likely weighs
  nothing, and *sums of weights are exact in float64*, in whatever order they are added.
* A token is **likelier** that weighs more, and of equals the one with the lower id.
* `top_k` keeps the likeliest k, `top_p` the fewest likeliest whose sum is that share of the sum, `min_p` those that
  weigh at least that; each looks at what the one before it left.
* `typical_p` (Meister et al. 2023) keeps those whose information is **nearest** to its mean, the entropy: the fewest
  whose sum is that share of the sum. Nearness is 64 - abs(x - mean) in float32, where x = (logit - largest) /
  temperature, which is the information but for sign and a constant. The mean is sum of x * weight / sum of weights;
  the products are float32, and added in float64, by id, in sixteen lanes, then by one tree.
* The drawn token is the first, by id, whose weight together with all before it exceeds number x sum.

The norm of log-probabilities is largest + ln(sum of exp(logit - largest)): float32's exp, summed like the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kvist.errors import InternalError

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Changes(NamedTuple):
    """What changes a few numbers of a row; each step is rounded to float32.

    ids: int64, those of three steps one after the other, none twice in one. The first `held` become minus infinity, the
    next `biased` have their `values` (float32, one for each id) added. Of the rest, the values are times that they were
    chosen: their logits are divided by `repetition` where positive, else multiplied; then frequency x times is
    subtracted, and presence where times is not 0.
    """

    ids: Ids
    values: Floats
    held: int
    biased: int
    repetition: float
    presence: float
    frequency: float


class Draw(NamedTuple):
    """All that a token depends on.

    logits: (vocab,), consecutive in memory. likeliest: the index of the largest if it is known and all are finite, else
    -1. temperature: 0 takes the largest. top_k: 0 for all. top_p, typical_p: 1 for all. number: in [0, 1).
    """

    logits: Floats
    likeliest: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    number: float
    changes: Changes | None


class Rating(NamedTuple):
    """Log-probabilities that are asked for: of a row's token (-1: of none), and of as many of the likeliest as wanted.

    logits, likeliest: as in `Draw`.
    """

    logits: Floats
    likeliest: int
    token: int
    wanted: int


class Rated(NamedTuple):
    """Log-probabilities of a row: of a token, with its place among all, and of the likeliest, the likeliest first.

    A rank, from 1, counts the larger logits and the equal ones of lower ids. Of no token: 0.
    """

    logprob: float
    rank: int
    ids: list[int]
    logprobs: list[float]


class Chooser(Protocol):
    """Chooses tokens from rows of logits, each as if it were alone. Logits stay as they are.

    Both raise InternalError where a logit, as changed, is NaN or above all numbers, or none is finite.
    """

    def draw(self, rows: Sequence[Draw]) -> list[int]:
        """A token for each row."""

    def rate(self, rows: Sequence[Rating]) -> list[Rated]:
        """Log-probabilities of each row."""


def check_found(likeliest: int) -> None:
    """Refuse a row whose largest logit could not be found."""
    if likeliest < 0:
        raise InternalError(
            "a logit is NaN or infinite: the numbers left float32's range; try a float32 cache and weights"
        )
