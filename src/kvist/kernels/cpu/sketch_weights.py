"""What pages weigh by their sketches, as `cache.sketch` defines it.

Signs become bytes, 2 or nothing, so four dims of sixteen slots are one word a lane, and one instruction multiplies them
by four bytes of the query; begun with minus the sum of its bytes, the sum is that of +1 and -1. Pages pass by in
eights, so that lanes are added up for all of them at once, and heads in portions of four.

A query's record::

    codes   int8 [dims, rounded up to 64]
    first   int32 [16]    -128 times their sum in lane 0: what the sum over the mean's bytes begins with
    minus   int32         minus their sum
    unit    float32       a score in powers of two, of a sum of bytes of length 1; then that times 2**23
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.cache.sketch import CHUNK, HIGHEST, STEEPEST, STEP_BYTES
from kvist.kernels.cpu.attention_tile import begin_loop, end_loop
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.packed_lanes import emit_dot, emit_splat_at, emit_splat_word, words
from kvist.kernels.cpu.scalar import get_f32, get_i32, prefetch, put_f32, put_i32
from kvist.kernels.cpu.sketch import block_bytes, mean_bytes, put_bytes, round_bytes, turn
from kvist.kernels.cpu.tile import fold_eight
from kvist.kernels.cpu.vector import F32, I8, I64, V16F, V16I, emit_fma, emit_load, pointer
from kvist.kernels.cpu.vector_memory import load_f32, store_f32

PAGES = 8  # that pass by together
PORTION = 4  # heads
AHEAD = 16  # pages between what is looked at and what is asked for
SUMS_BYTES = 2 * PORTION * PAGES * 64 + 64  # [mean, slots][head][page][16], steps [page]
ONE = float(1 << 23)  # a power of two, as a float32's bits
FIRST, MINUS, UNIT, STEEP, RECORD = 0, 64, 68, 72, 96  # of a record, behind its codes
LOG2_E = 1.4426950408889634


@jit
def record_bytes(dims: int) -> int:
    """Size of a query's record."""
    return mean_bytes(dims) + RECORD


@jit
def ask(q: int, signs: int, dims: int, scale: float, x: int, out: int) -> None:
    """Make the record of a query. x: room for its numbers."""
    wide, total = mean_bytes(dims), 0.0
    for d in range(0, dims, 16):
        store_f32(x + d * 4, load_f32(q + d * 4))
    turn(x, signs, dims)
    step = round_bytes(x, dims)
    for i in range(0, wide + RECORD, 4):
        put_i32(out + i, 0)
    for d in range(0, dims, 16):
        put_bytes(out + d, load_f32(x + d * 4))
    for d in range(dims):
        total += get_f32(x + d * 4)
    unit = step * scale / (dims & -dims) * LOG2_E
    put_i32(out + wide + FIRST, -128 * int(total))
    put_i32(out + wide + MINUS, -int(total))
    put_f32(out + wide + UNIT, unit)
    put_f32(out + wide + STEEP, unit * ONE)


