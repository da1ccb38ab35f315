"""The truth: every operation in plain NumPy, float64 inside, written for reading. Every kernel is compared with it.

It keeps the contract's one rule that touches values (K and V are rounded to the codec's type before anybody reads
them) and nothing of how kernels order their sums, so it agrees with them closely, not bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from kvist.cache.codec import codec
from kvist.cache.pool import PagePool
from kvist.kernels.program import (
    BLOCK_TYPES,
    Activation,
    Attend,
    BatchMetadata,
    Cap,
    Copy,
    Embed,
    Experts,
    Floats,
    Gate,
    Limits,
    Matmul,
    Norm,
    Observe,
    Program,
    RotaryStore,
    Seal,
    Sketch,
    Weight,
    WeightType,
)
from kvist.kernels.reference_choice import keep_sketches
from kvist.kernels.reference_choosing import ReferenceChooser
from kvist.kernels.reference_pages import ReferencePages

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
        self._program, self._pools, self._pages = program, pools, ReferencePages(program, pools)

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
                    out = buffers[op.x.name] @ widen(op.weight).T
                    out = out if op.bias is None else out + op.bias[: op.weight.rows]
                    buffers[op.out.name] = (
                        out if op.residual is None else out + buffers[op.residual.name][:, : op.weight.rows]
                    )
                case RotaryStore():
                    self._pages.rotary_store(op, buffers, batch)
                case Seal():
                    self._pages.seal(op.layer, batch)
                case Sketch():
                    keep_sketches(self._pools, op.layer, batch)
                case Attend():
                    q = buffers[op.q.name]
                    buffers[op.out.name] = np.concatenate(
                        [self._pages.attend(op, q, sequence) for sequence in batch.sequences]
                    )
                case Gate():
                    out = activation(op.activation, buffers[op.x.name])
                    buffers[op.out.name] = out if op.up is None else out * buffers[op.up.name]
                case Experts():
                    buffers[op.out.name] = _experts(op, buffers)
                case Observe():
                    self._pages.observe(op, buffers[op.q.name], batch.sequences[0])
                case Copy():
                    op.into[: len(batch.tokens)] = buffers[op.x.name]
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


def _norm(op: Norm, x: Array) -> Array:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * w. LayerNorm: (x - mean) / sqrt(var + eps) * w + b. Over the true width.

    The zeros that pad a row, or each head of it, add nothing to the sum of squares.
    """
    if op.kind == "rms":
        parts = x.reshape(len(x), op.groups, x.shape[1] // op.groups)  # also of no rows
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
