"""Block-quantised weights of a GGUF file -> rows of f32, f16 or bf16; the search for NaN and infinity.

The blocks' layouts are drawn in `kvist.models.weights.unpack`, the plain NumPy version these are compared with, bit
for bit. A piece of work is 64 rows.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import arg, get_f16, get_u8, put_f32, put_i64
from kvist.kernels.cpu.tile import ITEMSIZE
from kvist.kernels.cpu.vector import fma, reduce_add, splat
from kvist.kernels.cpu.vector_memory import load, load_f32, store

ROWS_A_PIECE = 64
NUMBERS_A_PIECE = 1 << 18  # of the search for what is not finite


@jit
def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


@jit
def _q8_0(block: int, out: int) -> None:
    d = get_f16(block)
    for i in range(32):
        put_f32(out + i * 4, d * _signed(get_u8(block + 2 + i)))


@jit
def _q4_0(block: int, out: int) -> None:
    d = get_f16(block)
    for i in range(16):
        q = get_u8(block + 2 + i)
        put_f32(out + i * 4, d * ((q & 15) - 8))
        put_f32(out + 64 + i * 4, d * ((q >> 4) - 8))


@jit
def _q4_1(block: int, out: int) -> None:
    d, m = get_f16(block), get_f16(block + 2)
    for i in range(16):
        q = get_u8(block + 4 + i)
        put_f32(out + i * 4, d * (q & 15) + m)
        put_f32(out + 64 + i * 4, d * (q >> 4) + m)


@jit
def _q4_k(block: int, out: int) -> None:
    d, dmin, scales, quants = get_f16(block), get_f16(block + 2), block + 4, block + 16
    for j in range(8):
        if j < 4:
            scale, minimum = get_u8(scales + j) & 63, get_u8(scales + j + 4) & 63
        else:
            packed = get_u8(scales + j + 4)
            scale = (packed & 15) | (get_u8(scales + j - 4) >> 6 << 4)
            minimum = (packed >> 4) | (get_u8(scales + j) >> 6 << 4)
        ds, ms = d * scale, dmin * minimum
        for i in range(32):
            q = get_u8(quants + j // 2 * 32 + i)
            q = q >> 4 if j % 2 else q & 15
            put_f32(out + (j * 32 + i) * 4, ds * q - ms)


@jit
def _q6_k(block: int, out: int) -> None:
    low, high, scales, d = block, block + 128, block + 192, get_f16(block + 208)
    for j in range(8):  # 32 numbers each
        half, part = j // 4, j % 4
        for i in range(32):
            q = get_u8(low + half * 64 + part % 2 * 32 + i)
            q = q >> 4 if part >= 2 else q & 15
            q |= (get_u8(high + half * 32 + i) >> (2 * part) & 3) << 4
            scale = d * _signed(get_u8(scales + half * 8 + part * 2 + i // 16))
            put_f32(out + (j * 32 + i) * 4, scale * (q - 32))


@jit
def _block(kind: int, block: int, out: int) -> None:
    if kind == 0:
        _q8_0(block, out)
    elif kind == 1:
        _q4_0(block, out)
    elif kind == 2:
        _q4_1(block, out)
    elif kind == 3:
        _q4_k(block, out)
    else:
        _q6_k(block, out)


def make_unpack(dtype: str) -> Any:
    """The kernel that unpacks to `dtype`.

    Arguments: source, kind (abi.PACKED), rows, K, numbers a block, bytes a block, out, bytes a number.
    """
    put = store[dtype]

    @jit
    def unpack(ctx: int, op: int, piece: int, scratch: int) -> None:
        source, kind, rows, K = arg(op, 0), arg(op, 1), arg(op, 2), arg(op, 3)
        numbers, size, out, itemsize = arg(op, 4), arg(op, 5), arg(op, 6), arg(op, 7)
        for row in range(piece * ROWS_A_PIECE, min(rows, (piece + 1) * ROWS_A_PIECE)):
            for b in range(K // numbers):
                _block(kind, source + (row * (K // numbers) + b) * size, scratch)
                target = out + (row * K + b * numbers) * itemsize
                for d in range(0, numbers, 16):
                    put(target + d * itemsize, load_f32(scratch + d * 4))

    return unpack


def make_find_nonfinite(dtype: str) -> Any:
    """Set a flag if a piece holds a NaN or an infinity: those times 0 are NaN, and NaN stays in a sum.

    Arguments: address, count (a multiple of 16), address of the int64 flag.
    """
    get, itemsize = load[dtype], ITEMSIZE[dtype]

    @jit
    def find_nonfinite(op: int, piece: int) -> None:
        start, count = arg(op, 0), arg(op, 1)
        total, zero = splat(0.0), splat(0.0)
        for i in range(piece * NUMBERS_A_PIECE, min(count, (piece + 1) * NUMBERS_A_PIECE), 16):
            total = fma(get(start + i * itemsize), zero, total)
        if reduce_add(total) != 0.0:  # NaN differs from everything
            put_i64(arg(op, 2), 1)

    return find_nonfinite
