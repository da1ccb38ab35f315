"""What the reference does with pages: store, pack, read, look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvist.cache.codec.base import Packed
from kvist.cache.codec.factors import TILE, asked, counting, weighed
from kvist.cache.layout import BLOCK
from kvist.cache.pool import PagePool, floats_of, read_of
from kvist.cache.table import GONE
from kvist.kernels.program import Attend, BatchMetadata, Mix, Observe, Program, RotaryStore, SequenceRows
from kvist.kernels.reference_choice import best_pages

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

EXACT = -1  # instead of a tile: what is read as floats


class ReferencePages:
    """The pages of a program's layers."""

    def __init__(self, program: Program, pools: Sequence[PagePool]) -> None:
        self._program, self._pools = program, pools

    def _pools_of(self, layer: int) -> tuple[tuple[int, PagePool], tuple[int, PagePool]]:
        """The groups and pages that a layer's numbers are written to, and that its full pages are read from."""
        return floats_of(self._pools, layer), read_of(self._pools, layer)

    def rotary_store(self, op: RotaryStore, buffers: dict[str, Array], batch: BatchMetadata) -> None:
        """Rotate, take the mean off, mix; write K and V to their slots."""
        dims = self._program.head_dim
        heads = {b.name: buffers[b.name].reshape(len(batch.tokens), -1, dims) for b in (op.q, op.k, op.v)}
        if op.rotary is not None:
            half = op.rotary.half
            cos, sin = (table[batch.positions].astype(np.float64)[:, None] for table in (op.rotary.cos, op.rotary.sin))
            for x in (heads[op.q.name], heads[op.k.name]):
                a, b = x[..., :half].copy(), x[..., half : 2 * half].copy()
                x[..., :half], x[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
        if op.mean is not None:
            heads[op.k.name][...] -= op.mean.reshape(-1, dims)
        if op.mix is not None:
            for x in (heads[op.q.name], heads[op.k.name]) if op.mix.k else ():
                x[...] = _mixed(op.mix, x)
            if op.mix.v:
                heads[op.v.name][...] = _mixed(op.mix, heads[op.v.name])
        group, pool = self._pools_of(op.layer)[0]
        page_size = pool.layout.page_size
        for row, page in enumerate(batch.row_pages[group]):
            slot = int(batch.slots[row]) % page_size
            for head in range(self._program.num_kv_heads):
                k = heads[op.k.name][row, head][None].astype(np.float32)
                v = heads[op.v.name][row, head][None].astype(np.float32)
                pool.write(int(page), op.layer, head, slice(slot, slot + 1), k, v)

    def seal(self, layer: int, batch: BatchMetadata) -> None:
        """Pack the pages that the step has filled."""
        (source, exact), (target, sealed) = self._pools_of(layer)
        for page, into in zip(batch.full_pages[source], batch.full_pages[target], strict=True):
            for head in range(self._program.num_kv_heads):
                sealed.pack(int(into), layer, head, *exact.read(int(page), layer, head))

    def attend(self, op: Attend, q: Array, sequence: SequenceRows) -> Array:
        """Attention of one sequence's rows, (rows, heads * head size)."""
        program = self._program
        group, dims = program.num_heads // program.num_kv_heads, program.head_dim
        rows = q[sequence.first : sequence.first + sequence.count].reshape(sequence.count, program.num_heads, dims)
        out = np.empty_like(rows)
        for kv_head in range(program.num_kv_heads):
            exact, sealed = (self._numbers(place, op.layer, kv_head, sequence) for place in self._pools_of(op.layer))
            for r in range(sequence.count):
                end = sequence.position + r + 1
                seen = np.arange(max(0, end - op.window) if op.window else 0, end)
                page_size = self._pools[0].layout.page_size
                pages = np.arange(end) // page_size
                if op.choice is not None:
                    (place, pool), heads = self._pools_of(op.layer)[1], slice(kv_head * group, (kv_head + 1) * group)
                    table = sequence.pages[place][: pages[-1] + 1]
                    chosen = best_pages(op, rows[r, heads], pool, kv_head, table)
                    seen = seen[np.isin(pages, chosen)]
                own = (pages == 0) | (pages == (end - 1) // page_size)
                K, V = (np.where(own[:, None], a[:end], b[:end]) for a, b in zip(exact, sealed, strict=True))
                k_codec, v_codec = self._pools_of(op.layer)[1][1].layout.codecs(op.layer)
                slots = seen if op.choice is None else np.arange(len(seen))
                tiles = np.where(own[seen] | (not isinstance(v_codec, Packed)), EXACT, slots // TILE)
                for head in range(kv_head * group, (kv_head + 1) * group):
                    rounded = asked(k_codec, rows[r, head]) if isinstance(k_codec, Packed) else rows[r, head]
                    scores = np.where(own[seen], K[seen] @ rows[r, head], K[seen] @ rounded) * op.scale
                    kept = min(op.first, int(seen[0]))
                    if kept:
                        query = _turned_back(op, rows[r, head], end - 1 - (op.first + (op.window or 0) - 1))
                        scores = np.concatenate([K[:kept] @ query * op.scale, scores])
                    scores = scores if op.softcap is None else op.softcap * np.tanh(scores / op.softcap)
                    top = scores.max() if op.sinks is None else max(scores.max(), op.sinks[head])
                    p = np.exp(scores - top)
                    if isinstance(k_codec, Packed) or isinstance(v_codec, Packed):
                        first = scores[:BLOCK].max() if seen[0] == 0 and end > BLOCK else -np.inf
                        before = scores[:kept].max() if kept else -np.inf
                        upto = end if op.choice is None else len(slots)
                        p[kept:] *= counting(scores[kept:], slots, upto, page_size, first, before)
                    rest = 0.0 if op.sinks is None else np.exp(op.sinks[head] - top)
                    made = p[:kept] @ V[:kept] + self._weighed(op, kv_head, sequence, p[kept:], V, seen, slots, tiles)
                    made /= p.sum() + rest
                    out[r, head] = _unmixed(op.mix, made) if op.mix is not None and op.mix.v else made
        return out.reshape(sequence.count, -1)

    def _weighed(
        self, op: Attend, kv_head: int, sequence: SequenceRows, p: Array, V: Array, seen: Places, slots: Places,
        tiles: Places,
    ) -> Array:  # fmt: skip
        """Weights times the values of the positions that are seen, tile by tile where they are packed."""
        made = np.asarray(p[tiles == EXACT] @ V[seen[tiles == EXACT]])
        group, pool = self._pools_of(op.layer)[1]
        for tile in np.unique(tiles[tiles != EXACT]):
            here, page_size = seen[tiles == tile], pool.layout.page_size
            pages = np.unique(here // page_size)
            spans = [pool.spans(int(sequence.pages[group][page]), op.layer, kv_head) for page in pages]
            places = np.searchsorted(pages, here // page_size) * page_size + here % page_size
            scale, middle = (np.concatenate(side)[places] for side in zip(*spans, strict=True))
            codec = pool.layout.codecs(op.layer)[1]
            assert isinstance(codec, Packed)
            whole = [np.zeros((TILE, *part.shape[1:])) for part in (p, V, V, V)]  # a tile, seen or not
            for part, numbers in zip(whole, (p[tiles == tile], V[here], scale, middle), strict=True):
                part[slots[tiles == tile] % TILE] = numbers
            made += weighed(codec, *whole)
        return made

    def _numbers(
        self, place: tuple[int, PagePool], layer: int, kv_head: int, sequence: SequenceRows
    ) -> tuple[Array, Array]:
        """K and V of a sequence's positions in one pool; NaN where a page is gone."""
        number, pool = place
        page_size, length = pool.layout.page_size, sequence.position + sequence.count
        shape = (len(sequence.pages[number]) * page_size, self._program.head_dim)
        K, V = (np.full(shape, np.nan) for _ in range(2))
        for i, page in enumerate(sequence.pages[number]):
            if page != GONE:
                where = slice(i * page_size, (i + 1) * page_size)
                K[where], V[where] = pool.read(int(page), layer, kv_head)
        return K[:length], V[:length]

    def observe(self, op: Observe, q: Array, sequence: SequenceRows) -> None:
        """What the rows give to each position."""
        program, (number, pool) = self._program, floats_of(self._pools, op.layer)
        dims, group = program.head_dim, program.num_heads // program.num_kv_heads
        rows = q.reshape(len(q), program.num_heads, dims)
        for kv_head, into in enumerate(op.into):
            keys = np.concatenate([pool.read(int(page), op.layer, kv_head)[0] for page in sequence.pages[number]])
            for r, heads in enumerate(rows[:, kv_head * group : (kv_head + 1) * group]):
                for query in heads:
                    scores = keys[: sequence.position + r + 1] @ query * op.scale
                    scores = scores if op.softcap is None else op.softcap * np.tanh(scores / op.softcap)
                    weights = np.exp(scores - scores.max())
                    got = (weights / weights.sum() * op.weights[r])[: len(into)]
                    old = into[: len(got)]
                    old[:] = np.maximum(old, got) if op.kind == "max" else old + got


def _mixed(mix: Mix, x: Array) -> Array:
    """H (signs * x) / sqrt(width), over the last axis."""
    width = len(mix.signs)
    out = x * mix.signs
    step = 1
    while step < width:
        pairs = out.reshape(*x.shape[:-1], -1, 2, step)
        out = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], axis=-2)
        out, step = out.reshape(x.shape), 2 * step
    return np.asarray(out / math.sqrt(width))


def _unmixed(mix: Mix, x: Array) -> Array:
    """What `_mixed` came from: H is its own inverse."""
    plain = Mix(np.ones_like(mix.signs), mix.k, mix.v)
    return np.asarray(_mixed(plain, x) * mix.signs)


def _turned_back(op: Attend, q: Array, back: int) -> Array:
    """A query as if it stood `back` positions earlier."""
    if op.turn is None or back <= 0:
        return q
    turn, mix = op.turn, op.mix
    if mix is not None and mix.k:
        return _mixed(mix, _turned_back(replace(op, mix=None), _unmixed(mix, q), back))
    a, b, rest = np.split(q, [turn.half, 2 * turn.half])
    cos, sin = turn.cos[back].astype(np.float64), turn.sin[back].astype(np.float64)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest])
