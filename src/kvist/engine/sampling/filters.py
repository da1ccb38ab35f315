"""Which tokens may be drawn, and how likely each is.

A token's *weight* is exp(logit / temperature) as float32, computed for each token by itself. Where the largest
logit / temperature is not within +-MILD, the largest logit is subtracted first, so that no weight is infinite and the
largest is not 0. Likelier means a larger weight; equal weights stand in the order of their logits where few tokens are
looked at, else of their ids. Sums of weights are taken in one fixed order: within blocks in float32, of blocks and of
kept tokens in float64.

`top_k`, `top_p` and `min_p` each keep the first so many of that order, and `typical_p` (Meister et al. 2023) those
whose information is nearest to the entropy of what is left.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kvist.engine.params import SamplingParams
from kvist.engine.sampling.blocks import Ids, at_least, block_slice, block_sums, body, largest, ranked
from kvist.kernels.program import Floats

Weights = npt.NDArray[np.float64]
MILD = 40.0  # exp(40) of every token of a million is finite together, and exp(-40) is far from vanishing
NEXT_LEVEL = 32.0  # the next look for a nucleus goes down to tokens so many times less likely


def weights_of(logits: Floats, top: float, temperature: float, out: Floats) -> Floats:
    """Weights of logits in `out`; top: the largest logit of the whole row."""
    if abs(top / temperature) > MILD:
        np.subtract(logits, np.float32(top), out=out)
        np.multiply(out, np.float32(1.0 / temperature), out=out)
        return np.exp(out, out=out)
    if temperature == 1.0:
        return np.exp(logits, out=out)
    np.multiply(logits, np.float32(1.0 / temperature), out=out)
    return np.exp(out, out=out)


def draw(logits: Floats, top: float, params: SamplingParams, number: float, scratch: Floats) -> int:
    """The token that a number in [0, 1) picks from logits (vocab,). scratch: room for as many weights."""
    ids, weights = candidates(logits, top, params, scratch)
    return int(ids[_place(weights.cumsum(), number)])


def candidates(logits: Floats, top: float, params: SamplingParams, scratch: Floats) -> tuple[Ids, Weights]:
    """Tokens that may be drawn, the likeliest first, and their (not normalised) weights; at least one.

    Only for params that have filters; top: the largest logit.
    """
    total: float | None = None  # of the weights that top_p counts, where not all of them are at hand
    if params.top_k > 0:
        ids = largest(logits, params.top_k)
        kept = _some_weights(logits, ids, top, params.temperature)
    elif params.top_p < 1.0:
        whole = weights_of(logits, top, params.temperature, scratch)
        ids, kept, total = _likeliest_part(whole, params.top_p)
    elif params.min_p > 0.0:
        floor = top + params.temperature * math.log(params.min_p)
        near = at_least(logits, floor - 1e-4 * (1.0 + abs(floor)), body(logits).max(axis=0))  # a few too many
        ids = ranked(logits, near)
        kept = _some_weights(logits, ids, top, params.temperature)
    else:
        whole = weights_of(logits, top, params.temperature, scratch)
        ids = ranked(logits, _typical_part(logits, top, whole, params))
        return ids, whole[ids].astype(np.float64)
    count = int(np.count_nonzero(kept))
    if params.top_p < 1.0:
        sums = kept.cumsum()
        count = min(count, int(sums.searchsorted(params.top_p * (sums[-1] if total is None else total))) + 1)
    if params.min_p > 0.0:
        count = min(count, int(np.count_nonzero(kept >= params.min_p * kept[0])))
    ids, kept = ids[:count], kept[:count]
    if params.typical_p < 1.0:
        typical = _typical(kept, params.typical_p)
        ids, kept = ids[typical], kept[typical]
    return ids, kept


def draw_from_all(weights: Floats, sums: Weights, number: float) -> int:
    """Draw from all tokens: first a block, then one of its tokens. sums: of blocks, each added to those before it."""
    target = _target(sums, number)
    block = int(sums.searchsorted(target, side="right"))
    below = float(sums[block - 1]) if block else 0.0
    within = (target - below) / (float(sums[block]) - below)
    where = block_slice(block, len(weights))
    token: int = where.start + where.step * _place(weights[where].astype(np.float64).cumsum(), within)
    return token


def _some_weights(logits: Floats, ids: Ids, top: float, temperature: float) -> Weights:
    """Weights of some tokens."""
    return weights_of(logits[ids], top, temperature, np.empty(len(ids), np.float32)).astype(np.float64)


def _target(sums: Weights, number: float) -> float:
    """The number as a place from 0 to the last sum, always below it."""
    total = float(sums[-1])
    return min(number * total, math.nextafter(total, 0.0))


def _place(sums: Weights, number: float) -> int:
    """Which of the summands a number in [0, 1) falls on; never one that is 0."""
    return int(sums.searchsorted(_target(sums, number), side="right"))


def _likeliest_part(weights: Floats, share: float) -> tuple[Ids, Weights, float]:
    """The likeliest tokens that together have more than `share` of the total, their weights, and the total.

    Somewhat more than needed, but far from all: ever less likely tokens are looked at until there are enough.
    """
    total = float(block_sums(weights).astype(np.float64).sum())
    level, least = (1.0 - share) / 1000.0, (1.0 - share) / (4.0 * len(weights))
    while level > least:
        ids = (weights >= level * total).nonzero()[0]
        found = weights[ids]
        if float(found.sum()) >= share * total * (1.0 + 1e-5):
            return *_sorted(ids, found), total
        level /= NEXT_LEVEL
    return *_sorted(np.arange(len(weights)), weights), total


def _sorted(ids: Ids, weights: Floats) -> tuple[Ids, Weights]:
    """Tokens and their weights by weight, the largest first; of equals the lower id."""
    keys: Ids = -weights.view(np.int32).astype(np.int64)  # bits of numbers from 0 are ordered as the numbers are
    keys <<= 32
    keys |= ids
    keys.sort()
    ordered: Ids = keys & 0xFFFFFFFF
    return ordered, (-(keys >> 32)).astype(np.int32).view(np.float32).astype(np.float64)


def _typical(weights: Weights, share: float) -> Ids:
    """Which of the weights are typical, in their order: the nearest to the entropy that together have this share."""
    chances = weights / weights.sum()
    information = -np.log(chances)
    distance = np.abs(information - (chances * information).sum())
    order = np.argsort(distance, kind="stable")
    count = int(np.searchsorted(np.cumsum(chances[order]), share)) + 1
    return np.sort(order[:count])


def _typical_part(logits: Floats, top: float, weights: Floats, params: SamplingParams) -> Ids:
    """The typical tokens of a whole vocabulary, in no order: only those near enough to the entropy are sorted.

    A token's information is a constant - (logit - top) / temperature, and the entropy its mean, so their distance is
    that of (logit - top) / temperature from its mean: no logarithm is needed.
    """
    total = float(block_sums(weights).astype(np.float64).sum())
    possible = weights.nonzero()[0]  # what is infinitely unlikely has no distance
    scaled = (logits[possible] - np.float32(top)) * np.float32(1.0 / params.temperature)
    chances = weights[possible]
    mean = float(block_sums(chances * scaled).astype(np.float64).sum()) / total
    distance = np.abs(scaled - np.float32(mean))
    wanted, reach = params.typical_p * total, 1.0
    while True:
        near = (distance <= reach).nonzero()[0]
        if len(near) == len(possible) or float(chances[near].sum()) >= wanted * (1.0 + 1e-5):
            break
        reach *= 2.0
    keys = distance[near].view(np.int32).astype(np.int64) << 32 | near  # of equal distances the lower id
    keys.sort()
    order: Ids = keys & 0xFFFFFFFF
    count = int(chances[order].astype(np.float64).cumsum().searchsorted(wanted)) + 1
    return possible[order[:count]]
