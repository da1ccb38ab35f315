"""Queries and weights as packed numbers are multiplied with them, in plain NumPy: the definition that kernels follow.

Codes of whole numbers meet whole numbers, of a byte. Neighbours' products, the first two of four and the last two, are
added up in pairs, and sums of pairs in 16 bits, as far as these go: beside few bits over a whole group of dims, or a
tile of slots. So factors are as fine as a byte allows, or as 16 bits do where what is added up would not fit in them.
e4m3 codes are multiplied as the floats they stand for, with factors as they are.

Whatever the codes, a tile that cannot matter is left out (`counting`): its values are not read.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kvist.cache.codec.base import CELL, Packed
from kvist.cache.codec.packed import STEEPEST, Bytes, scales_of

Array = NDArray[np.float64]

LARGEST_QUERY = 127  # of a query's numbers, which have signs
LARGEST_WEIGHT = 255  # of V's weights, which have none
LARGEST_SUM = (1 << 15) - 1
TILE = 64  # slots whose weights are rounded together
SPLIT = 512  # positions, at multiples of that many, over which the largest score so far is known
FAR = 2  # of so many powers of two is what all that is left out may weigh: a quarter of the largest weight


def pairs_together(codec: Packed, *, keys: bool) -> int:
    """How many pairs of products are added up in 16 bits: 1, 2 or 4; 0: all."""
    if codec.grid == "even" and codec.bits <= 5:
        return 0
    if codec.bits == 8 and not keys:  # few weights of a tile are large, but queries' numbers are much alike
        return 2
    most = 2 * _largest(keys) * _most(codec, keys)
    return max([1, *(n for n in (2, 4) if n * most <= LARGEST_SUM)])


def sum_limit(codec: Packed, numbers: int, *, keys: bool) -> int:
    """What factors may amount to in a sum of 16 bits before they are rounded, which adds a half to each at most.

    numbers: of a group, or a tile; those of a half of each four meet where all do, else it limits those of
    `pairs_limited`.
    """
    together = pairs_together(codec, keys=keys)
    return LARGEST_SUM // _most(codec, keys) - (pairs_limited(codec, keys=keys) if together else numbers // 4)


def pairs_limited(codec: Packed, *, keys: bool) -> int:
    """Of how many pairs factors are limited, 1 or 2, where not all meet: more of them fit by themselves."""
    return 2 if codec.bits == 8 and not keys else 1


def _largest(keys: bool) -> int:
    return LARGEST_QUERY if keys else LARGEST_WEIGHT


def _most(codec: Packed, keys: bool) -> int:
    """The largest number, or the one furthest below 0, that codes are multiplied as."""
    if codec.grid == "bell":
        return 2 * STEEPEST if keys else STEEPEST
    return (0 if keys else codec.below) or (1 << codec.bits) - 1


def step_of(codec: Packed, size: Array, *, keys: bool) -> Array:
    """What numbers are rounded to multiples of, (..., 1). size: (..., numbers) of a group, or a tile, without signs."""
    step, limit = size.max(-1, keepdims=True) / _largest(keys), sum_limit(codec, size.shape[-1], keys=keys)
    if pairs_together(codec, keys=keys) == 0:
        sums = size.reshape(*size.shape[:-1], -1, 2, 2).sum((-3, -1))
    else:
        if not keys:  # a tile's four blocks at once: as if their largest met
            size = size.reshape(*size.shape[:-1], -1, CELL).max(-2)
        pairs = size.reshape(*size.shape[:-1], -1, 2).sum(-1)
        step_by = pairs_limited(codec, keys=keys)
        sums = pairs.reshape(*pairs.shape[:-1], -1, step_by, 2).sum(-2).reshape(*pairs.shape[:-1], -1)
    return np.asarray(np.maximum(step, sums.max(-1, keepdims=True) / limit))


def asked(codec: Packed, queries: Array) -> Array:
    """Queries (..., dims) as packed keys are multiplied with them: as whole numbers of a group's step.

    By channels each page rounds what its own scales make of the query, and the middle of its codes stays exact: that is
    within a hundredth of the queries as they are, which this gives.
    """
    if codec.grid == "e4m3" or codec.channels:
        return queries
    dims = queries.shape[-1]
    parts = queries.reshape(*queries.shape[:-1], codec.groups(dims), -1)
    return _rounded(parts, step_of(codec, np.abs(parts), keys=True)).reshape(queries.shape)


def counting(
    scores: Array, slots: NDArray[np.intp], end: int, page_size: int, first: float = -math.inf,
    before: float = -math.inf,
) -> NDArray[np.bool_]:  # fmt: skip
    """Which of a row's scores count, where pages are packed: those of a tile that has one near the largest so far.

    slots: where the row's scores lie, ascending, up to `end`. first: the largest score of the first block, which is
    known in every split; before: what is known besides in the first one.

    A tile is left out where each of its weights is less than 1 / (4 * 2**bits) of the largest, `bits` those of `end`:
    together, whatever the text, they weigh less than a quarter of that one. Most often the first position has it. Tiles
    with slots of the first page or of the row's own, which are read as they are, count.
    """
    far, own = (FAR + int(end).bit_length()) * math.log(2), (end - 1) // page_size * page_size
    found, tiles, split, top = np.ones(len(scores), bool), slots // TILE, -1, before
    for tile in np.unique(tiles):
        if tile * TILE // SPLIT != split:
            top, split = max(first, before if split < 0 else -math.inf), tile * TILE // SPLIT
        largest, packed = float(scores[tiles == tile].max()), page_size <= tile * TILE and (tile + 1) * TILE <= own
        found[tiles == tile] = largest >= top - far or not packed
        top = max(top, largest)
    return found


def spans(codec: Packed, blocks: Bytes, head_dim: int) -> tuple[Array, Array]:
    """Of a head's packed values, as `packed.pack` gave them, the scale and the middle of the codes: (slots, dims)."""
    held = scales_of(codec, blocks, head_dim)
    wide = held.repeat(head_dim // held.shape[2], axis=2)
    middle = wide[0] * codec.middle + wide[1] if codec.offset else np.zeros_like(wide[0])
    return wide[0], middle


def weighed(codec: Packed, weights: Array, values: Array, scale: Array, middle: Array) -> Array:
    """What a tile's weights (slots,) make of its packed values (slots, dims), of which the others are the `spans`.

    A weight times its slot's scale is rounded to a multiple of the tile's step, and what rounding takes meets only what
    a value is away from the middle.
    """
    if codec.grid == "e4m3":
        return np.asarray(weights @ values)
    wanted = (weights[:, None] * scale).T
    kept = _rounded(wanted, step_of(codec, wanted, keys=False)).T
    away = np.divide(values - middle, scale, out=np.zeros_like(values), where=scale > 0)
    return np.asarray((kept * away).sum(0) + weights @ middle)


def _rounded(numbers: Array, step: Array) -> Array:
    return np.asarray(np.rint(np.divide(numbers, step, out=np.zeros_like(numbers), where=step > 0)) * step)
