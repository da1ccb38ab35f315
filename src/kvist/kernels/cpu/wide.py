"""Sums in float64 of sixteen lanes, and lanes put side by side that pass a test: what choosing tokens needs."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

from kvist.kernels.cpu.vector import F32, I32, I64, LANES, V16F, V16I, emit_splat, external, f32x16, pointer, shuffle

F64 = ir.DoubleType()
V16D = ir.VectorType(F64, LANES)
MASK = ir.VectorType(ir.IntType(1), LANES)


class F64x16(types.Type):
    """Numba type of sixteen float64 lanes."""

    def __init__(self) -> None:
        super().__init__(name="f64x16")


f64x16 = F64x16()


@register_model(F64x16)
class _F64x16Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, V16D)


@intrinsic
def widen(typingctx: Any, a: Any) -> Any:
    """The same numbers as float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(args[0], V16D)

    return f64x16(f32x16), codegen


@intrinsic
def add_wide(typingctx: Any, a: Any, b: Any) -> Any:
    """a + b."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args)

    return f64x16(f64x16, f64x16), codegen


@intrinsic
def add_where(typingctx: Any, total: Any, keys: Any, least: Any, values: Any) -> Any:
    """Lane by lane: total + value where the key is at least `least`, else total."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, keys, least, values = args
        wanted = builder.fcmp_ordered(">=", keys, least)
        return builder.select(wanted, builder.fadd(total, values), total)

    return f64x16(f64x16, f32x16, f32x16, f64x16), codegen


@intrinsic
def reduce_wide(typingctx: Any, a: Any) -> Any:
    """The sum of the lanes by the same tree as `vector.reduce_add`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = args[0]
        for width in (8, 4, 2, 1):
            low = shuffle(builder, vector, vector, list(range(width)))
            high = shuffle(builder, vector, vector, list(range(width, 2 * width)))
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, I32(0))

    return types.float64(f64x16), codegen


def _count(builder: Any, mask: Any) -> Any:
    """How many lanes of a mask are set, as i64."""
    bits = builder.bitcast(mask, ir.IntType(16))
    found = builder.call(external(builder, "llvm.ctpop.i16", ir.IntType(16), [ir.IntType(16)]), [bits])
    return builder.zext(found, I64)


def _between(builder: Any, keys: Any, low: Any, high: Any) -> Any:
    return builder.and_(builder.fcmp_ordered(">=", keys, low), builder.fcmp_ordered("<", keys, high))


@intrinsic
def count_between(typingctx: Any, keys: Any, low: Any, high: Any) -> Any:
    """How many lanes are from low up to, not including, high."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _count(builder, _between(builder, *args))

    return types.int64(f32x16, f32x16, f32x16), codegen


@intrinsic
def numbered(typingctx: Any, begin: Any) -> Any:
    """Lanes whose bits are the int32 begin, begin + 1, ..."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = builder.bitcast(emit_splat(builder, builder.bitcast(builder.trunc(args[0], I32), F32)), V16I)
        return builder.bitcast(builder.add(lanes, ir.Constant(V16I, list(range(LANES)))), V16F)

    return f32x16(types.int64), codegen


@intrinsic
def pack_between(typingctx: Any, address: Any, values: Any, keys: Any, low: Any, high: Any) -> Any:
    """Store the lanes of `values` whose keys are from low up to, not including, high, without gaps; how many."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, values, keys, low, high = args
        mask = _between(builder, keys, low, high)
        kind = [V16F, F32.as_pointer(), MASK]
        store = external(builder, "llvm.masked.compressstore.v16f32", ir.VoidType(), kind)
        builder.call(store, [values, pointer(builder, address, F32), mask])
        return _count(builder, mask)

    return types.int64(types.int64, f32x16, f32x16, f32x16, f32x16), codegen


@intrinsic
def as_float(typingctx: Any, bits: Any) -> Any:
    """The float32 with these bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.trunc(args[0], I32), F32)

    return types.float32(types.int64), codegen


@intrinsic
def as_bits(typingctx: Any, number: Any) -> Any:
    """The bits of a number from 0, rounded to float32: ordered as the numbers are."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = context.cast(builder, args[0], signature.args[0], types.float32)
        return builder.zext(builder.bitcast(number, I32), I64)

    return types.int64(number), codegen
