"""What a step computes, as data: a short list of operations on named buffers.

`models.decoder` writes a program once per model, in the order a reader expects. A backend binds it to memory and runs
it each step: the reference interprets it with NumPy, the CPU backend lowers it to a table that one compiled loop runs,
a CUDA backend could capture it as a graph. No operation knows how many rows a step has; that comes with the batch.

Widths are multiples of 16 (the loader pads weights with zeros, so padded lanes hold zeros all the way), a norm alone is
told its true width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from kvist.cache.policy import Choice
from kvist.kernels.operands import Buffer as Buffer
from kvist.kernels.operands import Rotary as Rotary
from kvist.kernels.step import BatchMetadata as BatchMetadata
from kvist.kernels.step import Limits as Limits
from kvist.kernels.step import SequenceRows as SequenceRows
from kvist.kernels.weight import BLOCK_TYPES as BLOCK_TYPES
from kvist.kernels.weight import BlockType as BlockType
from kvist.kernels.weight import Floats as Floats
from kvist.kernels.weight import FloatType as FloatType
from kvist.kernels.weight import Weight as Weight
from kvist.kernels.weight import WeightType as WeightType

if TYPE_CHECKING:
    from kvist.cache.pool import PagePool
    from kvist.kernels.choosing import Chooser

Activation = Literal["silu", "gelu_tanh", "gelu"]


@dataclass(frozen=True, slots=True, eq=False)
class Embed:
    """out[row] = table[token] * scale (+ positions[position], a table of float32)."""

    table: Weight
    out: Buffer
    scale: float = 1.0
    positions: Weight | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm over `width` numbers; out = residual + that, where there is one.

    Into a sampled buffer it gathers the sampled rows. groups: a row is so many parts of equal length (heads), each
    normed alone with the same weight. residual may be out itself.
    """

    kind: Literal["rms", "layer"]
    x: Buffer
    out: Buffer
    weight: Floats
    bias: Floats | None
    eps: float
    width: int
    residual: Buffer | None = None
    groups: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Matmul:
    """out = (x @ weight.T + bias) + residual. residual may be out itself."""

    x: Buffer
    weight: Weight
    out: Buffer
    bias: Floats | None = None
    residual: Buffer | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """A fixed rotation of heads: x becomes H (signs * x) / sqrt(width), H being Hadamard's matrix (Sylvester's order).

    It spreads what is large in one dim over all of them, before they are packed. signs: float32 (head size,), each 1 or
    -1. k: queries and keys are turned, so that scores stay as they are; v: values are, and what attention makes of them
    is turned back.
    """

    signs: Floats
    k: bool
    v: bool


@dataclass(frozen=True, slots=True, eq=False)
class RotaryStore:
    """Rotate q and k in place (no rotary: leave them), round k and v to the codec and write them to the row's slot.

    mix: turn q and k, or v, in place before that. A packed layer's slots are those of its exact pages. mean: float32
    (KV heads x head size,), taken from k before it is mixed: every score of a row misses the same, so no softmax
    changes.
    """

    q: Buffer
    k: Buffer
    v: Buffer
    layer: int
    rotary: Rotary | None
    mix: Mix | None = None
    mean: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Seal:
    """Pack a layer's pages that this step has filled: from the exact pages to the sealed ones."""

    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """Keep a sketch of a layer's keys (see `cache.sketch`) in each page that this step has filled."""

    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class Attend:
    """out = softmax(scale * q K^T) V over positions 0..t of the row's sequence, or t - window + 1..t.

    K and V are read from the pages of `layer`. softcap: scores s become cap * tanh(s / cap) (Gemma 2). sinks: a score
    of each query head, float32 (heads,), that takes part in the softmax and weighs no value (gpt-oss). first: positions
    at the beginning that a row with a window sees as well (StreamingLLM, Xiao et al. 2023), as far as they are not in
    its window, and as if they stood right before it: where its own distance to them would be larger, q is rotated by
    the angles of `turn`, which turn it back by 0.. positions (None: q is not turned).

    Of a packed layer a row reads its own page and page 0 exactly, others as they were packed. mix: as it was stored.

    choice: a row reads so many of the pages up to its own: the first, its own, the one before, and for each KV head
    those that weigh most to its query heads by their sketches (see `cache.sketch`); of equals the earlier. It does not
    go with windows.
    """

    q: Buffer
    out: Buffer
    layer: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Floats | None = None
    first: int = 0
    turn: Rotary | None = None
    mix: Mix | None = None
    choice: Choice | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Observe:
    """Note in `into`, float32 (KV heads, positions), the attention that each position of a layer gets from the rows.

    sum: what each row and head of the group gives it is added to what is there; max: the largest of that and what is
    there stays. The step has one sequence; `into` takes its first positions, a multiple of 64. found: of each row and
    head the largest score, then their sums. weights: float32 (rows,), what each row's attention counts.
    """

    q: Buffer
    found: Buffer
    layer: int
    scale: float
    into: Floats
    weights: Floats
    kind: Literal["sum", "max"]
    softcap: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """The rows of x as they are now, into the first rows of an array of its width."""

    x: Buffer
    into: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """out = activation(x) * up, or activation(x) without up."""

    x: Buffer
    up: Buffer | None
    out: Buffer
    activation: Activation


