"""Queries and weights as packed numbers are multiplied with them, in plain NumPy: the definition that kernels follow.

Codes of whole numbers meet whole numbers, of one byte or two (`Packed.factor_bytes`); e4m3 codes are multiplied as the
floats they stand for, with factors as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvist.cache.codec.base import Packed
from kvist.cache.codec.packed import Bytes, scales_of

Array = NDArray[np.float64]

LARGEST_QUERY = 127.0  # of a query's number that is one byte; a second one has 7 bits more
LARGEST_WEIGHT = 255.0  # of a weight that is one byte


def asked(codec: Packed, queries: Array) -> Array:
    """Queries (..., dims) as packed keys are multiplied with them: as whole numbers of a group's step.

    By channels each page rounds what its own scales make of the query, and the middle of its codes stays exact: that is
    within a hundredth of the queries as they are, which this gives.
    """
    if codec.grid == "e4m3" or codec.channels:
        return queries
    dims = queries.shape[-1]
    parts = queries.astype(np.float32).reshape(*queries.shape[:-1], codec.groups(dims), -1)
    step = np.abs(parts).max(-1, keepdims=True) / np.float32(LARGEST_QUERY * 128 ** (codec.factor_bytes - 1))
    codes = np.rint(np.divide(parts, step, out=np.zeros_like(parts), where=step > 0))
    return np.asarray(codes.astype(np.float64) * step, np.float64).reshape(queries.shape)


def spans(codec: Packed, blocks: Bytes, head_dim: int) -> tuple[Array, Array]:
    """Of a head's packed values, as `packed.pack` gave them, the scale and the middle of the codes: (slots, dims)."""
    held = scales_of(codec, blocks, head_dim)
    wide = held.repeat(head_dim // held.shape[2], axis=2)
    middle = wide[0] * codec.middle + wide[1] if codec.offset else np.zeros_like(wide[0])
    return wide[0], middle


def weighed(codec: Packed, weights: Array, values: Array, scale: Array, middle: Array) -> Array:
    """What a tile's weights (slots,) make of its packed values (slots, dims), of which the others are the `spans`.

    A weight times its slot's scale is a whole number of 255ths of the tile's largest, and what rounding takes meets
    only what a value is away from the middle. Those of two bytes are as exact as these numbers here.
    """
    if codec.grid == "e4m3" or codec.factor_bytes == 2:
        return np.asarray(weights @ values)
    wanted = weights[:, None] * scale
    step = wanted.max(0) / LARGEST_WEIGHT
    kept = np.rint(np.divide(wanted, step, out=np.zeros_like(wanted), where=step > 0)) * step
    away = np.divide(values - middle, scale, out=np.zeros_like(values), where=scale > 0)
    return np.asarray((kept * away).sum(0) + weights @ middle)
