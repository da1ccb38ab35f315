"""The micro-kernels over whole numbers: scores of a tile, and the weighted sum of its values.

A row of factors is rounded to a byte each, signed in a query and not in the weights of a tile. Their products with
codes are added up exactly; so neither the order nor the processor matters, and codes that are weighed by 0 may be
anything. ::

    score[slot] = scale[slot] * step * sum(q code) + offset[slot] * sum(q)        step: of the row's rounding
    out[dim]   += step * sum(w code) + sum(p offset) + middle * lost              w = p * scale, by slot
                                                                                  lost = sum(p scale) - step * sum(w)

What rounding takes from weights of one byte is made good for the middle of the codes, so that only what a code is away
from it misses that. Of a bell a code is its step, for K how far it is above the lowest one, whose offset is that step.
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
from kvist.kernels.cpu.packed_lanes import Cell, emit_splat_at
from kvist.kernels.cpu.packed_products import emit_cells, way_of
from kvist.kernels.cpu.vector import I64, V16F, begin_loop, emit_fma, emit_load, emit_prefetch, end_loop, pointer


def emit_blocks(builder: Any, blocks: Any) -> list[Any]:
    """The eight addresses that `packed_rows.put_blocks` left."""
    return [builder.load(pointer(builder, blocks, I64, I64(8 * i))) for i in range(2 * BLOCKS)]


def make_dot_scores(codec: Packed, rows: int, share: int) -> Any:
    """``scores(q, q_stride, f, blocks, at, beside, cells, out, first, asked)``: a tile's scores over a group of dims.

    q: the group's factors of row 0 as `packed_factors` puts them, sixteen dims together; the next row's are `q_stride`
    further; f: its step and sum (float32), as far apart. blocks: see `packed_rows.put_blocks`; at: where in a block the
    group's cells lie; beside: their float16 scales and offsets (by channels: none, the row's factors and sum hold
    them). out: 64 scores a row, 256 bytes apart; first: 0 for the first group, else they are added to what is there.
    asked: what is asked for, `share` bytes a cell; without a share it is the same cells of the blocks read next.
    """
    way = way_of(codec, keys=True)

    def scales_at(builder: Any, address: Any) -> tuple[Any, Any]:
        """Scales and offsets; of a bell its lowest step."""
        scales = emit_load(builder, address, "f16")
        if codec.offset:
            return scales, emit_load(builder, address, "f16", I64(32))
        return scales, builder.fmul(scales, ir.Constant(V16F, [-float(STEEPEST)] * 16))

    def loop_over(
        builder: Any, starts: list[Any], blocks: list[Any], cells: Any, following: list[Any], part: int
    ) -> Any:  # fmt: skip
        """One part's sums of some blocks, of each row, over all cells."""
        before, loop, after, cell = begin_loop(builder)
        zeros = way.begin()
        sums = [[[builder.phi(zero.type) for zero in zeros] for _ in blocks] for _ in starts]
        offset, at = builder.mul(cell, I64(codec.cell_bytes)), builder.mul(cell, I64(16))
        apart = share * len(blocks) or codec.cell_bytes
        for n in following:
            for line in range(0, apart, 64):
                emit_prefetch(builder, n, builder.add(builder.mul(cell, I64(apart)), I64(line)))
        squares = [Cell(codec, builder, builder.add(block, offset)) for block in blocks]
        new = [[list(block) for block in row] for row in sums]

        def place(row: int, quad: int) -> Any:
            return builder.add(starts[row], builder.add(at, I64(4 * quad)))

        emit_cells(builder, way, new, squares, place, part)
        begun = zeros * (len(starts) * len(blocks))
        for phi, zero, made in zip(chain(*chain(*sums)), begun, chain(*chain(*new)), strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(made, builder.block)
        end_loop(builder, before, loop, after, cell, cells)
        return new

    @intrinsic
    def scores(
        typingctx: Any, q: Any, qs: Any, f: Any, blocks: Any, at: Any, beside: Any, cells: Any, out: Any, first: Any,
        asked: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            q, stride, f, blocks, at, beside, cells, out, first, asked = args
            starts = [builder.add(q, builder.mul(stride, I64(r))) for r in range(rows)]
            found = emit_blocks(builder, blocks)
            k, s = ([builder.add(block, to) for block in found[:4]] for to in (at, beside))
            for n in found[4:] if not share and not codec.channels else ():
                emit_prefetch(builder, n, beside)
            new = [list[Any]() for _ in starts]
            for b in range(0, BLOCKS, way.blocks):
                following = [builder.add(block, at) for block in found[4 + b : 4 + b + way.blocks]]
                if share:
                    following = [builder.add(asked, builder.mul(cells, I64(b * share)))]
                made = [
                    loop_over(builder, starts, k[b : b + way.blocks], cells, following if part == 0 else [], part)
                    for part in range(way.parts)
                ]
                for row, *parts in zip(new, *made, strict=True):
                    row += zip(*parts, strict=True)
            begins = builder.icmp_signed("==", first, I64(0))
            zero = ir.Constant(V16F, [0.0] * 16)
            for b, address in enumerate(s):  # once for all rows
                scales, offsets = (None, None) if codec.channels else scales_at(builder, address)
                for r in range(rows):
                    own = builder.add(f, builder.mul(stride, I64(r)))
                    step, total = emit_splat_at(builder, own, 0), emit_splat_at(builder, own, 4)
                    place = pointer(builder, out, V16F, I64(r * 256 + b * 64))
                    score = builder.select(begins, zero, builder.load(place, align=4))
                    whole = builder.fmul(builder.sitofp(way.total(builder, new[r][b]), V16F), step)
                    if codec.channels:
                        score = builder.fadd(whole, builder.fadd(score, total))
                    else:
                        score = emit_fma(builder, whole, scales, emit_fma(builder, offsets, total, score))
                    builder.store(score, place, align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 10), codegen

    return scores


def weigh_width(codec: Packed) -> int:
    """Vectors of dims that `make_dot_weigh` takes at once."""
    return way_of(codec, keys=False).width


def make_dot_weigh(codec: Packed, rows: int, width: int, share: int) -> Any:
    """``weigh(w, w_stride, f, blocks, at, asked, acc, acc_stride)``: acc[row][16 * width dims] += a tile's values.

    w: row 0's weights as `pack_tile` has them, the next row's `w_stride` further; f: their step, and
    what is added to all dims, as far apart. blocks: see `packed_rows.put_blocks`; at: where in a block the `width`
    cells lie. asked: what is asked for, `share` bytes a cell; without a share it is the same cells of the blocks read
    next.
    """
    way, apart = way_of(codec, keys=False), width * (share or codec.cell_bytes)

    def add_block(
        builder: Any, starts: list[Any], sums: Any, block: Any, number: Any, following: Any, part: int
    ) -> None:  # fmt: skip
        """Add one part of a block's values, and ask for as much of what follows, once for all parts."""
        for line in range(0, apart if part == 0 else 0, 64):
            emit_prefetch(builder, following, I64(line))
        addresses = [builder.add(block, I64(j * codec.cell_bytes)) for j in range(width)]
        cells = [Cell(codec, builder, address, signed=True) for address in addresses]
        beside = way.tile_block(builder, number)
        own = [builder.add(start, beside) for start in starts]

        def place(row: int, quad: int) -> Any:
            return builder.add(own[row], I64(way.tile_place(quad)))

        emit_cells(builder, way, sums, cells, place, part)

    def loop_over(builder: Any, starts: list[Any], blocks: Any, at: Any, asked: Any, part: int) -> Any:
        """The same for all blocks in a loop: without it, so many sums and factors are shuffled about in vain."""
        before, loop, after, number = begin_loop(builder)
        begun = [[way.begin() for _ in range(width)] for _ in starts]
        sums = [[[builder.phi(zero.type) for zero in state] for state in row] for row in begun]
        made = [[list(state) for state in row] for row in sums]
        place = builder.mul(number, I64(8))
        block, following = (
            builder.add(builder.load(pointer(builder, blocks, I64, builder.add(place, I64(to)))), at) for to in (0, 32)
        )
        if share:
            following = builder.add(asked, builder.mul(number, I64(apart)))
        add_block(builder, starts, made, block, number, following, part)
        for phi, start, following_sum in zip(*(chain(*chain(*every)) for every in (sums, begun, made)), strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(following_sum, builder.block)
        end_loop(builder, before, loop, after, number, I64(BLOCKS))
        return made

    @intrinsic
    def weigh(
        typingctx: Any, w: Any, ws: Any, f: Any, blocks: Any, at: Any, asked: Any, acc: Any, acc_stride: Any
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, stride, f, blocks, at, asked, acc, acc_stride = args
            starts = [builder.add(w, builder.mul(stride, I64(r))) for r in range(rows)]
            if way.blocks == 1:
                parts = [loop_over(builder, starts, blocks, at, asked, part) for part in range(way.parts)]
            else:
                sums = [[way.begin() for _ in range(width)] for _ in starts]
                found = [builder.add(block, at) for block in emit_blocks(builder, blocks)]
                for b, block in enumerate(found[:4]):
                    following = builder.add(asked, I64(b * apart)) if share else found[4 + b]
                    add_block(builder, starts, sums, block, I64(b), following, 0)
                parts = [sums]
            for r in range(rows):
                own = builder.add(f, builder.mul(stride, I64(r)))
                step, total = emit_splat_at(builder, own, 0), emit_splat_at(builder, own, 4)
                for j in range(width):
                    place = pointer(builder, builder.add(acc, builder.mul(acc_stride, I64(r))), V16F, I64(64 * j))
                    begun = builder.fadd(builder.load(place, align=4), total)
                    made = builder.sitofp(way.total(builder, [part[r][j] for part in parts]), V16F)
                    builder.store(emit_fma(builder, made, step, begun), place, align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 8), codegen

    return weigh
