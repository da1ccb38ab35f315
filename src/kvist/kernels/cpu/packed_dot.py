"""The micro-kernels over whole numbers: scores of a tile, and the weighted sum of its values.

A row of factors is rounded to signed bytes: a query to one, or to two where codes have 8 bits, the weights of a tile
to two, ``128 high + low``, for few of them may be large. Products of codes and bytes are summed in 32 bits, exactly; so
neither the order nor the processor matters, and codes that are weighed by 0 may be anything. ::

    score[slot] = scale[slot] * step * sum(q code) + offset[slot] * sum(q)        step: of the row's rounding
    out[dim]   += step * sum(w code) + sum(p offset)                              w = p * scale, by slot

Of a bell a code is how far its step is above the lowest one, and the offset is that step, in scales.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.cache.codec.base import Packed
from kvist.cache.codec.packed import STEEPEST
from kvist.kernels.cpu.attention_tile import BLOCKS
from kvist.kernels.cpu.packed_lanes import Cell, emit_splat_at, words
from kvist.kernels.cpu.packed_products import emit_cells, way_of
from kvist.kernels.cpu.vector import I64, V16F, V16I, begin_loop, emit_fma, emit_load, emit_prefetch, end_loop, pointer


def make_dot_scores(codec: Packed, rows: int) -> Any:
    """``scores(q, q_stride, f, k0..k3, s0..s3, cells, out, first, n0, n1)``: a tile's scores over a group of dims.

    q: the group's factors of row 0 as `packed_factors` puts them, sixteen dims together; the next row's are `q_stride`
    further; f: its step and sum (float32), as far apart. k: cells of the four blocks; s: their float16 scales and
    offsets (by channels: none, the row's factors and sum hold them). out: 64 scores a row, 256 bytes apart; first: 0
    for the first group, else they are added to what is there.
    n: the same cells of two of the blocks that are read next.
    """
    way, parts = way_of(codec.step_bits, codec.query_parts), codec.query_parts
    asked = codec.cell_bytes // 2 if way.blocks == 1 else codec.cell_bytes

    def offsets_of(builder: Any, scales: Any) -> Any:
        """Of a bell its lowest step."""
        if codec.offset:
            return emit_load(builder, scales, "f16", I64(32))
        return builder.fmul(emit_load(builder, scales, "f16"), ir.Constant(V16F, [-float(STEEPEST)] * 16))

    def loop_over(builder: Any, starts: list[Any], blocks: list[Any], cells: Any, following: list[Any]) -> Any:
        """Sums of some blocks, of each row, over all cells."""
        before, loop, after, cell = begin_loop(builder)
        sums = [[[builder.phi(V16I) for _ in range(way.sums)] for _ in blocks] for _ in starts]
        offset, at = builder.mul(cell, I64(codec.cell_bytes)), builder.mul(cell, I64(16 * parts))
        for n in following:
            for line in range(0, asked, 64):
                emit_prefetch(builder, n, builder.add(offset, I64(line)))
        squares = [Cell(codec, builder, builder.add(block, offset)) for block in blocks]
        new = [[list(block) for block in row] for row in sums]

        def place(row: int, part: int, quad: int) -> Any:
            return builder.add(starts[row], builder.add(at, I64(way.place(part, quad))))

        emit_cells(builder, way, new, squares, place)
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
            for b in range(0, BLOCKS, way.blocks):
                lines = following if b == 0 else []
                if way.blocks == 1:  # half a cell in each pass
                    lines = [builder.add(following[b // 2], I64(b % 2 * codec.cell_bytes // 2))]
                made = loop_over(builder, starts, k[b : b + way.blocks], cells, lines)
                for row, sums in zip(new, made, strict=True):
                    row += sums
            begins = builder.icmp_signed("==", first, I64(0))
            for r in range(rows):
                own = builder.add(f, builder.mul(stride, I64(r)))
                step, total = emit_splat_at(builder, own, 0), emit_splat_at(builder, own, 4)
                for b, scales in enumerate(s):
                    place = pointer(builder, out, V16F, I64(r * 256 + b * 64))
                    zero = ir.Constant(V16F, [0.0] * 16)
                    score = builder.select(begins, zero, builder.load(place, align=4))
                    whole = builder.fmul(way.whole(builder, new[r][b]), step)
                    if codec.channels:
                        score = builder.fadd(whole, builder.fadd(score, total))
                    else:
                        score = emit_fma(builder, offsets_of(builder, scales), total, score)
                        score = emit_fma(builder, whole, emit_load(builder, scales, "f16"), score)
                    builder.store(score, place, align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 16), codegen

    return scores


def weigh_width(codec: Packed) -> int:
    """Vectors of dims that `make_dot_weigh` takes at once."""
    return way_of(codec.step_bits, 2).width


def make_dot_weigh(codec: Packed, rows: int, width: int) -> Any:
    """``weigh(w, w_stride, f, v0..v3, acc, acc_stride, n0, n1)``: acc[row][16 * width dims] += a tile's values.

    w: row 0's weights as `split_tile` has them, the next row's `w_stride` further; f: step and sum of
    its weights, as far apart. v: `width` cells of each of the four blocks; n: the same of two that are read next, or,
    where blocks pass by one at a time, n0: as many cells to ask for as the call reads.
    """
    way = way_of(codec.step_bits, 2)

    def add_block(
        builder: Any, starts: list[Any], sums: Any, block: Any, number: int, following: Any, lines: range
    ) -> None:  # fmt: skip
        """Add a block's values. Lines of what follows are asked for evenly, for few can be under way."""
        for line in lines:
            emit_prefetch(builder, following, I64(line))
        cells = [Cell(codec, builder, builder.add(block, I64(j * codec.cell_bytes))) for j in range(width)]

        def place(row: int, part: int, quad: int) -> Any:
            return builder.add(starts[row], I64(way.tile_place(part, number, quad)))

        emit_cells(builder, way, sums, cells, place)

    def loop_over(builder: Any, starts: list[Any], begun: Any, blocks: list[Any], following: list[Any]) -> Any:
        """The same for all blocks in a loop: without it, so many sums and factors are shuffled about in vain."""
        before, loop, after, number = begin_loop(builder)
        sums = [[[builder.phi(V16I) for _ in state] for state in row] for row in begun]
        made = [[list(state) for state in row] for row in sums]
        block = blocks[0]
        for b in range(1, BLOCKS):
            block = builder.select(builder.icmp_signed("==", number, I64(b)), blocks[b], block)
        own = [builder.add(start, builder.mul(number, I64(way.tile_place(0, 1, 0)))) for start in starts]
        asked = builder.add(following[0], builder.mul(number, I64(width * codec.cell_bytes)))
        add_block(builder, own, made, block, 0, asked, range(0, width * codec.cell_bytes, 64))
        for phi, start, following_sum in zip(*(chain(*chain(*every)) for every in (sums, begun, made)), strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(following_sum, builder.block)
        end_loop(builder, before, loop, after, number, I64(BLOCKS))
        return made

    @intrinsic
    def weigh(
        typingctx: Any, w: Any, ws: Any, f: Any, v0: Any, v1: Any, v2: Any, v3: Any, acc: Any, acc_stride: Any,
        n0: Any, n1: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, stride, f = args[:3]
            blocks, (acc, acc_stride), following = args[3:7], args[7:9], args[9:]
            starts = [builder.add(w, builder.mul(stride, I64(r))) for r in range(rows)]
            sums = [[[words(0)] * way.sums for _ in range(width)] for _ in range(rows)]
            if way.blocks == 1:
                sums = loop_over(builder, starts, sums, blocks, following)
            else:
                for b, block in enumerate(blocks):
                    lines = range(64 * (b // 2), width * codec.cell_bytes, 128)
                    add_block(builder, starts, sums, block, b, following[b % 2], lines)
            for r in range(rows):
                own = builder.add(f, builder.mul(stride, I64(r)))
                step, total = emit_splat_at(builder, own, 0), emit_splat_at(builder, own, 4)
                for j in range(width):
                    place = pointer(builder, builder.add(acc, builder.mul(acc_stride, I64(r))), V16F, I64(64 * j))
                    begun = builder.fadd(builder.load(place, align=4), total)
                    builder.store(emit_fma(builder, way.whole(builder, sums[r][j]), step, begun), place, align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 11), codegen

    return weigh
