"""Sixteen words as 32 halves or 64 bytes: instructions that AVX2 has for one half of them, AVX-512 for all at once."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from kvist.kernels.cpu.vector import I8, I16, I32, LANES, external, has, shuffle

V32H, V64B = ir.VectorType(I16, 2 * LANES), ir.VectorType(I8, 4 * LANES)


def emit_pairs(builder: Any, a: Any, b: Any) -> Any:
    """Words: the sum of two products of signed 16 bits each."""
    return _emit_wide(builder, "pmadd.wd", "pmaddw.d.512", I16, I32, a, b)


def emit_byte_pairs(builder: Any, codes: Any, factors: Any) -> Any:
    """Of unsigned bytes and signed ones the sums of two products each, in 16 bits, which they fit."""
    return _emit_wide(builder, "pmadd.ub.sw", "pmaddubs.w.512", I8, I16, codes, factors)


def emit_shuffle_bytes(builder: Any, table: Any, places: Any) -> Any:
    """Of each sixteen bytes of `places`, 0 to 15, what stands there in the same sixteen of a table."""
    return _emit_wide(builder, "pshuf.b", "pshuf.b.512", I8, I8, table, places)


def _emit_wide(builder: Any, name: str, name_512: str, item: Any, made: Any, a: Any, b: Any) -> Any:
    """An instruction that makes of two vectors of `item` one of `made`: of 64 bytes at once or in two halves, or 32."""
    if _bits_of(a) == 256:
        return _emit_half(builder, name, item, made, a, b)
    if has("avx512bw"):
        narrow, wide = (ir.VectorType(kind, 512 // kind.width) for kind in (item, made))
        function = external(builder, f"llvm.x86.avx512.{name_512}", wide, [narrow] * 2)
        return builder.call(function, [builder.bitcast(a, narrow), builder.bitcast(b, narrow)])
    parts = [_emit_half(builder, name, item, made, *(half_of(builder, v, part) for v in (a, b))) for part in range(2)]
    return join_halves(builder, *parts)


def _emit_half(builder: Any, name: str, item: Any, made: Any, a: Any, b: Any) -> Any:
    narrow, wide = (ir.VectorType(kind, 256 // kind.width) for kind in (item, made))
    function = external(builder, f"llvm.x86.avx2.{name}", wide, [narrow] * 2)
    return builder.call(function, [builder.bitcast(a, narrow), builder.bitcast(b, narrow)])


def _bits_of(vector: Any) -> int:
    """Size of a vector."""
    size: int = vector.type.count * vector.type.element.width
    return size


def half_of(builder: Any, vector: Any, part: int) -> Any:
    """The first half of a vector's lanes, or the second."""
    count = vector.type.count // 2
    return shuffle(builder, vector, vector, [part * count + lane for lane in range(count)])


def join_halves(builder: Any, a: Any, b: Any) -> Any:
    """One vector of two."""
    return shuffle(builder, a, b, list(range(2 * a.type.count)))


def halves(value: int, lanes: int = 2 * LANES) -> Any:
    """A constant in all 16-bit halves."""
    return ir.Constant(ir.VectorType(I16, lanes), [value] * lanes)
