"""Which pages a token chooses to read, in plain NumPy: the definition (Quest, Tang et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvist.cache.policy.base import ALWAYS, Choice
from kvist.cache.pool import PagePool, floats_of
from kvist.kernels.program import BatchMetadata

Array = npt.NDArray[np.float64]


def keep_bounds(pools: Sequence[PagePool], layer: int, batch: BatchMetadata) -> None:
    """Keep the smallest and the largest number of each dim of the keys in the pages that a step has filled."""
    group, pool = floats_of(pools, layer)
    for page in batch.full_pages[group]:
        for head in range(pool.layout.spec(layer).kv_heads):
            k, _ = pool.read(int(page), layer, head)
            pool.bounds(int(page), layer, head)[:] = pool.layout.codec.encode(np.stack([k.min(0), k.max(0)]))


def best_pages(
    choice: Choice, queries: Array, pool: PagePool, layer: int, head: int, pages: npt.NDArray[np.int32]
) -> npt.NDArray[np.intp]:
    """Indices of the pages that a token reads of one KV head, of `pages`, those up to its own.

    queries: of the query heads that share it, (heads, head size).
    """
    own = len(pages) - 1
    kept = [pool.layout.codec.decode(pool.bounds(int(page), layer, head)) for page in pages[1 : own - 1]]
    low, high = np.array(kept, np.float64).reshape(-1, 1, 2, queries.shape[1]).transpose(2, 0, 1, 3)
    each = (np.minimum(queries, 0) * low + np.maximum(queries, 0) * high).sum(-1)
    scores = np.where(np.isnan(each), -np.inf, each).max(-1)
    best = np.argsort(-scores, kind="stable")[: max(0, choice.count(own + 1) - ALWAYS)]
    return np.unique([0, *(1 + best), max(0, own - 1), own])
