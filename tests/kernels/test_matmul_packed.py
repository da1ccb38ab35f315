"""Matmul and Embed over block-quantised weights: bit for bit the same matrix unpacked to float32 first, in any batch,
on any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks import any_blocks, converted, unpacked, weight
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import (
    BLOCK_TYPES,
    Backend,
    Buffer,
    Embed,
    Executable,
    Floats,
    Limits,
    Matmul,
    Program,
    Weight,
)
from kvist.kernels.reference import ReferenceBackend
from ops import fill, numbers, row_batch, run_ops, same_bits, tiny_pool
from ops import weight as plain_weight

DTYPES = tuple(BLOCK_TYPES)
MOST = 200
BATCHES = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    17,
    47,
    48,
    49,
    97,
    *range(191, MOST + 1),
)  # around every tile and piece
SHAPES = [
    (1, 256),
    (5, 256),
    (31, 256),
    (33, 512),
    (97, 256),
    (33, 1536),
    (8, 800),
    (8, 2048),
    (33, 64),
    (97, 64),
    (12, 576),
]
CASES = [(t, N, K) for t in DTYPES for N, K in SHAPES if K % BLOCK_TYPES[t][0] == 0]


@dataclass
class Product:
    """A bound matmul of rows (by number) of a fixed matrix; what was in the output before is overwritten with noise."""

    executable: Executable
    outputs: int

    def __call__(self, rows: list[int]) -> Floats:
        return self.executable.run(row_batch(rows))[:, : self.outputs].copy()


def product(backend: Backend, matrix: Weight, *, bias: bool = True, residual: bool = True, seed: int = 0) -> Product:
    K, N, padded = matrix.columns, matrix.rows, -(-matrix.rows // 16) * 16
    x, out, extra = Buffer("x", K), Buffer("out", padded), Buffer("extra", padded)
    vector = np.pad(numbers(seed + 3, N), (0, padded - N)) if bias else None
    ops = (
        fill(x, numbers(seed + 1, MOST, K)),
        fill(extra, numbers(seed + 2, MOST, padded)),
        fill(out, numbers(seed + 5, MOST, padded)),
        Matmul(x, matrix, out, vector, extra if residual else None),
    )
    program = Program(ops, len(ops), 1, 1, 16, 1, N)
    return Product(backend.bind(program, [tiny_pool()], Limits(MOST, MOST, 1)), N)


@pytest.mark.parametrize(("dtype", "N", "K"), CASES)
def test_as_if_it_were_unpacked(backend: CpuBackend, one_thread: CpuBackend, dtype: str, N: int, K: int) -> None:
    """A row alone over the unpacked matrix is the truth for every batch over the packed one."""
    packed = weight(dtype, N, K, scale=2 * K**-0.5)
    plain = converted(backend, packed)
    assert same_bits(plain.data, unpacked(packed))  # type: ignore[arg-type]
    over_plain = product(one_thread, plain)
    alone = np.concatenate([over_plain([row]) for row in range(MOST)])
    assert np.abs(alone - product(ReferenceBackend(), packed)(list(range(MOST)))).max() < 4e-6
    over_packed, on_one = product(backend, packed), product(one_thread, packed)
    order = np.random.RandomState(N).permutation(MOST)
    for count in BATCHES:
        rows = order[:count].tolist()
        assert same_bits(over_packed(rows), alone[rows]), count
        assert same_bits(on_one(rows), alone[rows]), count
        assert same_bits(over_packed(list(range(count))), alone[:count]), count
    for row in range(MOST):
        assert same_bits(over_packed([row]), alone[row : row + 1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.integers(0, MOST - 1), min_size=1, max_size=MOST), N=st.integers(1, 130), steps=st.integers(1, 8),
    dtype=st.sampled_from(DTYPES), bias=st.booleans(), residual=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_batch_of_any_shape(
    backend: CpuBackend, rows: list[int], N: int, steps: int, dtype: str, bias: bool, residual: bool, seed: int
) -> None:
    packed = weight(dtype, N, steps * BLOCK_TYPES[dtype][0], scale=0.1, seed=seed)
    found, expected = (
        product(backend, w, bias=bias, residual=residual)(rows) for w in (packed, converted(backend, packed))
    )
    assert same_bits(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 30])
def test_any_bytes(backend: CpuBackend, dtype: str, count: int) -> None:
    """Scales of every finite size: nothing in unpacking may round or overflow that does not in float32."""
    packed = Weight(any_blocks(dtype, 40, 2), dtype)  # type: ignore[arg-type]
    rows = list(range(count))
    found, expected = (
        product(backend, w, bias=False, residual=False)(rows) for w in (packed, converted(backend, packed))
    )
    assert np.isfinite(found).all() and same_bits(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 6, 50])
def test_these_comparisons_can_fail(backend: CpuBackend, dtype: str, count: int) -> None:
    """Two blocks of one weight row change places: that output differs, for every batch, and no other does."""
    numbers_a_block, size = BLOCK_TYPES[dtype]
    packed = weight(dtype, 33, 2 * numbers_a_block)
    swapped = packed.data.copy()
    swapped[13] = np.roll(swapped[13].reshape(2, size), 1, axis=0).reshape(-1)
    rows = list(range(count))
    right, wrong = (
        product(backend, Weight(data, packed.dtype))(rows)
        for data in (packed.data, swapped)  # type: ignore[arg-type]
    )
    differs = right.view(np.uint32) != wrong.view(np.uint32)
    assert differs[:, 13].all() and differs.sum() == count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_embed_is_exact(backend: CpuBackend, dtype: str, learned: bool, scale: float) -> None:
    """A token's row as the gguf package unpacks it, scaled, plus its position's: equal to the reference."""
    K = 512 if BLOCK_TYPES[dtype][0] == 256 else 96
    table = weight(dtype, 60, K)
    op = Embed(table, Buffer("x", K), scale, plain_weight(numbers(2, 60, K)) if learned else None)
    batch = row_batch([5, 59, 0, 5, 17, 3, 2, 1, 33])
    found, expected = (run_ops(b, [op], batch, K) for b in (backend, ReferenceBackend()))
    assert same_bits(found, expected)
    if not learned:
        assert same_bits(found, (unpacked(table) * np.float32(scale))[batch.tokens])
