"""The micro-kernels over evenly spaced codes: scores of a tile, and the weighted sum of its values, in whole numbers.

A row of factors is rounded to signed bytes: a query to one, or to two where codes have 8 bits, the weights of a tile
to two, ``128 high + low``, for few of them may be large. Products of codes and bytes are summed in 32 bits, exactly; so
neither the order nor the processor matters, and codes that are weighed by 0 may be anything. ::

    score[slot] = scale[slot] * step * sum(q code) + offset[slot] * sum(q)        step: of the row's rounding
    out[dim]   += step * sum(w code) + sum(p offset)                              w = p * scale, by slot
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.cache.codec.base import Packed
from kvist.kernels.cpu.attention_tile import BLOCKS, begin_loop, end_loop
from kvist.kernels.cpu.packed_lanes import (
    V16B,
    Cell,
    emit_dot,
    emit_splat_at,
    emit_splat_word,
    emit_whole,
    words,
)
from kvist.kernels.cpu.vector import (
    I32,
    I64,
    V16F,
    V16I,
    emit_fma,
    emit_load,
    emit_prefetch,
    external,
    f32x16,
    has,
    pointer,
)

V32H = ir.VectorType(ir.IntType(16), 32)

LARGEST_BYTE = 127.0  # of a factor that is one byte
LARGEST = 127 * 128.0  # of one that is two: -127..127 and -64..63


@intrinsic
def split_tile(typingctx: Any, w0: Any, w1: Any, w2: Any, w3: Any, out: Any) -> Any:
    """A tile's whole numbers, held as floats, as 128 high + low: int8 [high, low][four slots][block][slot]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *numbers, out = args
        wide = [builder.fptosi(vector, V16I) for vector in numbers]
        pairs = [emit_pack(builder, wide[0], wide[1]), emit_pack(builder, wide[2], wide[3])]
        upper = [builder.ashr(builder.add(pair, _halves(64)), _halves(7)) for pair in pairs]
        lower = [builder.sub(pair, builder.shl(up, _halves(7))) for pair, up in zip(pairs, upper, strict=True)]
        for part, (a, b) in enumerate((upper, lower)):
            packed = emit_pack(builder, a, b)
            builder.store(packed, pointer(builder, out, packed.type, I64(64 * part)), align=4)
        return context.get_dummy_value()

    return types.none(*[f32x16] * 4, types.int64), codegen


def emit_pack(builder: Any, a: Any, b: Any) -> Any:
    """Two vectors of 64 bytes in one, numbers half as wide, which they fit; sixteen bytes of each take turns."""
    bits, lanes = a.type.element.width, a.type.count
    narrow = ir.VectorType(ir.IntType(bits // 2), 2 * lanes)
    if has("avx512bw"):
        name = "packssdw" if bits == 32 else "packsswb"
        return builder.call(external(builder, f"llvm.x86.avx512.{name}.512", narrow, [a.type] * 2), [a, b])
    each = lanes // 4
    order = [side * lanes + part * each + lane for part in range(4) for side in range(2) for lane in range(each)]
    together = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 2 * lanes), order))
    return builder.trunc(together, narrow)


@intrinsic
def split_bytes(typingctx: Any, address: Any, codes: Any) -> Any:
    """Sixteen whole numbers, held as floats, as 128 high + low: the high bytes, then the low ones."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.fptosi(args[1], V16I)
        upper = builder.ashr(builder.add(whole, words(64)), words(7))
        lower = builder.sub(whole, builder.shl(upper, words(7)))
        for part, value in enumerate((upper, lower)):
            builder.store(builder.trunc(value, V16B), pointer(builder, args[0], V16B, I64(16 * part)), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, f32x16), codegen


@intrinsic
def put_bytes(typingctx: Any, address: Any, codes: Any) -> Any:
    """Sixteen whole numbers, held as floats, as bytes, signed or not."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.fptosi(args[1], V16I)
        builder.store(builder.trunc(whole, V16B), pointer(builder, args[0], V16B), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, f32x16), codegen


