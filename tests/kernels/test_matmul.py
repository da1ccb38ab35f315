"""Matmul: close to the reference for every shape, and a row gives the same bits in any batch, on any number of
threads.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Backend, Buffer, Floats, Matmul
from kvist.kernels.reference import ReferenceBackend
from ops import fill, numbers, row_batch, run_ops, same_bits, weight

DTYPES = ("f32", "f16", "bf16")
ROWS = (
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
    191,
    193,
    200,
)  # around every tile, panel and piece


def product(
    backend: Backend,
    rows: list[int],
    N: int,
    K: int,
    dtype: str,
    *,
    bias: bool = False,
    residual: str = "none",
    seed: int = 0,
) -> Floats:
    """Rows (by number) of a fixed random matrix times a fixed random weight, (rows, N)."""
    x, padded = Buffer("x", K), -(-N // 16) * 16
    out = Buffer("out", padded)
    extra = {"none": None, "other": Buffer("extra", padded), "out": out}[residual]
    ops = [fill(x, numbers(seed + 1, 200, K))]
    if extra is not None:
        ops.append(fill(extra, numbers(seed + 2, 200, padded)))
    vector = np.pad(numbers(seed + 3, N), (0, padded - N)) if bias else None
    matrix = weight(numbers(seed + 4, N, K, scale=K**-0.5), dtype)
    ops.append(Matmul(x, matrix, out, vector, extra))
    return run_ops(backend, ops, row_batch(rows), N)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("N", "K"),
    [(1, 16), (7, 48), (8, 64), (31, 576), (33, 16), (97, 1536), (8, 784), (20, 1552), (128, 2048), (301, 64)],
)
def test_close_to_the_reference(backend: CpuBackend, dtype: str, N: int, K: int) -> None:
    for count, residual in ((1, "none"), (6, "other"), (50, "out"), (200, "other")):
        rows = list(range(count))
        found, expected = (
            product(b, rows, N, K, dtype, bias=count > 1, residual=residual) for b in (backend, ReferenceBackend())
        )
        assert found.shape == expected.shape == (count, N)
        assert np.abs(found - expected).max() < 4e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "K"), [(5, 16), (105, 576), (9, 784), (64, 2048)])
def test_a_row_has_the_same_bits_in_any_batch(
    backend: CpuBackend, one_thread: CpuBackend, dtype: str, N: int, K: int
) -> None:
    options = {"bias": True, "residual": "other"}
    alone = np.concatenate([product(backend, [row], N, K, dtype, **options) for row in range(200)])  # type: ignore[arg-type]
    for count in ROWS:
        assert same_bits(product(backend, list(range(count)), N, K, dtype, **options), alone[:count])  # type: ignore[arg-type]
    assert same_bits(product(one_thread, list(range(200)), N, K, dtype, **options), alone)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.integers(0, 199), min_size=1, max_size=200), N=st.integers(1, 130), steps=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES), bias=st.booleans(), residual=st.sampled_from(["none", "other", "out"]),
)  # fmt: skip
def test_any_batch_of_any_shape(
    backend: CpuBackend, rows: list[int], N: int, steps: int, dtype: str, bias: bool, residual: str
) -> None:
    found = product(backend, rows, N, 16 * steps, dtype, bias=bias, residual=residual)
    row = rows[-1]
    assert same_bits(found[-1:], product(backend, [row], N, 16 * steps, dtype, bias=bias, residual=residual))
    if len(rows) < 20:
        truth = product(ReferenceBackend(), rows, N, 16 * steps, dtype, bias=bias, residual=residual)
        assert np.abs(found - truth).max() < 4e-6


def test_the_order_of_the_sum_is_the_contract_s(backend: CpuBackend) -> None:
    """Sixteen lanes, each summed over k in ascending order with one rounding a step, folded i + i+8, then +4, +2,
    +1.
    """
    K, x, w = 160, numbers(5, 3, 160), numbers(6, 40, 160)
    found = run_ops(
        backend,
        [fill(Buffer("x", K), x), Matmul(Buffer("x", K), weight(w), Buffer("out", 48))],
        row_batch([0, 1, 2]),
        40,
    )
    lanes = np.zeros((3, 40, 16), np.float32)
    for k in range(0, K, 16):
        exact = x[:, None, k : k + 16].astype(np.longdouble) * w[None, :, k : k + 16].astype(np.longdouble)
        lanes = (exact + lanes.astype(np.longdouble)).astype(np.float32)
    for width in (8, 4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    assert same_bits(found, lanes[..., 0].copy())


def test_nothing_is_written_beside_the_output(backend: CpuBackend) -> None:
    """Columns past the weight's rows keep what they held."""
    x, out, N = Buffer("x", 32), Buffer("out", 32), 19
    before = numbers(7, 50, 32)
    ops = [fill(x, numbers(8, 50, 32)), fill(out, before), Matmul(x, weight(numbers(9, N, 32)), out)]
    found = run_ops(backend, ops, row_batch(list(range(50))), 32)
    assert same_bits(found[:, N:].copy(), before[:, N:].copy())
    assert not (found[:, :N] == before[:, :N]).any()
