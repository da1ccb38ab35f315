"""`choosing` in plain NumPy, written for reading: the truth, bit for bit.

Only the `exp` takes some care: it is the compiled one's sequence of operations, whose multiply-adds round once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvist.kernels.choosing import Changes, Draw, Floats, Ids, Rated, Rating, check_found

Doubles = npt.NDArray[np.float64]
POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LEAST = 2.0**-32


class ReferenceChooser:
    """See `choosing.Chooser`."""

    def draw(self, rows: Sequence[Draw]) -> list[int]:
        """See `choosing.Chooser`."""
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return [_draw(row) for row in rows]

    def rate(self, rows: Sequence[Rating]) -> list[Rated]:
        """See `choosing.Chooser`."""
        with np.errstate(over="ignore", under="ignore"):
            return [_rate(row) for row in rows]


def _draw(row: Draw) -> int:
    logits = row.logits if row.changes is None else changed(row.logits, row.changes)
    best = likeliest(logits)
    check_found(best)
    if row.temperature == 0.0:
        return best
    ids, weights = filtered(logits, row)
    total = float(weights.sum())
    target = min(row.number * total, total - LEAST / 2)
    return int(ids[weights.cumsum().searchsorted(target, side="right")])


def changed(logits: Floats, changes: Changes) -> Floats:
    """The altered row."""
    ids, values, held, biased, repetition, presence, frequency = changes
    out, seen, factor = logits.copy(), ids[held + biased :], np.float32(repetition)
    out[ids[:held]] = -np.inf
    out[ids[held : held + biased]] += values[held : held + biased]
    x, times = out[seen], values[held + biased :]
    x = np.where(x > 0, x / factor, x * factor) - np.float32(frequency) * times
    out[seen] = np.where(times > 0, x - np.float32(presence), x)
    return out


def likeliest(logits: Floats) -> int:
    """The index of the largest, the first of equals; -1 if one is NaN or above all numbers, or none is finite."""
    best = int(logits.argmax())  # which finds a NaN wherever it is
    return best if math.isfinite(float(logits[best])) else -1


def scaled(logits: Floats, temperature: float) -> Floats:
    """(logit - largest) / temperature, float32."""
    x: Floats = (logits - logits.max()) * np.float32(1.0 / temperature)
    return x


def weights_of(logits: Floats, temperature: float) -> Doubles:
    """Weights of all tokens: multiples of 2**-32."""
    e, coarse = exp(scaled(logits, temperature)), np.float32(2.0**-9)
    return np.where(e < coarse, (e + coarse) - coarse, e).astype(np.float64)


def filtered(logits: Floats, row: Draw) -> tuple[Ids, Doubles]:
    """The tokens that may be drawn, by id, and their weights."""
    weights = weights_of(logits, row.temperature)
    ids = np.arange(len(weights))
    if row.top_k > 0:
        ids = _first(ids, weights, (weights > 0).astype(np.float64), row.top_k)
    if row.top_p < 1.0:
        ids = _first(ids, weights, weights, row.top_p * float(weights[ids].sum()))
    if row.min_p > 0.0:
        ids = ids[weights[ids] >= np.float32(row.min_p)]
    if row.typical_p < 1.0:
        x, total = np.where(weights > 0, scaled(logits, row.temperature), np.float32(0)), float(weights[ids].sum())
        mean = np.float32(lane_sum((x * weights.astype(np.float32)).astype(np.float64)[ids]) / total)
        ids = _first(ids, np.float32(64) - np.abs(x - mean), weights, row.typical_p * total)
    return ids, weights[ids]


def _first(ids: Ids, keys: npt.NDArray[np.floating], measures: Doubles, target: float) -> Ids:
    """The fewest of `ids` with the largest keys, of equals the lower ids, that together measure the target."""
    possible = ids[measures[ids] > 0]
    order = possible[np.argsort(-keys[possible], kind="stable")]
    return np.sort(order[: int(measures[order].cumsum().searchsorted(target)) + 1])


def _rate(row: Rating) -> Rated:
    logits, token = row.logits, row.token
    best = likeliest(logits)
    check_found(best)
    e = np.where(logits == -np.inf, np.float32(0), exp(logits - logits[best]))
    order: Ids = np.argsort(-logits, kind="stable")  # -0.0 and 0.0 are equal
    rank = int((order == token).argmax()) + 1 if token >= 0 else 0
    norm = float(logits[best]) + math.log(lane_sum(e.astype(np.float64)))
    own = float(logits[token]) - norm if token >= 0 else 0.0
    ids = order[: row.wanted].tolist()
    return Rated(own, rank, ids, [float(logits[i]) - norm for i in ids])


def lane_sum(numbers: Doubles) -> float:
    """The sum in sixteen lanes, in ascending order, then by one tree."""
    lanes = np.zeros(-(-len(numbers) // 16) * 16)
    lanes[: len(numbers)] = numbers
    sums = np.add.accumulate(lanes.reshape(-1, 16), axis=0)[-1]
    for width in (8, 4, 2, 1):
        sums = sums[:width] + sums[width:]
    return float(sums[0])


def exp(x: Floats) -> Floats:
    """`cpu.math.exp`, operation by operation."""
    x = np.clip(x, np.float32(-87.3), np.float32(88.3))
    n = np.rint(x * np.float32(1.4426950408889634))
    r = fma(n, np.float32(2.12194440054690583e-4), fma(n, np.float32(-0.693359375), x))
    p = np.full_like(x, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        p = fma(p, r, np.float32(coefficient))
    p = fma(p, r * r, r) + np.float32(1)
    e: Floats = p * np.ldexp(np.float32(1), n.astype(np.int32))
    return e


def fma(a: Floats, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    """a * b + c, rounded once: in float64 the product is exact, and the sum is rounded to odd before it is to float32.

    (Boldo and Melquiond 2008.)
    """
    product, wide = a.astype(np.float64) * b, np.float64(c)
    total = product + wide
    part = total - product
    error = (product - (total - part)) + (wide - part)  # what the sum lost, exactly (Knuth)
    even = total.view(np.int64) & 1 == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return odd.astype(np.float32)
