"""How weights lie in memory, and how a block of them becomes vectors of sixteen float32 lanes, in registers.

A row is a whole number of blocks; a block's numbers come out as vectors of sixteen, in order. One cell of a drawing is
a byte; ``lo`` and ``hi`` are the lower and the upper four bits of each::

    f32, f16, bf16   sixteen numbers
    q8_0   [d d][q0 .. q31]                              x = d * q
    q4_0   [d d][16 bytes: lo = q0 .. q15, hi = q16 ..]  x = d * (q - 8)
    q4_1   [d d][m m][16 bytes: as q4_0]                 x = d * q + m
    q4_k   [d d][m m][12: eight 6-bit scales s, minima t][128: lo, hi of 32 bytes = sub-blocks 2i, 2i + 1]
                                                         x = (d * s) * q - (m * t)
    q6_k   [128: lower four bits][64: upper two][16 signed scales s][d d]      x = (d * s) * (q - 32)

Every product is exact in float32 (a scale has 11 significant bits, a q at most 7, an s at most 7), so at most one
rounding happens, in the addition: a matrix gives the same bits whether it is unpacked here, into registers, or was
unpacked to float32 when it was loaded. Formats: ggml, ``ggml-quants.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from kvist.kernels.cpu.vector import F16, F32, I8, I64, V16F, V16I, emit_fma, emit_load, emit_splat, pointer
from kvist.kernels.program import BLOCK_TYPES

V16B = ir.VectorType(I8, 16)
Emit = Callable[[Any, Any], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class Format:
    """A type of weights: `vectors` sixteens and `size` bytes a block; emit(builder, address) yields the vectors."""

    name: str
    vectors: int
    size: int
    emit: Emit


def _all(value: int, kind: Any = V16I) -> Any:
    return ir.Constant(kind, [value] * 16)


def _half(builder: Any, block: Any, at: int) -> Any:
    """The float16 at byte `at`, as float32."""
    return builder.fpext(builder.load(pointer(builder, block, F16, I64(at)), align=1), F32)


def _bytes(builder: Any, block: Any, at: int) -> Any:
    """Sixteen bytes."""
    return builder.load(pointer(builder, block, V16B, I64(at)), align=1)


def _floats(builder: Any, integers: Any) -> Any:
    return builder.sitofp(integers, V16F)


def _float_type(name: str) -> Emit:
    def emit(builder: Any, block: Any) -> Iterator[Any]:
        yield emit_load(builder, block, name)

    return emit


def _q8_0(builder: Any, block: Any) -> Iterator[Any]:
    d = emit_splat(builder, _half(builder, block, 0))
    for at in (2, 18):
        yield builder.fmul(_floats(builder, builder.sext(_bytes(builder, block, at), V16I)), d)


def _nibbles(builder: Any, block: Any, at: int) -> tuple[Any, Any]:
    """Lower and upper halves of sixteen bytes, as integers."""
    wide = builder.zext(_bytes(builder, block, at), V16I)
    return builder.and_(wide, _all(15)), builder.lshr(wide, _all(4))


def _q4_0(builder: Any, block: Any) -> Iterator[Any]:
    d = emit_splat(builder, _half(builder, block, 0))
    for q in _nibbles(builder, block, 2):
        yield builder.fmul(_floats(builder, builder.sub(q, _all(8))), d)


def _q4_1(builder: Any, block: Any) -> Iterator[Any]:
    d, m = (emit_splat(builder, _half(builder, block, at)) for at in (0, 2))
    for q in _nibbles(builder, block, 4):
        yield emit_fma(builder, _floats(builder, q), d, m)


def _q4_k(builder: Any, block: Any) -> Iterator[Any]:
    def scale(at: int) -> Any:
        return builder.zext(builder.load(pointer(builder, block, I8, I64(4 + at))), I64)

    def number(integer: Any) -> Any:
        return builder.sitofp(integer, F32)

    d, m = _half(builder, block, 0), _half(builder, block, 2)
    for j in range(8):
        if j < 4:
            s, t = (builder.and_(scale(at), I64(63)) for at in (j, j + 4))
        else:  # four low bits here, the two high ones above the first eight scales
            both, high = scale(j + 4), (builder.shl(builder.lshr(scale(at), I64(6)), I64(4)) for at in (j - 4, j))
            s, t = (builder.or_(low, up) for low, up in zip(
                (builder.and_(both, I64(15)), builder.lshr(both, I64(4))), high, strict=True
            ))  # fmt: skip
        ds = emit_splat(builder, builder.fmul(d, number(s)))
        minus = emit_splat(builder, builder.fneg(builder.fmul(m, number(t))))
        for part in (0, 16):
            wide = builder.zext(_bytes(builder, block, 16 + j // 2 * 32 + part), V16I)
            q = builder.lshr(wide, _all(4)) if j % 2 else builder.and_(wide, _all(15))
            yield emit_fma(builder, _floats(builder, q), ds, minus)


def _q6_k(builder: Any, block: Any) -> Iterator[Any]:
    d = _half(builder, block, 208)
    for j in range(16):  # vectors of sixteen: half of the block, which of its four quarters, which sixteen of 32
        half, quarter, part = j // 8, j % 8 // 2, j % 2
        low = builder.zext(_bytes(builder, block, half * 64 + quarter % 2 * 32 + part * 16), V16I)
        low = builder.lshr(low, _all(4)) if quarter >= 2 else builder.and_(low, _all(15))
        high = builder.zext(_bytes(builder, block, 128 + half * 32 + part * 16), V16I)
        high = builder.shl(builder.and_(builder.lshr(high, _all(2 * quarter)), _all(3)), _all(4))
        s = builder.sext(builder.load(pointer(builder, block, I8, I64(192 + j))), I64)
        ds = emit_splat(builder, builder.fmul(d, builder.sitofp(s, F32)))
        yield builder.fmul(_floats(builder, builder.sub(builder.or_(low, high), _all(32))), ds)


_EMIT: dict[str, Emit] = {"q8_0": _q8_0, "q4_0": _q4_0, "q4_1": _q4_1, "q4_k": _q4_k, "q6_k": _q6_k}
FORMATS: dict[str, Format] = {
    name: Format(name, 1, size, _float_type(name)) for name, size in (("f32", 64), ("f16", 32), ("bf16", 32))
} | {name: Format(name, numbers // 16, size, _EMIT[name]) for name, (numbers, size) in BLOCK_TYPES.items()}
