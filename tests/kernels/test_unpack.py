"""Unpacking block-quantised weights with all threads: bit for bit the plain NumPy version; and the search for NaN and
infinity.
"""

from __future__ import annotations

import numpy as np
import pytest

from kvist.cache.codec import codec
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.cpu.unpack import NUMBERS_A_PIECE
from kvist.kernels.program import Packed, Weight
from kvist.models.weights import BLOCK_TYPES, TensorInfo
from kvist.models.weights.unpack import unpack
from ops import numbers

SCALES = {"q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q4_k": [0, 2], "q6_k": [208]}


def random_rows(dtype: str, rows: int, blocks: int) -> np.ndarray:
    """Random bytes; float16 scales of every finite size, subnormal ones too."""
    rng = np.random.RandomState(7)
    size = BLOCK_TYPES[dtype][1]
    data = rng.randint(0, 256, (rows, blocks, size)).astype(np.uint8)
    for at in SCALES[dtype]:
        bits = rng.randint(0, 0x7C00, (rows, blocks, 1)).astype(np.uint16) | (
            rng.randint(0, 2, (rows, blocks, 1)) << 15
        ).astype(np.uint16)
        data[:, :, at : at + 2] = bits.view(np.uint8).reshape(rows, blocks, 2)
    return np.ascontiguousarray(data.reshape(rows, blocks * size))


@pytest.mark.parametrize("to", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("dtype", sorted(BLOCK_TYPES))
def test_unpack_equals_the_plain_version(backend: CpuBackend, one_thread: CpuBackend, dtype: str, to: str) -> None:
    numbers_a_block, size = BLOCK_TYPES[dtype]
    jobs, expected = [], []
    for rows, blocks in ((1, 1), (63, 2), (64, 1), (65, 3), (200, 1)):
        raw = random_rows(dtype, rows, blocks)
        plain = unpack(TensorInfo("t", dtype, (rows, blocks * numbers_a_block)), raw)
        expected.append(codec(to).encode(plain))
        out = np.full(plain.shape, 77).astype(codec(to).dtype)
        jobs.append((Packed(raw, dtype, numbers_a_block, size), Weight(out, to)))  # type: ignore[arg-type]
    for made in (backend, one_thread):
        for _, weight in jobs:
            weight.data[:] = 0
        made.unpack(jobs)
        for (_, weight), right in zip(jobs, expected, strict=True):
            assert weight.data.tobytes() == right.tobytes()
    if to == "f32":
        assert any((right != 0).mean() > 0.5 for right in expected)


def test_no_jobs(backend: CpuBackend) -> None:
    backend.unpack([])
    assert backend.find_nonfinite([]) == []


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_find_nonfinite(backend: CpuBackend, dtype: str) -> None:
    """Wherever it is, whatever its sign, beside numbers as large as the type has; sound weights are not named."""
    c = codec(dtype)
    largest = c.decode(c.encode(np.array([65504.0 if dtype == "f16" else 3.38e38], np.float32)))[0]
    sound = c.encode(
        np.concatenate([numbers(1, 64), np.full(64, largest), np.full(64, -largest), np.full(64, 1e-40)]).astype(
            np.float32
        )
    )
    clean = Weight(np.resize(sound, (3, 1024)), dtype)  # type: ignore[arg-type]
    assert backend.find_nonfinite([clean] * 3) == []
    size = NUMBERS_A_PIECE + 1024
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        for place in (0, 15, 16, 777, NUMBERS_A_PIECE - 1, NUMBERS_A_PIECE, size - 1):
            data = np.resize(sound, (1, size)).copy()
            data[0, place] = c.encode(np.array([value], np.float32))[0]
            bad = Weight(data, dtype)  # type: ignore[arg-type]
            assert backend.find_nonfinite([clean, bad, clean, bad]) == [1, 3]
