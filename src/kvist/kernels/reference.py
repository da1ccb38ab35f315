"""The truth: every operation in plain NumPy, float64 inside, written for reading. Every kernel is compared with it.

It keeps the contract's one rule that touches values (K and V are rounded to the codec's type before anybody reads
them) and nothing of how kernels order their sums, so it agrees with them closely, not bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvist.cache.codec import codec
from kvist.cache.pool import PagePool, floats_of, sealed_of
from kvist.cache.table import GONE
from kvist.kernels.program import (
    BLOCK_TYPES,
    Activation,
    Attend,
    BatchMetadata,
    Bound,
    Cap,
    Embed,
    Experts,
    Floats,
    Gate,
    Limits,
    Matmul,
    Mix,
    Norm,
    Program,
    RotaryStore,
    Seal,
    SequenceRows,
    Weight,
    WeightType,
)
from kvist.kernels.reference_choice import best_pages, keep_bounds
from kvist.kernels.reference_choosing import ReferenceChooser

Array = npt.NDArray[np.float64]


def widen(weight: Weight) -> Array:
    """A weight matrix as float64 (rows, columns).

    Blocks are unpacked by the gguf package, whose authors made the formats.
    """
    if weight.dtype in BLOCK_TYPES:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        unpacked: Array = dequantize(weight.data, GGMLQuantizationType[weight.dtype.upper()]).astype(np.float64)
        return unpacked
    if weight.dtype == "bf16":
        return (weight.data.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return weight.data.astype(np.float64)


def activation(kind: Activation, x: Array) -> Array:
    """The activation of every number of x.

    silu: x / (1 + e^-x); gelu_tanh: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); gelu: x/2 (1 + erf(x / sqrt 2)).
    """
    if kind == "silu":
        with np.errstate(over="ignore"):
            return np.asarray(x / (1 + np.exp(-x)))
    if kind == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))))


class ReferenceExecutable:
    """Interprets a program; buffers are rows of float64 made anew each step."""

    def __init__(self, program: Program, pools: Sequence[PagePool]) -> None:
        self._program, self._pools = program, pools

    def run(self, batch: BatchMetadata) -> Floats:
        """See `kernels.program.Executable`."""
        buffers: dict[str, Array] = {}
        for op in self._program.ops:
            match op:
                case Embed():
                    out = widen(op.table)[batch.tokens] * op.scale
                    buffers[op.out.name] = out + widen(op.positions)[batch.positions] if op.positions else out
                case Norm():
                    x = buffers[op.x.name]
                    out = _norm(op, x[batch.sampled_rows] if op.out.sampled else x)
                    buffers[op.out.name] = out if op.residual is None else out + buffers[op.residual.name]
                case Matmul():
                    rows = op.weight.rows
                    out = buffers[op.x.name] @ widen(op.weight).T + (0 if op.bias is None else op.bias[:rows])
                    buffers[op.out.name] = out if op.residual is None else out + buffers[op.residual.name][:, :rows]
                case RotaryStore():
                    self._rotary_store(op, buffers, batch)
                case Seal():
                    self._seal(op.layer, batch)
                case Bound():
                    keep_bounds(self._pools, op.layer, batch)
                case Attend():
                    q = buffers[op.q.name]
                    buffers[op.out.name] = np.concatenate(
                        [self._attend(op, q, sequence) for sequence in batch.sequences]
                    )
                case Gate():
                    out = activation(op.activation, buffers[op.x.name])
                    buffers[op.out.name] = out if op.up is None else out * buffers[op.up.name]
                case Experts():
                    buffers[op.out.name] = _experts(op, buffers)
                case Cap():
                    buffers[op.out.name] = op.cap * np.tanh(buffers[op.x.name] / op.cap)
        logits = buffers[self._program.logits.name].astype(np.float32)
        self._likeliest = np.where(np.isfinite(logits).all(-1), logits.argmax(-1), -1)
        return logits

    def likeliest(self) -> npt.NDArray[np.int64]:
        """See `kernels.program.Executable`."""
        return self._likeliest

    @property
    def chooser(self) -> ReferenceChooser:
        """See `kernels.program.Executable`."""
        return ReferenceChooser()

    def _pools_of(self, layer: int) -> tuple[tuple[int, PagePool], tuple[int, PagePool]]:
        """The groups and pages that a layer's numbers are written to, and that its full pages are read from."""
        return floats_of(self._pools, layer), sealed_of(self._pools, layer) or floats_of(self._pools, layer)

    def _rotary_store(self, op: RotaryStore, buffers: dict[str, Array], batch: BatchMetadata) -> None:
        dims = self._program.head_dim
        heads = {b.name: buffers[b.name].reshape(len(batch.tokens), -1, dims) for b in (op.q, op.k, op.v)}
        if op.rotary is not None:
            half = op.rotary.half
            cos, sin = (table[batch.positions].astype(np.float64)[:, None] for table in (op.rotary.cos, op.rotary.sin))
            for x in (heads[op.q.name], heads[op.k.name]):
                a, b = x[..., :half].copy(), x[..., half : 2 * half].copy()
                x[..., :half], x[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
        if op.mix is not None:
            for x in (heads[op.q.name], heads[op.k.name]) if op.mix.k else ():
                x[...] = _mixed(op.mix, x)
            if op.mix.v:
                heads[op.v.name][...] = _mixed(op.mix, heads[op.v.name])
        group, pool = self._pools_of(op.layer)[0]
        page_size = pool.layout.page_size
        for row, page in enumerate(batch.row_pages[group]):
            slot = int(batch.positions[row]) % page_size
            for head in range(self._program.num_kv_heads):
                k = heads[op.k.name][row, head][None].astype(np.float32)
                v = heads[op.v.name][row, head][None].astype(np.float32)
                pool.write(int(page), op.layer, head, slice(slot, slot + 1), k, v)

    def _seal(self, layer: int, batch: BatchMetadata) -> None:
        (source, exact), (target, sealed) = self._pools_of(layer)
        for page, into in zip(batch.full_pages[source], batch.full_pages[target], strict=True):
            for head in range(self._program.num_kv_heads):
                sealed.pack(int(into), layer, head, *exact.read(int(page), layer, head))

    def _attend(self, op: Attend, q: Array, sequence: SequenceRows) -> Array:
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
                    place, pool = self._pools_of(op.layer)[0]
                    queries, table = rows[r, kv_head * group :][:group], sequence.pages[place][: pages[-1] + 1]
                    seen = seen[np.isin(pages, best_pages(op.choice, queries, pool, op.layer, kv_head, table))]
                own = (pages == 0) | (pages == (end - 1) // page_size)
                K, V = (np.where(own[:, None], a[:end], b[:end]) for a, b in zip(exact, sealed, strict=True))
                for head in range(kv_head * group, (kv_head + 1) * group):
                    scores = K[seen] @ rows[r, head] * op.scale
                    value = V[seen]
                    if kept := min(op.first, int(seen[0])):
                        query = _turned_back(op, rows[r, head], end - 1 - (op.first + (op.window or 0) - 1))
                        scores = np.concatenate([K[:kept] @ query * op.scale, scores])
                        value = np.concatenate([V[:kept], value])
                    scores = scores if op.softcap is None else op.softcap * np.tanh(scores / op.softcap)
                    top = scores.max() if op.sinks is None else max(scores.max(), op.sinks[head])
                    p = np.exp(scores - top)
                    rest = 0.0 if op.sinks is None else np.exp(op.sinks[head] - top)
                    made = p @ value / (p.sum() + rest)
                    out[r, head] = _unmixed(op.mix, made) if op.mix is not None and op.mix.v else made
        return out.reshape(sequence.count, -1)

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


def _norm(op: Norm, x: Array) -> Array:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * w. LayerNorm: (x - mean) / sqrt(var + eps) * w + b. Over the true width.

    The zeros that pad a row, or each head of it, add nothing to the sum of squares.
    """
    if op.kind == "rms":
        parts = x.reshape(len(x), op.groups, -1)
        square = (parts * parts).sum(2, keepdims=True) / op.width
        return np.asarray((parts / np.sqrt(square + op.eps) * op.weight).reshape(x.shape))
    out = np.zeros_like(x)
    x, weight = x[:, : op.width], op.weight[: op.width]
    x = x - x.mean(1, keepdims=True)
    out[:, : op.width] = x / np.sqrt((x * x).mean(1, keepdims=True) + op.eps) * weight
    out[:, : op.width] += 0 if op.bias is None else op.bias[: op.width]
    return out


def _experts(op: Experts, buffers: dict[str, Array]) -> Array:
    """Row by row, expert by expert."""
    out = buffers[op.residual.name].copy()
    for row, (x, scores) in enumerate(zip(buffers[op.x.name], buffers[op.logits.name], strict=True)):
        scores = scores[: len(op.experts)]
        chosen = np.argsort(-scores, kind="stable")[: op.chosen]
        shares = np.exp(scores - scores.max())
        shares /= (shares[chosen] if op.renormalise else shares).sum()
        for i in chosen:
            e = op.experts[i]
            gate = widen(e.gate) @ x + (0 if e.gate_bias is None else e.gate_bias)
            up = widen(e.up) @ x + (0 if e.up_bias is None else e.up_bias)
            if op.clamp is None:
                inner = activation(op.activation, gate) * up
            else:
                gate, up = np.minimum(gate, op.clamp), np.clip(up, -op.clamp, op.clamp)
                inner = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
            out[row] += shares[i] * (widen(e.down) @ inner + (0 if e.down_bias is None else e.down_bias))
    return out


class ReferenceBackend:
    """See `kernels.program.Backend`."""

    def bind(self, program: Program, pools: Sequence[PagePool], limits: Limits) -> ReferenceExecutable:
        """Nothing to allocate: limits do not bind the reference."""
        return ReferenceExecutable(program, pools)

    def prepare(self, types: Iterable[WeightType]) -> None:
        """Nothing takes long."""

    def convert(self, jobs: Sequence[tuple[Weight, Weight]]) -> None:
        """By way of float64."""
        for source, out in jobs:
            out.data[...] = codec(out.dtype).encode(widen(source).astype(np.float32))

    def find_nonfinite(self, weights: Sequence[Weight]) -> list[int]:
        """By looking at every number."""
        return [i for i, weight in enumerate(weights) if not np.isfinite(widen(weight)).all()]

    def close(self) -> None:
        """Nothing to free."""
