"""Which pages a token chooses to read, in plain NumPy: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvist.cache.policy.base import ALWAYS
from kvist.cache.pool import PagePool, floats_of, read_of
from kvist.cache.sketch import page_weights, sketch
from kvist.kernels.program import Attend, BatchMetadata

Array = npt.NDArray[np.float64]


def keep_sketches(pools: Sequence[PagePool], layer: int, batch: BatchMetadata) -> None:
    """Sketch the keys in the pages that a step has filled."""
    (group, pool), (into, target) = floats_of(pools, layer), read_of(pools, layer)
    for page, sketched in zip(batch.full_pages[group], batch.full_pages[into], strict=True):
        for head in range(pool.layout.spec(layer).kv_heads):
            k, _ = pool.read(int(page), layer, head)
            target.sketch(int(sketched), layer, head)[:] = sketch(k)


def best_pages(
    op: Attend, queries: Array, pool: PagePool, head: int, pages: npt.NDArray[np.int32]
) -> npt.NDArray[np.intp]:
    """Indices of the pages that a token reads of one KV head, of `pages`, those up to its own.

    queries: of the query heads that share it, (heads, head size).
    """
    assert op.choice is not None
    own, most = len(pages) - 1, op.choice.count(len(pages))
    weights = np.empty(0)
    if own > ALWAYS - 1:
        sketches = np.stack([pool.sketch(int(page), op.layer, head) for page in pages[1 : own - 1]])
        weights = page_weights(queries.astype(np.float32), sketches, op.scale)
    best = np.argsort(-weights, kind="stable")[: max(0, most - ALWAYS)]
    return np.unique([0, *(1 + best), max(0, own - 1), own])
