"""From logits to a token: a pure function of (logits, parameters, seed, position).

No batch, no history, no order of requests.

So the same request gives the same tokens alone, in a batch, and after a preemption.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvist.engine.params import SamplingParams
from kvist.errors import InternalError
from kvist.kernels.program import Floats

_MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for one position of one seed: the SplitMix64 finaliser (Steele et al.

    2014), applied twice, as 53 bits.
    """
    state = _mix(_mix(seed & _MASK) + (position * 0x9E3779B97F4A7C15 & _MASK))
    return (state >> 11) * 2.0**-53


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def sample(logits: Floats, params: SamplingParams, seed: int, position: int, likeliest: int = -1) -> int:
    """The next token for logits (vocab,).

    Greedy: the largest, the first of equals. Otherwise a draw from the kept tokens. likeliest: the index of the largest
    of finite logits, if it is known (a kernel finds it sooner), else -1.
    """
    best = likeliest if likeliest >= 0 else int(logits.argmax())
    if not np.isfinite(logits[best]):  # argmax finds a NaN wherever it is
        raise InternalError(
            "a logit is NaN or infinite: the numbers left float32's range; try a float32 cache and weights"
        )
    if params.temperature == 0.0 or params.top_k == 1:
        return best
    kept, weights = candidates(logits, params)
    sums = np.cumsum(weights)
    index = int(np.searchsorted(sums, uniform(seed, position) * sums[-1], side="right"))
    return int(kept[min(index, len(kept) - 1)])


def candidates(logits: Floats, params: SamplingParams) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Token ids that may be drawn, and their (not normalised) probabilities.

    Temperature first; then top_k, top_p and min_p, each over what the one before it left.
    """
    with np.errstate(over="ignore"):  # a tiny temperature: all but the likeliest are infinitely unlikely
        scaled = (logits.astype(np.float64) - float(logits.max())) / params.temperature
    weights = np.exp(scaled)
    ids = np.arange(len(logits))
    if 0 < params.top_k < len(ids):
        # the k largest, equals by lower id: a partition finds the k-th value, the rest is exact
        smallest = np.partition(weights, len(weights) - params.top_k)[len(weights) - params.top_k]
        above, equal = np.flatnonzero(weights > smallest), np.flatnonzero(weights == smallest)
        ids = np.sort(np.concatenate([above, equal[: params.top_k - len(above)]]))
    if params.top_p < 1.0:
        ids = _nucleus(ids, weights, params.top_p)
    if params.min_p > 0.0:
        ids = ids[weights[ids] >= params.min_p]  # the likeliest token's weight is 1
    return ids, weights[ids]


def _nucleus(ids: npt.NDArray[np.intp], weights: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.intp]:
    """The likeliest ids that together reach top_p of the total.

    Tokens so unlikely that all of them together cannot matter are never sorted.
    """
    total = weights[ids].sum()
    possible = ids[weights[ids] * len(ids) >= (1.0 - top_p) * total]
    order = possible[np.argsort(-weights[possible], kind="stable")]
    count = int(np.searchsorted(np.cumsum(weights[order]), top_p * total)) + 1
    return np.sort(order[:count])