def make_dot_scores(codec: Packed, rows: int) -> Any:
    """``scores(q, q_stride, f, k0..k3, s0..s3, cells, out, first, n0, n1)``: a tile's scores over a group of dims.

    q: the group's bytes of row 0, of sixteen dims the high ones, then any low ones; the next row's are `q_stride`
    further; f: its step and sum (float32), as far apart. k: cells of the four blocks; s: their float16 scales and
    offsets (by channels: none, the row's factors and sum hold them). out: 64 scores a row, 256 bytes apart; first: 0
    for the first group, else they are added to what is there.
    n: the same cells of two of the blocks that are read next.
    """
    parts = codec.query_parts
    together = BLOCKS // parts  # blocks that pass by at once: their sums fill the registers

    def loop_over(builder: Any, starts: list[Any], blocks: list[Any], cells: Any, following: list[Any]) -> Any:
        """Sums of some blocks, of each row, over all cells, in high bytes (and low ones) of the query."""
        before, loop, after, cell = begin_loop(builder)
        sums = [[[builder.phi(V16I) for _ in range(parts)] for _ in blocks] for _ in starts]
        offset, at = builder.mul(cell, I64(codec.cell_bytes)), builder.mul(cell, I64(16 * parts))
        for n in following:
            for line in range(0, codec.cell_bytes, 64):
                emit_prefetch(builder, n, builder.add(offset, I64(line)))
        squares = [Cell(codec, builder, builder.add(block, offset)) for block in blocks]
        new = [[list(block) for block in row] for row in sums]
        for i in range(4):
            quads = [square.quad(i) for square in squares]
            for row, start in zip(new, starts, strict=True):
                for part in range(parts):
                    factors = emit_splat_word(builder, start, builder.add(at, I64(16 * part + 4 * i)))
                    for block, quad in zip(row, quads, strict=True):
                        block[part] = emit_dot(builder, block[part], quad, factors)
        for row, made in zip(sums, new, strict=True):
            for phi, following_sum in zip(chain(*row), chain(*made), strict=True):
                phi.add_incoming(words(0), before)
                phi.add_incoming(following_sum, builder.block)
        end_loop(builder, before, loop, after, cell, cells)
        return new

    @intrinsic
    def scores(
        typingctx: Any, q: Any, qs: Any, f: Any, k0: Any, k1: Any, k2: Any, k3: Any, s0: Any, s1: Any, s2: Any, s3: Any,
        cells: Any, out: Any, first: Any, n0: Any, n1: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            q, stride, f = args[:3]
            k, s, (cells, out, first), following = args[3:7], args[7:11], args[11:14], args[14:]
            starts = [builder.add(q, builder.mul(stride, I64(r))) for r in range(rows)]
            for scales, block, n in zip(s[:2], k[:2], following, strict=True) if not codec.channels else ():
                emit_prefetch(builder, builder.add(n, builder.sub(scales, block)), I64(0))
            new = [list[Any]() for _ in starts]
            for b in range(0, BLOCKS, together):
                lines = following if b == 0 else []
                for row, made in zip(new, loop_over(builder, starts, k[b : b + together], cells, lines), strict=True):
                    row += made
            begins = builder.icmp_signed("==", first, I64(0))
            for r in range(rows):
                own = builder.add(f, builder.mul(stride, I64(r)))
                step, total = emit_splat_at(builder, own, 0), emit_splat_at(builder, own, 4)
                for b, scales in enumerate(s):
                    place = pointer(builder, out, V16F, I64(r * 256 + b * 64))
                    zero = ir.Constant(V16F, [0.0] * 16)
                    score = builder.select(begins, zero, builder.load(place, align=4))
                    whole = builder.fmul(emit_whole(builder, *new[r][b]), step)
                    if codec.channels:
                        score = builder.fadd(whole, builder.fadd(score, total))
                    else:
                        score = emit_fma(builder, emit_load(builder, scales, "f16", I64(32)), total, score)
                        score = emit_fma(builder, whole, emit_load(builder, scales, "f16"), score)
                    builder.store(score, place, align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 16), codegen

    return scores


def make_dot_weigh(codec: Packed, rows: int, width: int) -> Any:
    """``weigh(w, w_stride, f, v0..v3, acc, acc_stride, n2, n3)``: acc[row][16 * width dims] += a tile's values.

    w: row 0's weights as `split_tile` has them, the next row's `w_stride` further; f: step and sum of
    its weights, as far apart. v: `width` cells of each of the four blocks; n: the same of two that are read next.
    """

    @intrinsic
    def weigh(
        typingctx: Any, w: Any, ws: Any, f: Any, v0: Any, v1: Any, v2: Any, v3: Any, acc: Any, acc_stride: Any,
        n2: Any, n3: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, stride, f = args[:3]
            blocks, (acc, acc_stride), following = args[3:7], args[7:9], args[9:]
            starts = [builder.add(w, builder.mul(stride, I64(r))) for r in range(rows)]
            sums = [[[words(0)] * 2 for _ in range(width)] for _ in range(rows)]
            for b, block in enumerate(blocks):
                for line in range(64 * (b // 2), width * codec.cell_bytes, 128):  # evenly: few can be under way
                    emit_prefetch(builder, following[b % 2], I64(line))
                squares = [Cell(codec, builder, builder.add(block, I64(j * codec.cell_bytes))) for j in range(width)]
                for i in range(4):
                    quads = [square.quad(i) for square in squares]
                    for r in range(rows):
                        for part in range(2):
                            factors = emit_splat_word(builder, starts[r], I64(64 * part + 16 * i + 4 * b))
                            for j in range(width):
                                sums[r][j][part] = emit_dot(builder, sums[r][j][part], quads[j], factors)
            for r in range(rows):
                own = builder.add(f, builder.mul(stride, I64(r)))
                step, total = emit_splat_at(builder, own, 0), emit_splat_at(builder, own, 4)
                for j in range(width):
                    place = pointer(builder, builder.add(acc, builder.mul(acc_stride, I64(r))), V16F, I64(64 * j))
                    begun = builder.fadd(builder.load(place, align=4), total)
                    builder.store(emit_fma(builder, emit_whole(builder, *sums[r][j]), step, begun), place, align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 11), codegen

    return weigh


def _halves(value: int) -> Any:
    return ir.Constant(V32H, [value] * 32)
