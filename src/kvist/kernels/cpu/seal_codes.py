"""Sixteen vectors of numbers become a cell of codes, as `cache.codec.packed` defines them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.cache.codec.base import Packed
from kvist.cache.codec.packed import borders
from kvist.kernels.cpu.packed_lanes import V16B, shifted, words
from kvist.kernels.cpu.vector import F32, I64, LANES, V16F, V16I, V16S, emit_load, emit_splat, external, pointer
from kvist.kernels.cpu.vector_memory import emit_round


def make_put_cell(codec: Packed, *, keys: bool) -> Any:
    """``put(numbers, stride, scales, offsets, cell)``: sixteen vectors of float32, `stride` bytes apart, as a cell.

    scales, offsets: float32, sixteen: one for each lane of K, or for each vector of V; by channels the other way round.
    """
    by_lane, below = keys and not codec.channels, 0 if keys else codec.below

    @intrinsic
    def put(typingctx: Any, numbers: Any, stride: Any, scales: Any, offsets: Any, cell: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            numbers, stride, scales, offsets, cell = args
            codes = []
            for i in range(16):
                number = emit_load(builder, numbers, "f32", builder.mul(stride, I64(i)))
                parts = [
                    emit_load(builder, at, "f32")
                    if by_lane
                    else emit_splat(builder, builder.load(pointer(builder, at, F32, I64(4 * i)), align=4))
                    for at in (scales, offsets)
                ]
                codes.append(_code(builder, codec, number, *parts))
            _store_codes(builder, codec, [builder.xor(code, words(below)) for code in codes], cell)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 5), codegen

    return put


def _constant(value: float) -> Any:
    return ir.Constant(V16F, [value] * LANES)


def _code(builder: Any, codec: Packed, number: Any, scale: Any, offset: Any) -> Any:
    """The nearest code of each lane, as int32. What is no number at all becomes some code."""
    zero = _constant(0.0)
    wanted = builder.fdiv(builder.fsub(number, offset), scale)
    # where the scale is 0 all codes mean the same: 0 / 0 is no number, and becomes 0 with all that is none
    wanted = builder.select(builder.fcmp_ordered("==", scale, zero), zero, wanted)
    wanted = builder.select(builder.fcmp_ordered("ord", wanted, wanted), wanted, zero)
    if codec.grid == "e4m3":
        return _e4m3(builder, wanted)
    if codec.grid == "bell":
        return _bell(builder, codec, wanted)
    return _whole(builder, wanted, float((1 << codec.bits) - 1))


def _whole(builder: Any, number: Any, largest: float) -> Any:
    """Rounded to nearest even, within 0..largest."""
    rounded = builder.call(external(builder, "llvm.rint.v16f32", V16F, [V16F]), [number])
    for comparison, limit in (("<", 0.0), (">", largest)):
        rounded = builder.select(builder.fcmp_ordered(comparison, rounded, _constant(limit)), _constant(limit), rounded)
    return builder.fptosi(rounded, V16I)


def _e4m3(builder: Any, number: Any) -> Any:
    """Numbers over 256, at most 1.75 (448 / 256): a float16 of which the lowest 7 bits of 10 are rounded away."""
    bits = builder.zext(builder.bitcast(emit_round(builder, number, "f16"), V16S), V16I)
    sign = builder.lshr(builder.and_(bits, ir.Constant(V16I, [0x8000] * LANES)), ir.Constant(V16I, [8] * LANES))
    size = builder.and_(bits, ir.Constant(V16I, [0x7FFF] * LANES))
    odd = builder.and_(builder.lshr(size, ir.Constant(V16I, [7] * LANES)), ir.Constant(V16I, [1] * LANES))
    rounded = builder.lshr(
        builder.add(size, builder.add(odd, ir.Constant(V16I, [63] * LANES))), ir.Constant(V16I, [7] * LANES)
    )
    top = ir.Constant(V16I, [0x7E] * LANES)
    return builder.or_(sign, builder.select(builder.icmp_unsigned(">", rounded, top), top, rounded))


def _bell(builder: Any, codec: Packed, number: Any) -> Any:
    """How many of the borders between neighbouring steps a number is above."""
    code = ir.Constant(V16I, [0] * LANES)
    for border in borders(codec):
        above = builder.fcmp_ordered(">", number, _constant(float(border)))
        code = builder.add(code, builder.zext(above, V16I))
    return code


def _store_codes(builder: Any, codec: Packed, codes: list[Any], cell: Any) -> None:
    """Sixteen vectors of codes as a cell (see `cache.codec.packed`)."""
    bits = codec.bits
    if codec.grid == "e4m3":
        for i, code in enumerate(codes):
            builder.store(builder.trunc(code, V16B), pointer(builder, cell, V16B, I64(16 * i)), align=1)
        return
    main = 8 if bits == 8 else 4 if bits >= 4 else 2
    quads_a_word = 8 // main
    for first in range(0, 4, quads_a_word):
        word = words(0)
        for quad in range(first, first + quads_a_word):
            for k in range(4):
                low = builder.and_(codes[4 * quad + k], words((1 << main) - 1))
                word = builder.or_(word, shifted(builder, low, -(8 * k + main * (quad - first))))
        builder.store(word, pointer(builder, cell, V16I, I64(64 * (first // quads_a_word))), align=2)
    if bits == main:
        return
    high, word = bits - main, words(0)
    for quad in range(4):
        for k in range(4):
            upper = builder.lshr(codes[4 * quad + k], words(main))
            word = builder.or_(word, shifted(builder, upper, -(4 * k + quad if high == 1 else 8 * k + 2 * quad)))
    last = builder.trunc(word, V16S) if high == 1 else word
    builder.store(last, pointer(builder, cell, last.type, I64(32 * main)), align=2)
