"""Sixteen lanes from and to memory: widened on the way in, rounded to the stored type on the way out."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu.vector import I32, I64, LANES, V16F, V16H, V16I, V16S, emit_load, external, f32x16, pointer

ITEMSIZE = {"f32": 4, "f16": 2, "bf16": 2}


def _load_vector(dtype: str) -> Any:
    @intrinsic
    def function(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return emit_load(builder, args[0], dtype)

        return f32x16(types.int64), codegen

    return function


def emit_round(builder: Any, vector: Any, dtype: str) -> Any:
    """Sixteen float32 lanes rounded to nearest even as `dtype`; finite values saturate in f16 rather than overflow."""
    if dtype == "f32":
        return vector
    if dtype == "f16":
        largest = ir.Constant(V16F, [65504.0] * LANES)
        smallest = ir.Constant(V16F, [-65504.0] * LANES)
        infinity = ir.Constant(V16F, [float("inf")] * LANES)
        magnitude = builder.call(external(builder, "llvm.fabs.v16f32", V16F, [V16F]), [vector])
        saturated = builder.select(builder.fcmp_ordered(">", vector, largest), largest, vector)
        saturated = builder.select(builder.fcmp_ordered("<", vector, smallest), smallest, saturated)
        return builder.fptrunc(builder.select(builder.fcmp_ordered("==", magnitude, infinity), vector, saturated), V16H)
    assert dtype == "bf16", dtype
    bits = builder.bitcast(vector, V16I)
    odd = builder.and_(builder.lshr(bits, ir.Constant(V16I, [16] * LANES)), ir.Constant(V16I, [1] * LANES))
    rounded = builder.add(bits, builder.add(odd, ir.Constant(V16I, [0x7FFF] * LANES)))
    is_nan = builder.fcmp_unordered("uno", vector, vector)
    quiet = builder.or_(bits, ir.Constant(V16I, [0x400000] * LANES))
    rounded = builder.select(is_nan, quiet, rounded)
    return builder.trunc(builder.lshr(rounded, ir.Constant(V16I, [16] * LANES)), V16S)


def _store_vector(dtype: str) -> Any:
    @intrinsic
    def function(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            stored = emit_round(builder, args[1], dtype)
            builder.store(stored, pointer(builder, args[0], stored.type), align=2)
            return context.get_dummy_value()

        return types.none(types.int64, f32x16), codegen

    return function


def _scatter_vector(dtype: str) -> Any:
    """Store the lanes `stride` bytes apart (a token's sixteen dims down the columns of a dim-major page)."""

    @intrinsic
    def function(typingctx: Any, address: Any, stride: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address, stride, value = args
            stored = emit_round(builder, value, dtype)
            for lane in range(LANES):
                place = pointer(builder, address, stored.type.element, builder.mul(stride, I64(lane)))
                builder.store(builder.extract_element(stored, I32(lane)), place, align=2)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, f32x16), codegen

    return function


load = {dtype: _load_vector(dtype) for dtype in ("f32", "f16", "bf16")}
store = {dtype: _store_vector(dtype) for dtype in ("f32", "f16", "bf16")}
scatter = {dtype: _scatter_vector(dtype) for dtype in ("f32", "f16", "bf16")}
load_f32, store_f32 = load["f32"], store["f32"]
