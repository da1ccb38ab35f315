"""Which pages a token chooses to read, in plain NumPy: the definition (after Quest, Tang et al. 2024)."""

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

    queries: of the query heads that share it, (heads, head size). A query's score of a page is q (low + high) / 2 +
    |q| (high - low) / 4 (see `policy.topk`); four times those of all heads is what the bounds are multiplied with here.
    """
    own = len(pages) - 1
    kept = [pool.layout.codec.decode(pool.bounds(int(page), layer, head)) for page in pages[1 : own - 1]]
    both, size = 2 * queries.sum(0), np.abs(queries).sum(0)
    found = (np.array(kept, np.float64).reshape(-1, 2, queries.shape[1]) * [both - size, both + size]).sum((1, 2))
    scores = np.where(np.isnan(found), -np.inf, found)
    best = np.argsort(-scores, kind="stable")[: max(0, choice.count(own + 1) - ALWAYS)]
    return np.unique([0, *(1 + best), max(0, own - 1), own])
