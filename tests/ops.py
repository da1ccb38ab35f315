"""Small programs over hand-made buffers: an Embed with a float32 table puts any numbers into a buffer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from kvist.cache.codec import codec
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.pool import PagePool
from kvist.kernels.program import Backend, BatchMetadata, Buffer, Embed, Floats, Limits, Op, Program, Weight


@cache
def numbers(seed: int, *shape: int, scale: float = 1.0) -> Floats:
    """Normal numbers; read-only, since they are kept."""
    made = (scale * np.random.RandomState(seed).standard_normal(shape)).astype(np.float32)
    made.flags.writeable = False
    return made


def weight(data: Floats, dtype: str = "f32") -> Weight:
    """A matrix rounded to `dtype`."""
    return Weight(np.ascontiguousarray(codec(dtype).encode(data)), dtype)  # type: ignore[arg-type]


def fill(buffer: Buffer, values: Floats) -> Embed:
    """The op that puts row `token` of `values` into the buffer."""
    return Embed(weight(values), buffer)


def same_bits(a: Floats, b: Floats) -> bool:
    """Equal bit for bit, signs of zero and NaN payloads included."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def tiny_pool(
    page_size: int = 16,
    kv_heads: int = 1,
    dims: int = 16,
    kv: str = "f32",
    pages: int = 1,
    layers: int = 1,
    sketch: bool = False,
) -> PagePool:
    return PagePool(PageLayout((LayerSpec(kv_heads, dims, sketch=sketch),) * layers, page_size, codec(kv)), pages)


def row_batch(tokens: Sequence[int] | npt.NDArray[np.int32], sampled: Sequence[int] | None = None) -> BatchMetadata:
    """Rows for ops that know no pages; positions are the row numbers."""
    ids = np.asarray(tokens, np.int32)
    rows = np.arange(len(ids), dtype=np.int32)
    wanted = rows if sampled is None else np.asarray(sampled, np.int32)
    return BatchMetadata(ids, rows, np.zeros_like(ids)[None], wanted, [], rows)


def run_ops(
    backend: Backend,
    ops: Sequence[Op],
    batch: BatchMetadata,
    width: int,
    head: int = 0,
    sampled_limit: int | None = None,
) -> Floats:
    """Run ops that need no pages; what the last one writes, its first `width` columns."""
    program = Program(tuple(ops), head, 1, 1, 16, 1, width)
    limits = Limits(len(batch.tokens), sampled_limit or max(1, len(batch.sampled_rows)), 1)
    return backend.bind(program, [tiny_pool()], limits).run(batch)[:, :width].copy()
