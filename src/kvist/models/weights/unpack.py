"""Quantised blocks to float32 in plain NumPy: the truth that a compiled kernel is compared with.

Every format cuts a row into blocks (32 or 256 elements) that share a scale. In the drawings one cell is a byte unless
it says otherwise; ``lo`` and ``hi`` are the lower and upper four bits of a byte. Formats: ggml, ``ggml-quants.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kvist.errors import InternalError
from kvist.models.weights.tensors import BLOCK_TYPES, TensorInfo

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

CHUNK_BYTES = 4 << 20  # float32 bytes made at a time


def unpack(info: TensorInfo, raw: npt.NDArray[Any]) -> Float32:
    """The whole tensor as float32, in its shape; `raw` as `TensorFile.raw` gives it."""
    out = np.empty((info.rows, info.cols), np.float32)
    for start, block in unpack_chunks(info, raw):
        out[start : start + len(block)] = block
    return out.reshape(info.shape)


def unpack_chunks(info: TensorInfo, raw: npt.NDArray[Any], rows: int | None = None) -> Iterator[tuple[int, Float32]]:
    """The tensor as float32 a few rows at a time: pairs of (first row, array (n, cols)).

    `rows` is the number of rows a chunk, by default so many that a chunk has about 4 MiB.
    """
    rows = rows or max(1, CHUNK_BYTES // (4 * max(1, info.cols)))
    table = raw.reshape(info.rows, -1) if raw.size else raw.reshape(info.rows, info.row_bytes)
    for start in range(0, info.rows, rows):
        yield start, _to_float32(info.dtype, table[start : start + rows])


def _to_float32(dtype: str, rows: npt.NDArray[Any]) -> Float32:
    """Rows of one type as float32: (n, cols)."""
    if dtype in ("f32", "f16"):
        return rows.astype(np.float32)
    if dtype == "bf16":
        return (rows.astype(np.uint32) << 16).view(np.float32)
    if dtype not in BLOCK_TYPES:
        raise InternalError(f"no way to unpack the tensor type {dtype}")
    blocks = rows.reshape(-1, BLOCK_TYPES[dtype][1])
    return UNPACKERS[dtype](blocks).reshape(len(rows), -1)


def _half(blocks: Bytes, at: int) -> Float32:
    """The float16 at byte `at` of every block, as float32 (n, 1)."""
    halves: Float32 = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)
    return halves


def unpack_q8_0(blocks: Bytes) -> Float32:
    """Q8_0, 34 bytes for 32 elements; value = d q. Takes (n, 34), gives (n, 32).

    ::

        0        2                        34
        | d f16  | q0 q1 ... q31 as int8  |
    """
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """(n, m) bytes to (n, 2 m) values of 0 to 15: all the lower halves, then all the upper ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def unpack_q4_0(blocks: Bytes) -> Float32:
    """Q4_0, 18 bytes for 32 elements; value = d (q - 8). Takes (n, 18), gives (n, 32).

    ::

        0        2                                   18
        | d f16  | lo q0, hi q16 | ... | lo q15, hi q31 |
    """
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8)).astype(np.float32)


def unpack_q4_1(blocks: Bytes) -> Float32:
    """Q4_1, 20 bytes for 32 elements; value = d q + m. Takes (n, 20), gives (n, 32).

    ::

        0        2        4                                   20
        | d f16  | m f16  | lo q0, hi q16 | ... | lo q15, hi q31 |
    """
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _scales_and_mins(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The eight 6-bit scales and eight 6-bit minima of a Q4_K block: (n, 12) bytes to two (n, 8).

    ::

        byte     0 .. 3                  4 .. 7                  8 .. 11
        bits 0-5 scale 0 .. 3            min 0 .. 3              0-3: scale 4 .. 7, lower four bits
        bits 6-7 scale 4 .. 7, upper two min 4 .. 7, upper two   4-7: min   4 .. 7, lower four bits
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 2) & 48)], axis=1)
    mins = np.concatenate([second & 63, (third >> 4) | ((second >> 2) & 48)], axis=1)
    return scales, mins


def unpack_q4_k(blocks: Bytes) -> Float32:
    """Q4_K, 144 bytes for 256 elements in 8 groups of 32; value = (d scale_g) q - (dmin min_g). (n, 144) to (n, 256).

    ::

        0        2           4                16                                               144
        | d f16  | dmin f16  | scales, mins   | 32 bytes: lo group 0, hi group 1 | ... groups 6, 7 |
    """
    n = len(blocks)
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    scale = (_half(blocks, 0) * scales.astype(np.float32)).reshape(n, 8, 1)
    low = (_half(blocks, 2) * mins.astype(np.float32)).reshape(n, 8, 1)
    pairs = blocks[:, 16:].reshape(n, 4, 1, 32)
    q = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(n, 8, 32)
    return (scale * q.astype(np.float32) - low).reshape(n, 256)


def unpack_q6_k(blocks: Bytes) -> Float32:
    """Q6_K, 210 bytes for 256 elements in 16 groups of 16; value = (d scale_g) (q - 32). (n, 210) to (n, 256).

    ::

        0                     128                  192               208      210
        | lower four bits     | upper two bits     | 16 scales int8  | d f16  |

    The block is two halves of 128 elements; a half has 64 bytes of lower and 32 of upper bits. With i in 0 .. 31::

        element      lower four bits      upper two bits
        i            lo of byte i         bits 0-1 of byte i
        i + 32       lo of byte i + 32    bits 2-3 of byte i
        i + 64       hi of byte i         bits 4-5 of byte i
        i + 96       hi of byte i + 32    bits 6-7 of byte i
    """
    n = len(blocks)
    lower = blocks[:, :128].reshape(n, 2, 1, 64)
    lower = np.concatenate([lower & 15, lower >> 4], axis=2).reshape(n, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    upper = (blocks[:, 128:192].reshape(n, 2, 1, 32) >> shifts) & 3
    q = (lower | (upper << 4)).view(np.int8) - np.int8(32)
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scale.reshape(n, 16, 1) * q.reshape(n, 16, 16).astype(np.float32)).reshape(n, 256)


UNPACKERS: dict[str, Callable[[Bytes], Float32]] = {
    "q8_0": unpack_q8_0,
    "q4_0": unpack_q4_0,
    "q4_1": unpack_q4_1,
    "q4_k": unpack_q4_k,
    "q6_k": unpack_q6_k,
}
