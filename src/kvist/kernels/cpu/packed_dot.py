"""The micro-kernels over evenly spaced codes: scores of a tile, and the weighted sum of its values, in whole numbers.

A row of factors (a query, or the weights of a tile) is rounded to 15 bits of its largest number and split into two
signed bytes, ``128 high + low``. Products of codes and bytes are summed in 32 bits, exactly; so neither the order nor
the processor matters, and codes that are weighed by 0 may be anything. ::

    score[slot] = scale[slot] * step * sum(q code) + offset[slot] * sum(q)        step: of the row's rounding
    out[dim]   += step * sum(w code) + sum(p offset)                              w = p * scale, by slot
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.cache.codec.base import Packed
from kvist.kernels.cpu.attention_tile import begin_loop, end_loop
from kvist.kernels.cpu.packed_lanes import (
    V16B,
    Cell,
    emit_dot,
    emit_splat_at,
    emit_splat_word,
    emit_whole,
    words,
)
from kvist.kernels.cpu.vector import I64, V16F, V16I, emit_fma, emit_load, emit_prefetch, f32x16, pointer

LARGEST = 127 * 128.0  # of a rounded factor: its bytes are -127..127 and -64..63


@intrinsic
def split_bytes(typingctx: Any, numbers: Any, high: Any, low: Any) -> Any:
    """Whole numbers, held as floats, as 128 high + low: sixteen signed bytes each."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, high, low = args
        whole = builder.fptosi(numbers, V16I)
        upper = builder.ashr(builder.add(whole, words(64)), words(7))
        lower = builder.sub(whole, builder.shl(upper, words(7)))
        for value, address in ((upper, high), (lower, low)):
            builder.store(builder.trunc(value, V16B), pointer(builder, address, V16B), align=1)
        return context.get_dummy_value()

    return types.none(f32x16, types.int64, types.int64), codegen


def make_dot_scores(codec: Packed, rows: int) -> Any:
    """``scores(q, q_stride, apart, f, k0, k1, s0, s1, cells, out, first, n0, n1)``: two blocks, a group of dims.

    q: the group's high bytes of row 0, its low ones are `apart` bytes further, the next row's `q_stride`; f: its step
    and sum (float32), as far apart. k: cells of the blocks; s: their float16 scales and offsets (by channels: none, the
    row's factors and sum hold them). out: 32 scores a row, 256 bytes apart; first: 0 for the first group, else they are
    added to what is there. n: the same cells of blocks that are read next.
    """

    @intrinsic
    def scores(
        typingctx: Any, q: Any, qs: Any, apart: Any, f: Any, k0: Any, k1: Any, s0: Any, s1: Any, cells: Any, out: Any,
        first: Any, n0: Any, n1: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            q, stride, apart, f, k0, k1, s0, s1, cells, out, first, n0, n1 = args
            starts = [builder.add(q, builder.mul(stride, I64(r))) for r in range(rows)]
            parts = [(start, builder.add(start, apart)) for start in starts]  # high, low
            for scales, block, n in ((s0, k0, n0), (s1, k1, n1)) if not codec.channels else ():
                emit_prefetch(builder, builder.add(n, builder.sub(scales, block)), I64(0))
            before, loop, after, cell = begin_loop(builder)
            sums = [[[builder.phi(V16I) for _ in range(2)] for _ in range(2)] for _ in range(rows)]  # block, part
            offset, at = builder.mul(cell, I64(codec.cell_bytes)), builder.mul(cell, I64(16))
            for n in (n0, n1):
                for line in range(0, codec.cell_bytes, 64):
                    emit_prefetch(builder, n, builder.add(offset, I64(line)))
            squares = [Cell(codec, builder, builder.add(block, offset)) for block in (k0, k1)]
            new = [[list(block) for block in row] for row in sums]
            for i in range(4):
                quads = [square.quad(i) for square in squares]
                for r in range(rows):
                    for part in range(2):
                        factors = emit_splat_word(builder, parts[r][part], builder.add(at, I64(4 * i)))
                        for b in range(2):
                            new[r][b][part] = emit_dot(builder, new[r][b][part], quads[b], factors)
            for row, made in zip(sums, new, strict=True):
                for b in range(2):
                    for part in range(2):
                        row[b][part].add_incoming(words(0), before)
                        row[b][part].add_incoming(made[b][part], builder.block)
            end_loop(builder, before, loop, after, cell, cells)
            begins = builder.icmp_signed("==", first, I64(0))
            for r in range(rows):
                own = builder.add(f, builder.mul(stride, I64(r)))
                step, total = emit_splat_at(builder, own, 0), emit_splat_at(builder, own, 4)
                for b, scales in enumerate((s0, s1)):
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

        return types.none(*[types.int64] * 13), codegen

    return scores


def make_dot_weigh(codec: Packed, rows: int, width: int) -> Any:
    """``weigh(w, w_stride, f, v0..v3, acc, acc_stride, n0..n3)``: acc[row][16 * width dims] += a tile's values.

    w: the 64 high bytes of row 0's weights, then its low ones, the next row's `w_stride` further; f: step and sum of
    its weights, as far apart. v: `width` cells of each of the four blocks; n: the same of blocks that are read next.
    """

    @intrinsic
    def weigh(
        typingctx: Any, w: Any, ws: Any, f: Any, v0: Any, v1: Any, v2: Any, v3: Any, acc: Any, acc_stride: Any,
        n0: Any, n1: Any, n2: Any, n3: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, stride, f = args[:3]
            blocks, (acc, acc_stride), following = args[3:7], args[7:9], args[9:]
            starts = [builder.add(w, builder.mul(stride, I64(r))) for r in range(rows)]
            sums = [[[words(0)] * 2 for _ in range(width)] for _ in range(rows)]
            for b, (block, n) in enumerate(zip(blocks, following, strict=True)):
                for line in range(0, width * codec.cell_bytes, 64):
                    emit_prefetch(builder, n, I64(line))
                squares = [Cell(codec, builder, builder.add(block, I64(j * codec.cell_bytes))) for j in range(width)]
                for i in range(4):
                    quads = [square.quad(i) for square in squares]
                    for r in range(rows):
                        for part in range(2):
                            factors = emit_splat_word(builder, starts[r], I64(64 * part + 16 * b + 4 * i))
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

        return types.none(*[types.int64] * 13), codegen

    return weigh
