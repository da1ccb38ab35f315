"""Converting weights with all threads: bit for bit the plain NumPy version; and the search for NaN and infinity."""

from __future__ import annotations

import numpy as np
import pytest

from blocks import SCALES, any_blocks, weight
from kvist.cache.codec import codec
from kvist.kernels.cpu.abi import CONVERT_ROWS, SEARCH_BLOCKS
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import BLOCK_TYPES, Backend, Weight
from kvist.kernels.reference import ReferenceBackend
from kvist.models.weights import TensorInfo
from kvist.models.weights.unpack import unpack
from ops import numbers

FLOATS = ("f32", "f16", "bf16")


def held(dtype: str, data: np.ndarray) -> Weight:
    return Weight(data, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("to", FLOATS)
@pytest.mark.parametrize("dtype", [*FLOATS, *BLOCK_TYPES])
def test_convert_equals_the_plain_version(backend: CpuBackend, one_thread: CpuBackend, dtype: str, to: str) -> None:
    """Jobs of all sizes in one call, around what a thread takes at a time."""
    assert CONVERT_ROWS == 64
    jobs, expected = [], []
    for rows, blocks in ((1, 1), (63, 2), (64, 1), (65, 3), (200, 1)):
        if dtype in BLOCK_TYPES:
            raw = any_blocks(dtype, rows, blocks)
        else:
            raw = codec(dtype).encode(numbers(3, rows, 16 * blocks, scale=1e4) * numbers(4, rows, 16 * blocks))
        source = held(dtype, raw)
        plain = unpack(TensorInfo("t", dtype, (rows, source.columns)), raw)
        expected.append(codec(to).encode(plain))
        jobs.append((source, held(to, np.zeros(plain.shape, codec(to).dtype))))
    makers: list[Backend] = [backend, one_thread, ReferenceBackend()]
    for made in makers:
        for _, out in jobs:
            out.data[...] = 77
        made.convert(jobs)
        for (_, out), right in zip(jobs, expected, strict=True):
            assert out.data.tobytes() == right.tobytes()
    assert all((right != 0).mean() > 0.4 for right in expected if right.size > 100)


@pytest.mark.parametrize("dtype", list(BLOCK_TYPES))
def test_a_change_of_any_byte_is_seen(backend: CpuBackend, dtype: str) -> None:
    """No byte of a block is left unread, and each changes numbers of its own block only."""
    columns, size = BLOCK_TYPES[dtype]
    raw = np.tile(weight(dtype, 1, 3 * columns).data, (size + 1, 1))
    for at in range(size):
        raw[at, size + at] ^= 0x11  # one row for each byte of its second block; the last row stays
    out = held("f32", np.zeros((size + 1, 3 * columns), np.float32))
    backend.convert([(held(dtype, raw), out)])
    differs = (out.data[:-1].view(np.uint32) != out.data[-1].view(np.uint32)).reshape(size, 3, columns)
    assert differs[:, 1].any(-1).all() and not differs[:, [0, 2]].any()


def test_no_jobs(backend: CpuBackend) -> None:
    backend.convert([])
    assert backend.find_nonfinite([]) == []


@pytest.mark.parametrize("dtype", FLOATS)
def test_find_nonfinite(backend: CpuBackend, dtype: str) -> None:
    """Wherever it is, whatever its sign, beside numbers as large as the type has; sound weights are not named."""
    c = codec(dtype)
    largest = c.decode(c.encode(np.array([65504.0 if dtype == "f16" else 3.38e38], np.float32)))[0]
    sound = c.encode(
        np.concatenate([numbers(1, 64), np.full(64, largest), np.full(64, -largest), np.full(64, 1e-40)]).astype(
            np.float32
        )
    )
    clean = held(dtype, np.resize(sound, (3, 1024)))
    assert backend.find_nonfinite([clean] * 3) == []
    piece = 16 * SEARCH_BLOCKS
    size = piece + 1024
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        for place in (0, 15, 16, 777, piece - 1, piece, size - 1):
            data = np.resize(sound, (1, size)).copy()
            data[0, place] = c.encode(np.array([value], np.float32))[0]
            bad = held(dtype, data)
            assert backend.find_nonfinite([clean, bad, clean, bad]) == [1, 3]


@pytest.mark.parametrize("dtype", list(BLOCK_TYPES))
def test_find_nonfinite_scales(backend: CpuBackend, one_thread: CpuBackend, dtype: str) -> None:
    """Any scale of any block, also of a block whose numbers are all zero; sound bytes of any kind are not named."""
    size = BLOCK_TYPES[dtype][1]
    clean, plain = held(dtype, any_blocks(dtype, 5, 4)), held("f16", np.ones((1, 16), np.float16))
    rows = 3
    blocks = (SEARCH_BLOCKS + 2 * rows) // rows  # the last row lies in another piece than the first
    sound = any_blocks(dtype, rows, blocks)
    assert backend.find_nonfinite([clean, plain, held(dtype, sound)]) == []
    total = rows * blocks
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        for at in SCALES[dtype]:
            for block in (0, 1, blocks, SEARCH_BLOCKS - 1, SEARCH_BLOCKS, total - 1):
                data = sound.reshape(total, size).copy()
                if block % 2 == 0:
                    data[block] = 0
                data[block, at : at + 2] = np.array([value], np.float16).view(np.uint8)
                bad = held(dtype, data.reshape(rows, -1))
                for made in (backend, one_thread):
                    assert made.find_nonfinite([bad, clean, bad, plain]) == [0, 2], (value, at, block)
