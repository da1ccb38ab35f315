"""What the store writes into pages is what the codec encodes, bit for bit: all values that rounding could get wrong."""

from __future__ import annotations

import numpy as np
import pytest

from kvist.cache.pool import PagePool
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import BatchMetadata, Buffer, Floats, Limits, Program, RotaryStore
from ops import fill, tiny_pool

DIMS = 128


def special(kv: str) -> Floats:
    """Every stored pattern, the points half-way to the next one and the float32 numbers beside those; subnormals,
    overflow, infinities.
    """
    if kv == "f16":
        exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
        half = ((exact[:-1].astype(np.float64) + exact[1:].astype(np.float64)) / 2).astype(np.float32)
        half = np.append(half, np.float32(65520.0))
    else:
        exact = (np.arange(0, 0x7F80, 3, dtype=np.uint32) << 16).view(np.float32)
        half = (exact.view(np.uint32) + np.uint32(0x8000)).view(np.float32)
    beside = [np.nextafter(half, np.float32(0)), np.nextafter(half, np.float32(3.4e38))]
    largest = np.finfo(np.float32).max
    odd = [
        65504,
        65519.996,
        65520,
        65536,
        1e30,
        largest,
        np.inf,
        1e-45,
        1e-40,
        1.17e-38,
        2.0**-24,
        2.0**-25,
        2.0**-26,
        0.0,
    ]
    found = np.concatenate([exact, half, *beside, np.array(odd, np.float32)])
    return np.concatenate([found, -found])


def store(backend: CpuBackend, kv: str, values: Floats, page_size: int) -> tuple[PagePool, PagePool]:
    """Pages after a store of `values` (rows of DIMS) as K and as V, and pages that the codec wrote."""
    rows = len(values)
    q, k, v = Buffer("q", DIMS), Buffer("k", DIMS), Buffer("v", DIMS)
    ops = (fill(q, values), fill(k, values), fill(v, values[::-1]), RotaryStore(q, k, v, 1, None))
    pages = -(-rows // page_size)
    pool, truth = (tiny_pool(page_size, 1, DIMS, kv, pages, layers=3) for _ in range(2))
    program = Program((*ops, fill(q, values)), len(ops), 1, 1, DIMS, 3, DIMS)
    at = np.arange(rows, dtype=np.int32)
    backend.bind(program, [pool], Limits(rows, rows, 1)).run(BatchMetadata(at, at, at[None] // page_size, at, [], at))
    for page in range(pages):
        taken = (
            values[page * page_size : (page + 1) * page_size],
            values[::-1][page * page_size : (page + 1) * page_size],
        )
        truth.write(page, 1, 0, slice(0, len(taken[0])), *taken)
    return pool, truth


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("page_size", [16, 64])
def test_pages_hold_what_the_codec_encodes(backend: CpuBackend, kv: str, page_size: int) -> None:
    values = special(kv)
    found, expected = store(backend, kv, np.pad(values, (0, -len(values) % DIMS)).reshape(-1, DIMS), page_size)
    assert found.data.any()
    assert np.array_equal(found.data, expected.data)


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16"])
def test_nan_stays_nan(backend: CpuBackend, kv: str) -> None:
    patterns = [0x7FC00000, 0x7F800001, 0x7FBFFFFF, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7F80FFFF, 0x7F808000]
    values = np.resize(np.array(patterns, np.uint32).view(np.float32), (16, DIMS))
    found, _ = store(backend, kv, values, 16)
    assert np.isnan(found.read(0, 1, 0)).all(), "its payload may change"
