"""The entries of a sequence, layer by layer: read as arrays, and those that are kept copied to other pages.

An entry is K and V of one position in one layer and KV head. Copies are of the stored numbers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvist.cache.layout import BLOCK
from kvist.cache.pool import PagePool

Stored = NDArray[Any]


def read_entries(pool: PagePool, pages: Sequence[int], layer: int, count: int) -> tuple[Stored, Stored]:
    """K and V of the first `count` positions of a layer, float32 (KV heads, count, head size)."""
    decode = pool.layout.codec.decode
    k, v = _stored(pool, pages, layer)
    return decode(k[:, :count]), decode(v[:, :count])


def copy_entries(
    pool: PagePool, source: Sequence[int], target: Sequence[int], layer: int, kept: NDArray[np.intp]
) -> None:
    """Copy the positions `kept`, (KV heads, n), of a layer from the pages `source` to the first n slots of `target`.

    They must fill the pages of `target`.
    """
    layout, spec = pool.layout, pool.layout.spec(layer)
    heads, dims, blocks = spec.kv_heads, spec.head_dim, layout.page_size // BLOCK
    k, v = (np.take_along_axis(stored, kept[:, :, None], 1) for stored in _stored(pool, source, layer))
    made = np.empty((len(target), heads, blocks, 2, BLOCK * dims), layout.codec.dtype)
    k = k.reshape(heads, len(target), blocks, BLOCK, dims)
    made[:, :, :, 0] = k.transpose(1, 0, 2, 4, 3).reshape(len(target), heads, blocks, -1)
    made[:, :, :, 1] = v.reshape(heads, len(target), blocks, -1).transpose(1, 0, 2, 3)
    extents, within = np.divmod(target, layout.extent_pages)
    pool.heads(layer)[extents, :, within] = made.reshape(len(target), heads, -1).view(np.uint8)


def _stored(pool: PagePool, pages: Sequence[int], layer: int) -> tuple[Stored, Stored]:
    """K and V of all slots of the pages, as they are stored, (KV heads, slots, head size)."""
    layout, spec = pool.layout, pool.layout.spec(layer)
    heads, dims, blocks = spec.kv_heads, spec.head_dim, layout.page_size // BLOCK
    extents, within = np.divmod(pages, layout.extent_pages)
    part = pool.heads(layer)[extents, :, within].view(layout.codec.dtype)
    parts = part.reshape(len(pages), heads, blocks, 2, BLOCK * dims)
    k = parts[:, :, :, 0].reshape(len(pages), heads, blocks, dims, BLOCK).transpose(1, 0, 2, 4, 3)
    v = parts[:, :, :, 1].reshape(len(pages), heads, blocks, BLOCK, dims).transpose(1, 0, 2, 3, 4)
    return k.reshape(heads, -1, dims), v.reshape(heads, -1, dims)
