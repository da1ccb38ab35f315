"""Attention over made-up numbers: a program of embeddings, rotary store and attend, and the ways to run positions
through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvist.cache.policy import Choice
from kvist.cache.pool import PagePool
from kvist.kernels.program import (
    Attend,
    Backend,
    BatchMetadata,
    Buffer,
    Executable,
    Floats,
    Limits,
    Program,
    Rotary,
    RotaryStore,
    SequenceRows,
    Sketch,
)
from ops import fill, numbers, tiny_pool

Chunk = tuple[int, int, int]  # sequence, first position, count


@dataclass(frozen=True)
class Shape:
    """Heads of an attention layer."""

    dims: int
    kv_heads: int
    group: int

    @property
    def width(self) -> int:
        return self.kv_heads * self.group * self.dims


@dataclass
class World:
    """An executable over a pool; sequence s has `length` positions, its token at a position is s * length +
    position.
    """

    shape: Shape
    pool: PagePool
    executable: Executable
    length: int
    tables: list[npt.NDArray[np.int32]]
    queries: Floats

    def run(self, *chunks: Chunk) -> Floats:
        """One step of these chunks; rows in their order."""
        size = self.pool.layout.page_size
        tokens, positions, row_pages, sequences = [], [], [], []
        full: list[npt.NDArray[np.int32]] = []
        first = 0
        for s, start, count in chunks:
            own = np.arange(start, start + count, dtype=np.int32)
            tokens.append(s * self.length + own)
            positions.append(own)
            row_pages.append(self.tables[s][own // size])
            full.append(self.tables[s][max(1, start // size) : (start + count) // size])
            sequences.append(
                SequenceRows(first, count, start, self.tables[s][None, : (start + count - 1) // size + 1].copy())
            )
            first += count
        where = np.concatenate(positions)
        batch = BatchMetadata(
            np.concatenate(tokens).astype(np.int32), where, np.concatenate(row_pages)[None],
            np.arange(first, dtype=np.int32), sequences, where, np.concatenate(full)[None],
        )  # fmt: skip
        return self.executable.run(batch).copy()

    def whole(self, s: int = 0) -> Floats:
        """All positions of a sequence in one step."""
        return self.run((s, 0, self.length))

    def chunked(self, sizes: Sequence[int], s: int = 0) -> Floats:
        """All positions of a sequence, the sizes taken in turn."""
        rows, start, i = [], 0, 0
        while start < self.length:
            count = min(sizes[i % len(sizes)], self.length - start)
            rows.append(self.run((s, start, count)))
            start, i = start + count, i + 1
        return np.concatenate(rows)


def rotary(dims: int, positions: int) -> Rotary:
    """Angles of a whole head; its half need not be a whole vector."""
    half = dims // 2
    angles = np.arange(positions)[:, None] / 100.0 ** (np.arange(half) / half)
    return Rotary(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))


def build(
    backend: Backend, shape: Shape, length: int, *, kv: str = "f16", page_size: int = 16, sequences: int = 1, rotate: bool = True,
    fill_byte: int = 0, layers: int = 1, layer: int = 0, window: int | None = None, softcap: float | None = None,
    sinks: Floats | None = None, first: int = 0, choice: Choice | None = None,
) -> World:  # fmt: skip
    """Bind the program; every sequence gets pages of its own, scattered over a pool filled with `fill_byte`."""
    total, heads = sequences * length, shape.kv_heads * shape.group
    q, out = Buffer("q", shape.width), Buffer("out", shape.width)
    k, v = (Buffer(name, shape.kv_heads * shape.dims) for name in "kv")
    turn = rotary(shape.dims, length) if rotate else None
    back = Rotary(turn.cos, -turn.sin) if turn else None
    queries = numbers(1, total, q.width, scale=2.0)
    ops = (
        fill(q, queries),
        fill(k, numbers(2, total, k.width, scale=1.5)),
        fill(v, numbers(3, total, v.width)),
        RotaryStore(q, k, v, layer, turn),
        *([Sketch(layer)] if choice else []),
        Attend(q, out, layer, shape.dims**-0.5, window, softcap, sinks, first, back if first else None, None, choice),
    )
    program = Program(ops, len(ops), heads, shape.kv_heads, shape.dims, layers, shape.width)
    each = -(-length // page_size)
    pool = tiny_pool(page_size, shape.kv_heads, shape.dims, kv, each * sequences + 3, layers, sketch=choice is not None)
    if fill_byte:
        pool.data[:] = pool.sketches[:] = fill_byte
    ids = np.random.RandomState(9).permutation(pool.num_pages).astype(np.int32)
    tables = [ids[s * each : (s + 1) * each].copy() for s in range(sequences)]
    return World(shape, pool, backend.bind(program, [pool], Limits(total, total, sequences)), length, tables, queries)
