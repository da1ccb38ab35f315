"""Sixteen words as 32 halves or 64 bytes: instructions that AVX2 has for one half of them, AVX-512 for all at once."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from kvist.kernels.cpu.vector import I8, I16, I32, LANES, external, has

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
    """An instruction that makes of two vectors of `item` one of `made`: sixteen words, at once or in two halves."""
    count, size = LANES * 32 // item.width, LANES * 32 // made.width
    narrow, wide = ir.VectorType(item, count), ir.VectorType(made, size)
    a, b = builder.bitcast(a, narrow), builder.bitcast(b, narrow)
    if has("avx512bw"):
        return builder.call(external(builder, f"llvm.x86.avx512.{name_512}", wide, [narrow] * 2), [a, b])
    half, half_wide = ir.VectorType(item, count // 2), ir.VectorType(made, size // 2)
    function = external(builder, f"llvm.x86.avx2.{name}", half_wide, [half] * 2)
    parts = [builder.call(function, [_half(builder, v, part) for v in (a, b)]) for part in range(2)]
    return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(I32, size), list(range(size))))


def _half(builder: Any, vector: Any, part: int) -> Any:
    count = vector.type.count // 2
    lanes = ir.Constant(ir.VectorType(I32, count), [part * count + lane for lane in range(count)])
    return builder.shuffle_vector(vector, vector, lanes)


def halves(value: int) -> Any:
    """A constant in all 16-bit halves."""
    return ir.Constant(V32H, [value] * 2 * LANES)
