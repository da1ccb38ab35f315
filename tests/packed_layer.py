"""One packed layer, run by any backend: what tests of its kernels share."""

from __future__ import annotations

import numpy as np

from kvist.cache.codec import Packed, any_codec, codec
from kvist.cache.codec.packed import signs
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.pool import PagePool
from kvist.kernels.program import (
    Attend,
    Backend,
    BatchMetadata,
    Buffer,
    Floats,
    Limits,
    Mix,
    Op,
    Program,
    RotaryStore,
    Seal,
    SequenceRows,
)
from ops import fill, numbers

HEADS, KV_HEADS = 6, 2


class World:
    """One packed layer: pools of exact and sealed pages, every position's q, k and v from fixed numbers."""

    def __init__(self, k: str, v: str, page_size: int, dims: int, exact: str = "f16", length: int = 300) -> None:
        self.dims, self.page_size, self.length = dims, page_size, length
        spec = LayerSpec(KV_HEADS, dims, any_codec(k), any_codec(v))
        pages = -(-length // page_size)
        self.sealed = PagePool(PageLayout((spec,), page_size, codec(exact)), pages)
        self.exact = PagePool(PageLayout((spec.exact,), page_size, codec(exact)), pages)
        for pool in (self.sealed, self.exact):
            pool.data[:] = 0xFF  # what nobody wrote is no number
        turned = [isinstance(c, Packed) and c.turns(dims) for c in (spec.k, spec.v)]
        self.mix = Mix(signs(dims), turned[0], turned[1]) if any(turned) else None
        self.q, self.k, self.v = (numbers(1 + i, length, n * dims) for i, n in enumerate((HEADS, KV_HEADS, KV_HEADS)))
        self.k = self.k + 2 * numbers(4, 1, KV_HEADS * dims)  # channels have offsets
        self.scale = 0.2

    def look_at_first(self, score: float) -> None:
        """Let every query look at position 0 above all: its score, times the scale, becomes larger by so much."""
        self.q, self.k = self.q.copy(), self.k.copy()
        self.q[:, :: self.dims] = 3
        self.k[0, :: self.dims] += score / (3 * self.scale)

    def program(self, window: int | None = None) -> Program:
        q, k, v = Buffer("q", HEADS * self.dims), Buffer("k", KV_HEADS * self.dims), Buffer("v", KV_HEADS * self.dims)
        out = Buffer("out", HEADS * self.dims)
        ops: list[Op] = [
            fill(q, self.q),
            fill(k, self.k),
            fill(v, self.v),
            RotaryStore(q, k, v, 0, None, self.mix),
            Seal(0),
            Attend(q, out, 0, self.scale, window, mix=self.mix),
        ]  # fmt: skip
        return Program(tuple(ops), len(ops), HEADS, KV_HEADS, self.dims, 1, out.width)

    def batch(self, start: int, end: int) -> BatchMetadata:
        """Exact pages lie in the order of positions, sealed ones the other way round."""
        positions, total = np.arange(start, end, dtype=np.int32), self.sealed.num_pages
        places = np.arange(-(-end // self.page_size))
        pages = np.ascontiguousarray(np.stack([total - 1 - places, places]).astype(np.int32))
        full = pages[:, max(1, start // self.page_size) : end // self.page_size]
        return BatchMetadata(
            positions, positions, np.ascontiguousarray(pages[:, positions // self.page_size]), positions - start,
            [SequenceRows(0, end - start, start, pages)], positions, np.ascontiguousarray(full),
        )  # fmt: skip

    def run(self, backend: Backend, chunk: int, window: int | None = None) -> Floats:
        """All positions, so many in a step."""
        executable = backend.bind(self.program(window), [self.sealed, self.exact], Limits(self.length, self.length, 1))
        ends = range(chunk, self.length + chunk, chunk)
        return np.concatenate([
            executable.run(self.batch(end - chunk, min(end, self.length))).copy() for end in ends
        ])  # fmt: skip
