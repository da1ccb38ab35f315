"""Log-probabilities of tokens, from the model's own logits: no temperature, no penalties, no filters.

log p(i) = (x_i - max) - ln(sum of exp(x_j - max)), in float64, one row at a time: a pure function of the row.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kvist.engine.params import TokenLogprob
from kvist.engine.sampling.blocks import Ids, check_finite, largest
from kvist.kernels.program import Floats


def token_logprobs(logits: Floats, token: int, count: int) -> tuple[TokenLogprob, ...]:
    """Of a token, then of the `count` likeliest (it may be among them): logits (vocab,).

    A rank counts the tokens with a larger logit, and the lower ids with an equal one.
    """
    norm = _norm(logits)
    value = logits[token]
    rank = 1 + int(np.count_nonzero(logits > value)) + int(np.count_nonzero(logits[:token] == value))
    found = [TokenLogprob(token, float(value) - norm, rank)]
    if count:
        best = largest(logits, count)
        found += [TokenLogprob(int(i), float(logits[i]) - norm, place) for place, i in enumerate(best, 1)]
    return tuple(found)


def likeliest_logprobs(logits: Floats, count: int) -> tuple[Ids, npt.NDArray[np.float64]]:
    """The `count` likeliest tokens, likeliest first, of equals the lower id; and their log-probabilities."""
    norm = _norm(logits)
    ids = largest(logits, count)
    return ids, logits[ids].astype(np.float64) - norm


def _norm(logits: Floats) -> float:
    """ln(sum of exp(logit)), so that a logit minus it is a log-probability."""
    top = float(logits.max())  # NaN wherever there is one
    check_finite(top)
    return top + math.log(float(np.exp(logits.astype(np.float64) - top).sum()))
