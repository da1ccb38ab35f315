"""Factors of codes: what is added up of them, and the bytes that `packed_products` wants of them once rounded."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu.packed_lanes import V16B
from kvist.kernels.cpu.packed_products import in_pairs
from kvist.kernels.cpu.vector import I32, I64, LANES, V16I, external, f32x16, has, pointer, shuffle
from kvist.kernels.cpu.vector_bytes import half_of


@intrinsic
def pack_tile(typingctx: Any, w0: Any, w1: Any, w2: Any, w3: Any, out: Any) -> Any:
    """A tile's whole numbers from 0 to 255, held as floats, as bytes: [four slots][block][slot].

    Where they meet codes in pairs: as 32 bytes of two blocks are packed, of each four slots the first and the third
    before the second and the fourth (see `packed_products.Bytes`).
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *numbers, out = args
        wide = [builder.fptosi(vector, V16I) for vector in numbers]
        if in_pairs():
            eights = [[half_of(builder, w, part) for part in (0, 1)] for w in wide]
            sixteens = [_pack_half(builder, "packssdw", *pair) for pair in eights]
            for at in (0, 2):
                packed = _pack_half(builder, "packuswb", *sixteens[at : at + 2])
                builder.store(packed, pointer(builder, out, packed.type, I64(16 * at)), align=4)
            return context.get_dummy_value()
        pairs = [emit_pack(builder, wide[0], wide[1]), emit_pack(builder, wide[2], wide[3])]
        packed = emit_pack(builder, pairs[0], pairs[1])
        builder.store(packed, pointer(builder, out, packed.type), align=4)
        return context.get_dummy_value()

    return types.none(*[f32x16] * 4, types.int64), codegen


def _pack_half(builder: Any, name: str, a: Any, b: Any) -> Any:
    """Two vectors of 32 bytes in one."""
    narrow = ir.VectorType(ir.IntType(a.type.element.width // 2), 2 * a.type.count)
    return builder.call(external(builder, f"llvm.x86.avx2.{name}", narrow, [a.type] * 2), [a, b])


def emit_pack(builder: Any, a: Any, b: Any) -> Any:
    """Two vectors of 64 bytes in one, numbers half as wide, which they fit; sixteen bytes of each take turns.

    Words become halves with a sign, halves bytes without.
    """
    bits, lanes = a.type.element.width, a.type.count
    narrow = ir.VectorType(ir.IntType(bits // 2), 2 * lanes)
    if has("avx512bw"):
        name = "packssdw" if bits == 32 else "packuswb"
        return builder.call(external(builder, f"llvm.x86.avx512.{name}.512", narrow, [a.type] * 2), [a, b])
    each = lanes // 4
    order = [side * lanes + part * each + lane for part in range(4) for side in range(2) for lane in range(each)]
    together = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 2 * lanes), order))
    return builder.trunc(together, narrow)


@intrinsic
def put_bytes(typingctx: Any, address: Any, codes: Any) -> Any:
    """Sixteen whole numbers, held as floats, as bytes, signed or not."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.fptosi(args[1], V16I)
        builder.store(builder.trunc(whole, V16B), pointer(builder, args[0], V16B), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, f32x16), codegen


def _sums(*steps: int) -> Any:
    """Of lanes whose numbers differ in these bits alone, each gets the sum."""

    @intrinsic
    def function(typingctx: Any, a: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            total = args[0]
            for step in steps:
                total = builder.fadd(total, shuffle(builder, total, total, [lane ^ step for lane in range(LANES)]))
            return total

        return f32x16(f32x16), codegen

    return function


sum_pairs = _sums(8, 4, 1)
"""In each lane the sum of all that are in the same half of their four: lanes 0, 1, 4, 5, .. or 2, 3, 6, 7, .."""
sum_two_pairs = _sums(1, 4)
"""The same of their eight: those that two pairs of products are made with."""


@intrinsic
def swap(typingctx: Any, a: Any) -> Any:
    """Each two neighbours change places."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return shuffle(builder, args[0], args[0], [lane ^ 1 for lane in range(LANES)])

    return f32x16(f32x16), codegen
