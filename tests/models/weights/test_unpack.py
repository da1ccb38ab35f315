"""Unpacking quantised blocks: bit for bit what the `gguf` package computes, on any bytes."""

import gguf
import numpy as np
import pytest

from kvist.errors import InternalError
from kvist.models.weights import BLOCK_TYPES, TensorInfo, unpack, unpack_chunks


def random_rows(dtype: str, rows: int, blocks: int) -> np.ndarray:
    """Rows of random bytes whose float16 scales are finite."""
    rng = np.random.default_rng(7)
    size = BLOCK_TYPES[dtype][1]
    data = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    halves = {"q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q4_k": [0, 2], "q6_k": [208]}[dtype]
    for at in halves:
        scale = rng.normal(0, 0.1, (rows, blocks, 1)).astype(np.float16)
        data[:, :, at : at + 2] = scale.view(np.uint8).reshape(rows, blocks, 2)
    return data.reshape(rows, blocks * size)


@pytest.mark.parametrize("dtype", sorted(BLOCK_TYPES))
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (5, 3), (64, 2)])
def test_equals_the_gguf_package(dtype: str, rows: int, blocks: int) -> None:
    raw = random_rows(dtype, rows, blocks)
    info = TensorInfo("t", dtype, (rows, blocks * BLOCK_TYPES[dtype][0]))
    expected = gguf.quants.dequantize(raw, getattr(gguf.GGMLQuantizationType, dtype.upper()))
    found = unpack(info, raw)
    assert found.dtype == np.float32 and found.shape == info.shape
    assert np.array_equal(found.view(np.uint32), expected.reshape(info.shape).view(np.uint32))


@pytest.mark.parametrize("dtype", sorted(BLOCK_TYPES))
def test_chunks_are_the_same_bits(dtype: str) -> None:
    raw = random_rows(dtype, 10, 1)
    info = TensorInfo("t", dtype, (10, BLOCK_TYPES[dtype][0]))
    chunks = list(unpack_chunks(info, raw, rows=3))
    assert [start for start, _ in chunks] == [0, 3, 6, 9]
    assert np.array_equal(np.concatenate([block for _, block in chunks]), unpack(info, raw))


def test_plain_types() -> None:
    values = np.array([[1.0, -2.5], [0.0, 3.0e-5]], np.float32)
    assert np.array_equal(unpack(TensorInfo("t", "f32", (2, 2)), values), values)
    assert np.array_equal(unpack(TensorInfo("t", "f16", (2, 2)), values.astype(np.float16)), values.astype(np.float16))
    brain = np.array([0x3F80, 0xC020], np.uint16)
    assert unpack(TensorInfo("t", "bf16", (2,)), brain).tolist() == [1.0, -2.5]
    assert unpack(TensorInfo("t", "f32", ()), np.array(2.0, np.float32)).shape == ()
    assert unpack(TensorInfo("t", "f32", (0, 4)), np.empty((0, 4), np.float32)).shape == (0, 4)
    assert unpack(TensorInfo("t", "f32", (2, 0)), np.empty((2, 0), np.float32)).shape == (2, 0)
    three = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(unpack(TensorInfo("t", "f32", (2, 3, 4)), three), three)
    with pytest.raises(InternalError, match="q9"):
        unpack(TensorInfo("t", "q9", (1, 1)), values)
