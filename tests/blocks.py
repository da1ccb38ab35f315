"""Block-quantised rows made of random bytes, for every type: the gguf package cannot quantise to all of them."""

from __future__ import annotations

import zlib
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from kvist.kernels.program import BLOCK_TYPES, Backend, Floats, Weight

SCALES = {"q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q4_k": [0, 2], "q6_k": [208]}
"""Where a block's float16 scales lie: of the numbers, then what is added to all of them."""

LARGEST = {"q8_0": [128], "q4_0": [8], "q4_1": [15, 1], "q4_k": [15 * 63, 63], "q6_k": [32 * 128]}
"""What they are multiplied with at most."""

Bytes = npt.NDArray[np.uint8]


def with_scales(dtype: str, data: Bytes, halves: list[npt.NDArray[Any]]) -> Bytes:
    """Blocks (rows, blocks, bytes) with these float16 scales (rows, blocks), as rows of bytes."""
    for at, half in zip(SCALES[dtype], halves, strict=True):
        data[:, :, at : at + 2] = half.astype(np.float16)[..., None].view(np.uint8)
    return np.ascontiguousarray(data.reshape(len(data), -1))


def any_blocks(dtype: str, rows: int, blocks: int, seed: int = 7) -> Bytes:
    """Random bytes; float16 scales of every finite size and sign, subnormal ones too."""
    rng = np.random.RandomState(seed)
    data = rng.randint(0, 256, (rows, blocks, BLOCK_TYPES[dtype][1])).astype(np.uint8)
    bits = [rng.randint(0, 0x7C00, (rows, blocks)) | rng.randint(0, 2, (rows, blocks)) << 15 for _ in SCALES[dtype]]
    return with_scales(dtype, data, [b.astype(np.uint16).view(np.float16) for b in bits])


def blocks(dtype: str, rows: int, columns: int, scale: float = 1.0, seed: int = 7) -> Bytes:
    """Rows that look like a model's: random bytes, numbers up to about `scale`, their mean near zero."""
    rng = np.random.RandomState(seed)
    numbers, size = BLOCK_TYPES[dtype]
    shape = (rows, columns // numbers)
    data = rng.randint(0, 256, (*shape, size)).astype(np.uint8)
    halves = [scale / most * rng.uniform(0.5, 1.0, shape) for most in LARGEST[dtype]]
    if dtype == "q4_1":
        halves[1] = -halves[0] * 7.5  # x = d q + m
    return with_scales(dtype, data, halves)


def weight(dtype: str, rows: int, columns: int, scale: float = 1.0, seed: int = 7) -> Weight:
    """The same as a matrix of a program."""
    return Weight(blocks(dtype, rows, columns, scale, seed), dtype)  # type: ignore[arg-type]


def converted(backend: Backend, source: Weight) -> Weight:
    """The matrix as float32, unpacked by the backend."""
    out = Weight(np.full((source.rows, source.columns), 77, np.float32), "f32")
    backend.convert([(source, out)])
    return out


def unpacked(source: Weight) -> Floats:
    """The matrix as float32, unpacked by the gguf package, whose authors made the formats."""
    made: Floats = gguf.quants.dequantize(source.data, gguf.GGMLQuantizationType[source.dtype.upper()])
    return made


def held_as(array: Floats, kind: gguf.GGMLQuantizationType) -> npt.NDArray[Any]:
    """A matrix as a file holds it. The gguf package cannot quantise to Q4_K and Q6_K: those are random bytes of that size."""
    if kind.name not in ("Q4_K", "Q6_K"):
        return gguf.quants.quantize(array, kind)
    return blocks(kind.name.lower(), *array.shape, 2.5 * float(array.std()), zlib.crc32(array.tobytes()))