@dataclass(frozen=True, slots=True, eq=False)
class Cap:
    """out = cap * tanh(x / cap): numbers stay between -cap and cap. x and out are sampled, and may be one buffer."""

    x: Buffer
    out: Buffer
    cap: float


@dataclass(frozen=True, slots=True, eq=False)
class Expert:
    """One expert of a layer: the weights of an MLP."""

    gate: Weight
    up: Weight
    down: Weight
    gate_bias: Floats | None = None
    up_bias: Floats | None = None
    down_bias: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """out = residual + sum of share * down(activation(gate x) * up x) over a row's `chosen` experts (Shazeer 2017).

    logits: the router's; the largest choose, of equal ones the first. A share is the softmax over all of them, or over
    the chosen (`renormalise`). The sum goes by share, the largest first. clamp (gpt-oss): instead of the activation,
    g / (1 + e^(-1.702 g)) * (up + 1), the gate at most, and up within, this limit.
    """

    x: Buffer
    logits: Buffer
    residual: Buffer
    out: Buffer
    experts: tuple[Expert, ...]
    chosen: int
    renormalise: bool
    activation: Activation
    clamp: float | None = None


Op = Embed | Norm | Matmul | RotaryStore | Seal | Sketch | Attend | Gate | Cap | Experts | Observe | Copy


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The operations of a step; from `head` on they work on sampled rows, the last one writes the logits."""

    ops: tuple[Op, ...]
    head: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    vocab_size: int

    @property
    def logits(self) -> Buffer:
        """The buffer the last operation writes."""
        last = self.ops[-1]
        assert not isinstance(last, RotaryStore | Seal | Sketch | Observe | Copy)
        return last.out


class Executable(Protocol):
    """A program bound to weights, pages and buffers."""

    def run(self, batch: BatchMetadata) -> Floats:
        """Run one step; float32 logits (sampled rows, vocab), valid until the next run."""

    def likeliest(self) -> npt.NDArray[np.int64]:
        """Of each row of the last logits the largest, the first of equals; -1: not known, or not all are finite."""

    @property
    def chooser(self) -> Chooser:
        """What chooses tokens from logits, on the same threads. Not during a run."""


class Backend(Protocol):
    """A machine that runs programs."""

    def bind(self, program: Program, pools: Sequence[PagePool], limits: Limits) -> Executable:
        """Allocate buffers for steps up to `limits`; make the program runnable over the pages of its layers' groups."""

    def prepare(self, types: Iterable[WeightType]) -> None:
        """Be told which types of weights are coming, so that what takes long can begin."""

    def convert(self, jobs: Sequence[tuple[Weight, Weight]]) -> None:
        """Convert each matrix (of any type) into the allocated float one beside it."""

    def find_nonfinite(self, weights: Sequence[Weight]) -> list[int]:
        """Indices of the weights that hold a NaN or an infinity."""

    def close(self) -> None:
        """Free threads and memory; idempotent."""
