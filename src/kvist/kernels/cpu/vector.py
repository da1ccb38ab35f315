"""Sixteen float32 lanes as a value that numba can hold: the alphabet of the CPU kernels.

A kernel is ordinary numba code over byte addresses (``int64``) and values of the type `f32x16`. Every function here
becomes one or two LLVM instructions on ``<16 x float>``; LLVM maps them to one 512-bit register, two 256-bit ones or
four of 128 bits. The *meaning* is always sixteen lanes, so the bits are the same whatever the width of the machine.

Nothing in here may reorder a sum: no fast-math flag is ever set, and `reduce_add` folds the lanes by one fixed tree
(lane i + lane i+8, then +4, +2, +1).

The functions are typed as plain Python for readers and type checkers; they run only inside compiled kernels.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

LANES = 16

F32 = ir.FloatType()
F16 = ir.HalfType()
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
V16F = ir.VectorType(F32, LANES)
V16H = ir.VectorType(F16, LANES)
V16S = ir.VectorType(I16, LANES)
V16I = ir.VectorType(I32, LANES)


FEATURES: set[str] = set()
"""What the processor that code is being made for has, as LLVM names it; `build.make_module` sets it. Whatever is in
there changes instructions, never bits."""


def has(feature: str) -> bool:
    """Whether the processor that code is being made for has a feature."""
    return feature in FEATURES


def in_halves() -> bool:
    """Whether registers hold eight lanes, and are sixteen in all: AVX2. Sums of a tile have to fit them."""
    return has("avx2") and not has("avx512f")


class F32x16(types.Type):
    """Numba type of sixteen float32 lanes."""

    def __init__(self) -> None:
        super().__init__(name="f32x16")


f32x16 = F32x16()


@register_model(F32x16)
class _F32x16Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, V16F)


# --- pieces shared by the generators of micro-kernels (they build IR directly) ---------------------------------------


def pointer(builder: Any, address: Any, to: Any, offset: Any = None) -> Any:
    """The byte `address` (i64), plus an i64 `offset` in bytes, as a pointer to `to`."""
    if offset is not None:
        address = builder.add(address, offset)
    return builder.inttoptr(address, to.as_pointer())


def external(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """An LLVM intrinsic or C function declared by its full name (llvmlite does not know vector suffixes)."""
    module = builder.module
    if name in module.globals:
        return module.globals[name]
    return ir.Function(module, ir.FunctionType(result, arguments), name=name)


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once, in every lane."""
    return builder.call(external(builder, "llvm.fma.v16f32", V16F, [V16F] * 3), [a, b, c])


def emit_splat(builder: Any, value: Any) -> Any:
    """One float32 in all lanes."""
    vector = builder.insert_element(ir.Constant(V16F, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(vector, ir.Constant(V16F, ir.Undefined), ir.Constant(V16I, [0] * LANES))


def emit_load(builder: Any, address: Any, dtype: str, offset: Any = None) -> Any:
    """Sixteen consecutive numbers of `dtype` (f32, f16, bf16) widened to float32 lanes. No alignment is assumed."""
    if dtype == "f32":
        return builder.load(pointer(builder, address, V16F, offset), align=4)
    if dtype == "f16":
        return builder.fpext(builder.load(pointer(builder, address, V16H, offset), align=2), V16F)
    assert dtype == "bf16", dtype
    wide = builder.zext(builder.load(pointer(builder, address, V16S, offset), align=2), V16I)
    return builder.bitcast(builder.shl(wide, ir.Constant(V16I, [16] * LANES)), V16F)


def emit_prefetch(builder: Any, address: Any, offset: Any) -> None:
    """Ask for the cache line at address + offset, to be read soon. Never fails, wherever that is."""
    kind = [I8.as_pointer(), I32, I32, I32]  # address, for reading, how near (2: the second-level cache), data
    function = external(builder, "llvm.prefetch.p0i8", ir.VoidType(), kind)
    builder.call(function, [pointer(builder, address, I8, offset), I32(0), I32(2), I32(1)])


def begin_loop(builder: Any) -> tuple[Any, Any, Any, Any]:
    """A loop over 0, 1, ...: the blocks before it, of it and after it, its counter."""
    before = builder.block
    loop = builder.append_basic_block("loop")
    after = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    return before, loop, after, builder.phi(I64)


def end_loop(builder: Any, before: Any, loop: Any, after: Any, counter: Any, limit: Any) -> None:
    """Close what `begin_loop` began: once more while the counter is below `limit`."""
    following = builder.add(counter, I64(1))
    counter.add_incoming(I64(0), before)
    counter.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, limit), loop, after)
    builder.position_at_end(after)


def shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """Lanes of a (0 to 15) and b (16 to 31), chosen by number."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _unary(name: str) -> Any:
    @intrinsic
    def function(typingctx: Any, a: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.call(external(builder, name, V16F, [V16F]), args)

        return f32x16(f32x16), codegen

    return function


def _binary(instruction: str) -> Any:
    @intrinsic
    def function(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return f32x16(f32x16, f32x16), codegen

    return function


def _choose(comparison: str) -> Any:
    """a if `a comparison b` else b: a maximum or minimum that is one instruction (b where either is NaN)."""

    @intrinsic
    def function(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, *args), *args)

        return f32x16(f32x16, f32x16), codegen

    return function


add = _binary("fadd")
sub = _binary("fsub")
mul = _binary("fmul")
div = _binary("fdiv")
maximum = _choose(">")
minimum = _choose("<")
sqrt = _unary("llvm.sqrt.v16f32")
round_even = _unary("llvm.rint.v16f32")
absolute = _unary("llvm.fabs.v16f32")


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return emit_fma(builder, *args)

    return f32x16(f32x16, f32x16, f32x16), codegen


@intrinsic
def splat(typingctx: Any, value: Any) -> Any:
    """One number in all lanes; doubles are rounded to float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = context.cast(builder, args[0], signature.args[0], types.float32)
        return emit_splat(builder, number)

    return f32x16(value), codegen


@intrinsic
def scale_by_power(typingctx: Any, a: Any, n: Any) -> Any:
    """a * 2**n for whole n in -126..127 held as float lanes: the exponent is built as an integer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, n = args
        biased = builder.add(builder.fptosi(n, V16I), ir.Constant(V16I, [127] * LANES))
        power = builder.bitcast(builder.shl(biased, ir.Constant(V16I, [23] * LANES)), V16F)
        return builder.fmul(a, power)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def add_exponent(typingctx: Any, a: Any, n: Any) -> Any:
    """a * 2**n, where a and the product are normal numbers; n: whole numbers, the lowest 9 bits of each lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, n = (builder.bitcast(value, V16I) for value in args)
        return builder.bitcast(builder.add(a, builder.shl(n, ir.Constant(V16I, [23] * LANES))), V16F)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def keep_first(typingctx: Any, a: Any, count: Any, other: Any) -> Any:
    """Lanes 0..count-1 of a, the rest of other; any count (negative: none, over 15: all)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, count, other = args
        limit = builder.insert_element(ir.Constant(ir.VectorType(I64, LANES), ir.Undefined), count, I32(0))
        undefined = ir.Constant(ir.VectorType(I64, LANES), ir.Undefined)
        limit = builder.shuffle_vector(limit, undefined, ir.Constant(V16I, [0] * LANES))
        lanes = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
        return builder.select(builder.icmp_signed("<", lanes, limit), a, other)

    return f32x16(f32x16, types.int64, f32x16), codegen


@intrinsic
def where_less(typingctx: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """Lane by lane: yes where a < b, else no."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, yes, no = args
        return builder.select(builder.fcmp_ordered("<", a, b), yes, no)

    return f32x16(f32x16, f32x16, f32x16, f32x16), codegen


@intrinsic
def copy_sign(typingctx: Any, magnitude: Any, sign: Any) -> Any:
    """The magnitude of one value with the sign of the other."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(external(builder, "llvm.copysign.v16f32", V16F, [V16F, V16F]), args)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def first(typingctx: Any, a: Any) -> Any:
    """Lane 0 as a number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], I32(0))

    return types.float32(f32x16), codegen


def _fold(combine: Any) -> Any:
    @intrinsic
    def function(typingctx: Any, a: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = args[0]
            for width in (8, 4, 2, 1):
                low = shuffle(builder, vector, vector, list(range(width)))
                high = shuffle(builder, vector, vector, list(range(width, 2 * width)))
                vector = combine(builder, low, high)
            return builder.extract_element(vector, I32(0))

        return types.float32(f32x16), codegen

    return function


reduce_add = _fold(lambda builder, a, b: builder.fadd(a, b))
reduce_max = _fold(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
