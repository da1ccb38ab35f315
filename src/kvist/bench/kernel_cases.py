"""Kernels alone, as programs of one op again and again, with random numbers of a model's shapes.

What counts is what a step sees: weights and pages come from memory, activations stay in the cache. So every copy of an
op that reads weights or pages has its own, and between two runs of a program something larger than the caches is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvist.cache.codec import codec
from kvist.cache.codec.base import Codec
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.kernels.program import (
    BLOCK_TYPES,
    Attend,
    Buffer,
    Embed,
    Gate,
    Matmul,
    Norm,
    Op,
    Rotary,
    RotaryStore,
    Weight,
    WeightType,
)
from kvist.memory import aligned_size, map_memory
from kvist.models.config import padded
from kvist.models.load import Model
from kvist.models.rotary import rotary_tables

MEMORY = 64 << 20  # bytes of weights or pages of a program at most, unless one op alone has more
OPERATIONS = 4 * 10**9  # of a program, likewise
COPIES = 128  # of an op at most
HEAD_ROWS = 64  # no step asks for the logits of more rows
TABLE = 16  # rows of random numbers that buffers are filled from
CONTEXTS, QUERY_ROWS = (128, 1024, 8192), (1, 16, 512)
SCALES = {"q8_0": (0,), "q4_0": (0,), "q4_1": (0, 2), "q4_k": (0, 2), "q6_k": (208,)}
"""Where a block's float16 scales lie: the only bytes of one that must not be random."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A program: `ops` are measured, then `fill` puts random numbers into the buffers for the next run.

    cold: each copy of the op has weights or pages of its own, which come from memory.
    """

    kernel: str
    shape: str
    dtype: str
    rows: int
    context: int
    fill: tuple[Op, ...]
    ops: tuple[Op, ...]
    layout: PageLayout
    cold: bool = True


def random_bytes(dtype: WeightType, size: int) -> npt.NDArray[np.uint8]:
    """Whole blocks of random weights in large memory, the same some thousand numbers over and over."""
    random = np.random.default_rng(0)
    if dtype in BLOCK_TYPES:
        pattern = random.integers(0, 256, (4096, BLOCK_TYPES[dtype][1]), np.uint8)
        for at in SCALES[dtype]:
            pattern[:, at : at + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    else:
        pattern = codec(dtype).encode(random.standard_normal((4096, 16)).astype(np.float32)).view(np.uint8)
    memory = np.frombuffer(map_memory(aligned_size(size)), np.uint8)
    flat = pattern.reshape(-1)
    for start in range(0, len(memory), len(flat)):
        memory[start : start + len(flat)] = flat[: len(memory) - start]
    return memory


def _matrices(memory: npt.NDArray[np.uint8], dtype: WeightType, N: int, K: int, most: int) -> list[Weight]:
    """As many matrices as lie in `memory` side by side, up to `most`."""
    kinds: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
    size = matrix_bytes(dtype, N, K)
    made = []
    for i in range(max(1, min(most, COPIES, len(memory) // aligned_size(size)))):
        part = memory[i * aligned_size(size) :][:size]
        made.append(Weight(part.view(kinds.get(dtype, np.uint8)).reshape(N, -1), dtype))
    return made


def matrix_bytes(dtype: WeightType, N: int, K: int) -> int:
    """Size of a matrix."""
    numbers, size = BLOCK_TYPES.get(dtype, (1, 4 if dtype == "f32" else 2))
    return N * K // numbers * size


def _fill(*buffers: Buffer) -> tuple[Op, ...]:
    """Random numbers into buffers."""
    random = np.random.default_rng(1)
    return tuple(Embed(Weight(random.standard_normal((TABLE, b.width)).astype(np.float32), "f32"), b) for b in buffers)


def shapes_of(model: Model, numbers: int = 16) -> dict[tuple[int, int], str]:
    """(N, K) of every kind of matrix a step multiplies with -> its roles. K is rounded up to blocks of `numbers`."""
    found: dict[tuple[int, int], list[str]] = {}
    for role, weight in model.matrices.items():
        if role not in ("embed", "positions"):
            columns = -(-weight.columns // numbers) * numbers
            found.setdefault((weight.rows, columns), []).append(role.rpartition(".")[2])
    return {shape: " ".join(dict.fromkeys(roles)) for shape, roles in found.items()}


def matmul_cases(model: Model, dtype: WeightType, rows: Sequence[int]) -> Iterator[Case]:
    """Weights of one type: all shapes, all numbers of rows."""
    shapes = shapes_of(model, BLOCK_TYPES.get(dtype, (16, 0))[0])
    memory = random_bytes(dtype, max(MEMORY, *(matrix_bytes(dtype, N, K) for N, K in shapes)))
    for (N, K), roles in shapes.items():
        x, out = Buffer("x", K), Buffer("out", -(-N // 16) * 16)
        for count in rows:
            if count > HEAD_ROWS and "head" in roles.split():
                continue
            weights = _matrices(memory, dtype, N, K, OPERATIONS // (2 * N * K * count))
            ops = tuple(Matmul(x, weight, out) for weight in weights)
            yield Case("matmul", f"{N}x{K} {roles}", dtype, count, 0, _fill(x), ops, _one_page())


def attend_cases(model: Model, held: Codec, rows: Sequence[int] = QUERY_ROWS) -> Iterator[Case]:
    """The newest `rows` positions of one sequence over contexts; a layer of pages for each copy."""
    config, dims = model.config, model.config.stored_head_dim
    q, out = Buffer("q", config.num_heads * dims), Buffer("attention", config.num_heads * dims)
    for context in CONTEXTS:
        for count in (count for count in rows if count <= context):
            layer = LayerSpec(config.num_kv_heads, dims)
            each = context * PageLayout((layer,), 16, held).bytes_per_token
            operations = 4 * config.num_heads * dims * count * (context - (count - 1) // 2)
            layers = max(1, min(COPIES, MEMORY // each, OPERATIONS // operations))
            ops = tuple(Attend(q, out, i, dims**-0.5) for i in range(layers))
            layout = PageLayout((layer,) * layers, 16, held)
            shape = f"{config.num_heads}/{config.num_kv_heads} heads of {dims}"
            yield Case("attend", shape, held.name, count, context, _fill(q), ops, layout)


def row_cases(model: Model, held: Codec, rows: Sequence[int] = QUERY_ROWS) -> Iterator[Case]:
    """What works row by row: norms, rotary embedding with the store to the pages, activations."""
    config, dims = model.config, model.config.stored_head_dim
    x, h = Buffer("x", model.matrices["layers.0.q"].columns), Buffer("h", model.matrices["layers.0.q"].columns)
    inner = padded(config.intermediate_size)
    gate, up, out = Buffer("gate", inner), Buffer("up", inner), Buffer("out", inner)
    q, k, v = (Buffer(n, c * dims) for n, c in zip("qkv", (config.num_heads, *[config.num_kv_heads] * 2), strict=True))
    ones = np.ones(x.width, np.float32)
    norm = Norm(config.norm, x, h, ones, ones if config.norm == "layer" else None, config.norm_eps, x.width)
    activation = Gate(gate, up if config.gated else None, out, config.activation)
    pages = PageLayout((LayerSpec(config.num_kv_heads, dims),) * COPIES, 16, held)
    for count in rows:
        rotary: Rotary | None = rotary_tables(config, max(count, 16), None)
        store = tuple(RotaryStore(q, k, v, layer, rotary) for layer in range(COPIES))
        yield Case("norm", f"{config.norm} {x.width}", "f32", count, 0, _fill(x), (norm,) * COPIES, _one_page(), False)
        yield Case("rotary_store", f"{q.width}+{k.width}", held.name, count, 0, _fill(q, k, v), store, pages)
        yield Case(
            "gate", f"{config.activation} {inner}", "f32", count, 0, _fill(gate, up), (activation,) * COPIES,
            _one_page(), False,
        )  # fmt: skip


def _one_page() -> PageLayout:
    return PageLayout((LayerSpec(1, 16),), 16, codec("f32"))