def make_means(rows: int) -> Any:
    """``means(mean, chunks, records, record_bytes, out)``: scores of a page's mean, over the steps of both.

    out: sixteen whole float32 a head, which are to be added up, PAGES times 64 bytes apart.
    """

    @intrinsic
    def means(typingctx: Any, mean: Any, chunks: Any, records: Any, size: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            mean, chunks, records, size, out = args
            owns = [builder.add(records, builder.mul(size, I64(r))) for r in range(rows)]
            wide = builder.mul(chunks, I64(CHUNK))
            firsts = [builder.load(pointer(builder, own, V16I, wide), align=4) for own in owns]
            before, loop, after, chunk = begin_loop(builder)
            sums, made = [builder.phi(V16I) for _ in owns], []
            at = builder.mul(chunk, I64(CHUNK))
            codes = builder.load(pointer(builder, mean, V16I, at), align=4)
            for own, total, begun in zip(owns, sums, firsts, strict=True):
                factors = builder.load(pointer(builder, own, V16I, at), align=4)
                made.append(emit_dot(builder, total, codes, factors))
                total.add_incoming(begun, before)
                total.add_incoming(made[-1], builder.block)
            end_loop(builder, before, loop, after, chunk, chunks)
            for r, total in enumerate(made):
                place = pointer(builder, out, V16F, I64(r * PAGES * 64))
                builder.store(builder.sitofp(total, V16F), place, align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 5), codegen

    return means


def make_slots(rows: int) -> Any:
    """``slots(block, dims, records, record_bytes, codes, out, more)``: 2**score of a block's slots, away from the mean.

    codes: bytes of codes in a record. out: as of `make_means`; more: they are added to what is there.
    """

    @intrinsic
    def slots(typingctx: Any, block: Any, dims: Any, records: Any, size: Any, codes: Any, out: Any, more: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            block, dims, records, size, codes, out, more = args
            owns = [builder.add(records, builder.mul(size, I64(r))) for r in range(rows)]
            tails = [builder.add(own, codes) for own in owns]
            begun = [emit_splat_word(builder, tail, I64(MINUS)) for tail in tails]
            before, loop, after, cell = begin_loop(builder)
            sums = [[builder.phi(V16I), builder.phi(V16I)] for _ in owns]  # two chains: one would be waited for
            new, at = [list[Any](pair) for pair in sums], builder.mul(cell, I64(16))
            for i in range(4):
                place = pointer(builder, block, I64, builder.add(builder.mul(at, I64(2)), I64(8 * i)))
                marks = builder.bitcast(builder.load(place, align=8), ir.VectorType(ir.IntType(1), 64))
                two, none = (ir.Constant(ir.VectorType(I8, 64), [value] * 64) for value in (2, 0))
                quads = builder.bitcast(builder.select(marks, two, none), V16I)
                for r, own in enumerate(owns):
                    factors = emit_splat_word(builder, own, builder.add(at, I64(4 * i)))
                    new[r][i % 2] = emit_dot(builder, new[r][i % 2], quads, factors)
            for pair, start, made in zip(sums, begun, new, strict=True):
                for total, first, following in zip(pair, (start, words(0)), made, strict=True):
                    total.add_incoming(first, before)
                    total.add_incoming(following, builder.block)
            end_loop(builder, before, loop, after, cell, builder.lshr(dims, I64(4)))
            length = emit_load(builder, builder.add(block, builder.mul(dims, I64(2))), "f16")
            low, high, bias = (_floats((127 + by) * ONE) for by in (-STEEPEST, STEEPEST, 0))
            others = builder.icmp_signed("!=", more, I64(0))
            for r, (tail, made) in enumerate(zip(tails, new, strict=True)):
                total = builder.add(made[0], made[1])
                steep = builder.fmul(length, emit_splat_at(builder, tail, STEEP))
                power = emit_fma(builder, builder.sitofp(total, V16F), steep, bias)
                power = builder.select(builder.fcmp_ordered(">", power, low), power, low)
                power = builder.select(builder.fcmp_ordered("<", power, high), power, high)
                power = builder.bitcast(builder.fptosi(power, V16I), V16F)
                place = pointer(builder, out, V16F, I64(r * PAGES * 64))
                there = builder.select(others, builder.load(place, align=4), _floats(0.0))
                builder.store(builder.fadd(there, power), place, align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 7), codegen

    return slots


@intrinsic
def put_heights(typingctx: Any, sums: Any, steps: Any, unit: Any, out: Any) -> Any:
    """The heights of eight pages in a head, float32. sums: of a head; unit: where its unit stands."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, steps, unit, out = args
        eight, whole = ir.VectorType(F32, PAGES), ir.VectorType(ir.IntType(32), PAGES)
        mean, slots = (
            fold_eight(
                builder,
                [builder.load(pointer(builder, sums, V16F, I64(part + i * 64)), align=4) for i in range(PAGES)],
            )
            for part in (0, PORTION * PAGES * 64)
        )
        bits = builder.sitofp(builder.bitcast(slots, whole), eight)
        log = builder.fsub(
            builder.fmul(bits, ir.Constant(eight, [1 / ONE] * PAGES)), ir.Constant(eight, [127.0] * PAGES)
        )
        units = ir.Constant(eight, ir.Undefined)
        number = builder.load(pointer(builder, unit, F32), align=4)
        for i in range(PAGES):
            units = builder.insert_element(units, number, ir.IntType(32)(i))
        mean = builder.fmul(mean, builder.load(pointer(builder, steps, eight), align=4))
        height = builder.fadd(builder.fmul(mean, units), log)
        for sign, limit in ((">", -HIGHEST), ("<", HIGHEST)):
            bound = ir.Constant(eight, [limit] * PAGES)
            height = builder.select(builder.fcmp_ordered(sign, height, bound), height, bound)
        builder.store(height, pointer(builder, out, eight), align=4)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 4), codegen


def make_heights() -> Any:
    """``heights(records, heads, dims, blocks, pages, count, sketches, page_bytes, sums, out, apart)``.

    Up to PORTION heads: log2 of what pages weigh, float32 rows `apart` bytes apart; of the last eight pages those that
    do not exist are the last one. pages: ids; sketches: where page 0 has its own; sums: SUMS_BYTES.
    """
    means1, means2, means3, means4 = (make_means(rows) for rows in (1, 2, 3, 4))
    slots1, slots2, slots3, slots4 = (make_slots(rows) for rows in (1, 2, 3, 4))
    slot_sums = PORTION * PAGES * 64

    @jit
    def one_page(place: int, records: int, heads: int, dims: int, blocks: int, sums: int) -> None:
        codes, size, each = mean_bytes(dims), record_bytes(dims), block_bytes(dims)
        chunks, block = codes // CHUNK, place + codes + STEP_BYTES
        if heads == 1:
            means1(place, chunks, records, size, sums)
            for b in range(blocks):
                slots1(block + b * each, dims, records, size, codes, sums + slot_sums, b)
        elif heads == 2:
            means2(place, chunks, records, size, sums)
            for b in range(blocks):
                slots2(block + b * each, dims, records, size, codes, sums + slot_sums, b)
        elif heads == 3:
            means3(place, chunks, records, size, sums)
            for b in range(blocks):
                slots3(block + b * each, dims, records, size, codes, sums + slot_sums, b)
        else:
            means4(place, chunks, records, size, sums)
            for b in range(blocks):
                slots4(block + b * each, dims, records, size, codes, sums + slot_sums, b)

    @jit
    def heights(
        records: int, heads: int, dims: int, blocks: int, pages: int, count: int, sketches: int, page_bytes: int,
        sums: int, out: int, apart: int,
    ) -> None:  # fmt: skip
        codes = mean_bytes(dims)
        steps, size, kept = sums + 2 * slot_sums, record_bytes(dims), codes + STEP_BYTES + blocks * (block_bytes(dims))
        for i in range(0, count, PAGES):
            for j in range(PAGES):
                if i + j + AHEAD < count:
                    ahead = sketches + get_i32(pages + (i + j + AHEAD) * 4) * page_bytes
                    for line in range(0, kept, 64):
                        prefetch(ahead + line)
                place = sketches + get_i32(pages + min(i + j, count - 1) * 4) * page_bytes
                one_page(place, records, heads, dims, blocks, sums + j * 64)
                put_f32(steps + j * 4, get_f32(place + codes))
            for r in range(heads):
                put_heights(sums + r * PAGES * 64, steps, records + r * size + codes + UNIT, out + r * apart + i * 4)

    return heights


def _floats(value: float) -> Any:
    return ir.Constant(V16F, [value] * 16)
