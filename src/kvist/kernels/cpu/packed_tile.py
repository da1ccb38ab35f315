"""The micro-kernels of attention over small floats (fp8), unpacked on the way.

As over pages of floats (see `attention_tile`) each query row has chains of its own, dims and slots ascending. K's
scales lie slot by slot: what a group of dims sums up to is multiplied by a vector of them, for the sixteen slots of a
block. V's are multiplied with the weights before.

Where unpacking leaves numbers smaller by a power of two (see `packed_lanes.smaller`), queries and weights are enlarged
before (`LIFT`), and what is summed up is so by the rest. That changes no bit of what is not smaller than 2**-100.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.cache.codec.base import Packed
from kvist.kernels.cpu.attention_tile import BLOCKS
from kvist.kernels.cpu.packed_lanes import Cell, emit_splat_at, smaller
from kvist.kernels.cpu.vector import (
    F32,
    I64,
    LANES,
    V16F,
    begin_loop,
    emit_fma,
    emit_load,
    emit_prefetch,
    emit_splat,
    end_loop,
    in_halves,
    pointer,
)

LIFT = 2.0**100  # leaves room for large factors: they may be 2**27


def lift() -> float:
    """What factors of small floats are multiplied by before they meet them."""
    return 1.0 if smaller() == 1.0 else LIFT


def _scaled(builder: Any, vector: Any, factor: float) -> Any:
    return vector if factor == 1.0 else builder.fmul(vector, ir.Constant(V16F, [factor] * LANES))


def _together(rows: int) -> int:
    """Blocks that pass by so many rows at once: fewer than of floats, for unpacking takes registers as well.

    With a dozen sums AVX2 keeps some in memory, and whoever waits there from dim to dim holds up all.
    """
    return {1: 2, 2: 2}.get(rows, 1) if in_halves() else BLOCKS


def make_packed_scores(codec: Packed, rows: int) -> Any:
    """``scores(q, q_stride, k0..k3, s0..s3, cells, out, first, n0..n3)``: a tile's scores over one group of dims.

    out[row][64] (+)= sum over 16 * cells dims of q[row][dim] * K[dim][slot]; first: 0 for the first group. q: times
    `lift`; k: cells of the four blocks; s: their float16 scales. n: the same cells of blocks that are read next.
    """
    parts = 4 if in_halves() else 1  # of a cell: AVX2 has no room for many of its vectors

    def loop_over(
        builder: Any, q_rows: list[Any], blocks: list[Any], scales: list[Any], following: list[Any], cells: Any,
        begin: Any, places: list[list[Any]],
    ) -> None:  # fmt: skip
        """Some blocks. scales: their lanes; begin: whether this is the first group; places: of their scores."""
        zero = ir.Constant(V16F, [0.0] * 16)
        start = [[builder.select(begin, zero, builder.load(at, align=4)) for at in row] for row in places]
        before, loop, after, part = begin_loop(builder)
        sums = [[builder.phi(V16F) for _ in blocks] for _ in range(rows)]
        offset = builder.mul(part, I64(codec.cell_bytes // parts))
        for block in following:
            for line in range(0, codec.cell_bytes // parts, 64):
                emit_prefetch(builder, block, builder.add(offset, I64(line)))
        squares = [Cell(codec, builder, builder.add(block, offset)) for block in blocks]
        new = [list(row) for row in sums]
        for i in range(16 // parts):
            at = builder.add(builder.mul(part, I64(64 // parts)), I64(4 * i))
            keys = [square.number(i) for square in squares]
            for r in range(rows):
                wide = emit_splat(builder, builder.load(pointer(builder, q_rows[r], F32, at)))
                new[r] = [emit_fma(builder, wide, key, total) for key, total in zip(keys, new[r], strict=True)]
        for phi, made in zip(chain(*sums), chain(*new), strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(made, builder.block)
        end_loop(builder, before, loop, after, part, builder.mul(cells, I64(parts)))
        for made_row, start_row, row in zip(new, start, places, strict=True):
            for made, begun, lanes, place in zip(made_row, start_row, scales, row, strict=True):
                builder.store(emit_fma(builder, made, lanes, begun), place, align=4)

    @intrinsic
    def scores(
        typingctx: Any, q: Any, qs: Any, k0: Any, k1: Any, k2: Any, k3: Any, s0: Any, s1: Any, s2: Any, s3: Any,
        cells: Any, out: Any, first: Any, n0: Any, n1: Any, n2: Any, n3: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            q, stride = args[:2]
            k, s, (cells, out, first), n = args[2:6], args[6:10], args[10:13], args[13:]
            q_rows = [builder.add(q, builder.mul(stride, I64(r))) for r in range(rows)]
            begin = builder.icmp_signed("==", first, I64(0))
            for block, own, scales in zip(n, k, s, strict=True):
                emit_prefetch(builder, builder.add(block, builder.sub(scales, own)), I64(0))
            step = _together(rows)
            for b in range(0, BLOCKS, step):
                places = [
                    [pointer(builder, out, V16F, I64(r * 256 + i * 64)) for i in range(b, b + step)]
                    for r in range(rows)
                ]
                lanes = [
                    _scaled(builder, emit_load(builder, address, "f16"), 1 / (smaller() * lift()))
                    for address in s[b : b + step]
                ]
                loop_over(builder, q_rows, k[b : b + step], lanes, n[b : b + step], cells, begin, places)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 17), codegen

    return scores


def make_packed_weigh(codec: Packed, rows: int, width: int) -> Any:
    """``weigh(w, v, acc, acc_stride, following)``: acc[row][16 * width dims] += w[row][slot] * V[slot][dim].

    All sixteen slots of a block, in ascending order. w: weights times the slots' scales and `lift`, float32, rows 64
    bytes apart; v: `width` cells, one after the other; following: the same cells of a block that is read next.
    """

    @intrinsic
    def weigh(typingctx: Any, w: Any, v: Any, acc: Any, acc_stride: Any, following: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, v, acc, acc_stride, following = args
            for line in range(0, width * codec.cell_bytes, 64):
                emit_prefetch(builder, following, I64(line))
            rows_at = [builder.add(acc, builder.mul(acc_stride, I64(r))) for r in range(rows)]
            rest = smaller() * lift()
            sums = [
                [_scaled(builder, emit_load(builder, rows_at[r], "f32", I64(64 * j)), rest) for j in range(width)]
                for r in range(rows)
            ]
            squares = [Cell(codec, builder, builder.add(v, I64(j * codec.cell_bytes))) for j in range(width)]
            for slot in range(16):
                values = [square.number(slot) for square in squares]
                for r in range(rows):
                    wide = emit_splat_at(builder, w, 64 * r + 4 * slot)
                    sums[r] = [emit_fma(builder, wide, values[j], sums[r][j]) for j in range(width)]
            for r in range(rows):
                for j in range(width):
                    made = _scaled(builder, sums[r][j], 1 / rest)
                    builder.store(made, pointer(builder, rows_at[r], V16F, I64(64 * j)), align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 5), codegen

    return weigh
