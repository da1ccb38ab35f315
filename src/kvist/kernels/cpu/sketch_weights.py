"""What pages weigh by their sketches, as `cache.sketch` defines it.

A query is, for each quad, the sixteen sums of its signs: four quads are one vector of bytes, in which one instruction
looks up the sums of sixteen slots, and another adds them up in four bytes each. Pages pass by in eights, so that lanes
are added up for all of them at once, and heads in portions of four.

A query's record::

    codes   int8 [dims, rounded up to 64]
    sums    int8 [dims / 16, rounded up to 2][quad 4][16]
    first   int32 [16]    -128 times the sum of codes in lane 0: what the sum over the mean's bytes begins with
    unit    float32       a score in powers of two, of a sum over the mean of step 1
    steep   float32       2**23 times that, of sums looked up, of length 1
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.cache.sketch import CHUNK, HIGHEST, SPAN, STEEPEST, STEP_BYTES
from kvist.kernels.cpu.attention_tile import begin_loop, end_loop
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.packed_dot import put_bytes
from kvist.kernels.cpu.packed_lanes import emit_dot, emit_splat_at, words
from kvist.kernels.cpu.scalar import get_f32, get_i32, prefetch, put_f32, put_i32
from kvist.kernels.cpu.sketch import block_bytes, mean_bytes, round_bytes, turn
from kvist.kernels.cpu.tile import fold_eight
from kvist.kernels.cpu.vector import F32, I8, I32, I64, V16F, V16I, emit_fma, emit_load, external, has, pointer
from kvist.kernels.cpu.vector_memory import load_f32, store_f32

V64B = ir.VectorType(I8, 64)

PAGES = 8  # that pass by together
PORTION = 4  # heads
AHEAD = 16  # pages between what is looked at and what is asked for
SUMS_BYTES = 2 * PORTION * PAGES * 64 + 64  # [mean, slots][head][page][16], steps [page]
ONE = float(1 << 23)  # a power of two, as a float32's bits
FIRST, UNIT, STEEP, TAIL_BYTES = 0, 64, 68, 96  # of a record, behind its sums
LOG2_E = 1.4426950408889634


@jit
def sums_bytes(dims: int) -> int:
    """Size of a query's sums."""
    return (dims + SPAN - 1) // SPAN * 128


@jit
def record_bytes(dims: int) -> int:
    """Size of a query's record."""
    return mean_bytes(dims) + sums_bytes(dims) + TAIL_BYTES


@jit
def ask(q: int, signs: int, dims: int, scale: float, x: int, out: int) -> None:
    """Make the record of a query. x: room for five times its numbers."""
    sums, all_sums = out + mean_bytes(dims), x + dims * 4
    tail, power, total = sums + sums_bytes(dims), scale / (dims & -dims) * LOG2_E, 0.0
    for d in range(0, dims, 16):
        store_f32(x + d * 4, load_f32(q + d * 4))
    turn(x, signs, dims)
    for d in range(0, dims, 4):
        put_quad(x + d * 4, all_sums + d * 16)
    steep = round_bytes(all_sums, dims * 4)
    unit = round_bytes(x, dims)
    for i in range(0, record_bytes(dims), 4):
        put_i32(out + i, 0)
    for d in range(0, dims, 16):
        put_bytes(out + d, load_f32(x + d * 4))
    for i in range(0, dims * 4, 16):
        put_bytes(sums + i, load_f32(all_sums + i * 4))
    for d in range(dims):
        total += get_f32(x + d * 4)
    put_i32(tail + FIRST, -128 * int(total))
    put_f32(tail + UNIT, unit * power)
    put_f32(tail + STEEP, steep * power * ONE)


@intrinsic
def put_quad(typingctx: Any, x: Any, out: Any) -> Any:
    """The sixteen sums of four numbers, added or taken away: `cache.sketch.quad_sums`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = None
        for i in range(4):
            marks = ir.Constant(V16F, [1.0 if place >> i & 1 else -1.0 for place in range(16)])
            number = builder.fmul(emit_splat_at(builder, args[0], i * 4), marks)
            total = number if total is None else builder.fadd(total, number)
        builder.store(total, pointer(builder, args[1], V16F), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


def emit_lookup(builder: Any, table: Any, places: Any) -> Any:
    """Bytes of a table of 64, four times sixteen: byte i looks in part i % 4. places: bytes, 0 to 15."""
    parts = ir.Constant(V64B, [16 * (lane % 4) for lane in range(64)])
    if has("avx512vbmi"):
        function = external(builder, "llvm.x86.avx512.permvar.qi.512", V64B, [V64B, V64B])
        return builder.call(function, [table, builder.or_(places, parts)])
    found = ir.Constant(V64B, [0] * 64)
    for place in range(16):
        lanes = ir.Constant(ir.VectorType(I32, 64), [16 * (lane % 4) + place for lane in range(64)])
        here = builder.icmp_unsigned("==", places, ir.Constant(V64B, [place] * 64))
        found = builder.select(here, builder.shuffle_vector(table, table, lanes), found)
    return found


def make_means(rows: int) -> Any:
    """``means(mean, chunks, records, record_bytes, firsts, out)``: scores of a page's mean, over the steps of both.

    firsts: where they lie in a record; out: sixteen whole float32 a head, which are to be added up, PAGES times 64
    bytes apart.
    """

    @intrinsic
    def means(typingctx: Any, mean: Any, chunks: Any, records: Any, size: Any, firsts: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            mean, chunks, records, size, firsts, out = args
            owns = [builder.add(records, builder.mul(size, I64(r))) for r in range(rows)]
            begun = [builder.load(pointer(builder, own, V16I, firsts), align=4) for own in owns]
            before, loop, after, chunk = begin_loop(builder)
            sums, made = [builder.phi(V16I) for _ in owns], []
            at = builder.mul(chunk, I64(CHUNK))
            codes = builder.load(pointer(builder, mean, V16I, at), align=4)
            for own, total, first in zip(owns, sums, begun, strict=True):
                factors = builder.load(pointer(builder, own, V16I, at), align=4)
                made.append(emit_dot(builder, total, codes, factors))
                total.add_incoming(first, before)
                total.add_incoming(made[-1], builder.block)
            end_loop(builder, before, loop, after, chunk, chunks)
            for r, total in enumerate(made):
                place = pointer(builder, out, V16F, I64(r * PAGES * 64))
                builder.store(builder.sitofp(total, V16F), place, align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 6), codegen

    return means


def make_slots(rows: int) -> Any:
    """``slots(block, spans, records, record_bytes, sums, out, more)``: 2**score of a block's slots, away from the mean.

    sums: where they lie in a record. out: as of `make_means`; more: they are added to what is there.
    """

    @intrinsic
    def slots(typingctx: Any, block: Any, spans: Any, records: Any, size: Any, sums: Any, out: Any, more: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            block, spans, records, size, sums, out, more = args
            tables = [builder.add(builder.add(records, sums), builder.mul(size, I64(r))) for r in range(rows)]
            tails = [builder.add(table, builder.mul(spans, I64(128))) for table in tables]
            low, ones = ir.Constant(V64B, [15] * 64), words(0x01010101)
            before, loop, after, span = begin_loop(builder)
            totals, new = [builder.phi(V16I) for _ in tables], []
            marks = builder.load(pointer(builder, block, V64B, builder.mul(span, I64(64))), align=2)
            high = builder.bitcast(builder.lshr(builder.bitcast(marks, V16I), words(4)), V64B)
            halves = [builder.and_(part, low) for part in (marks, high)]
            for table, total in zip(tables, totals, strict=True):
                made = total
                for half, places in enumerate(halves):
                    at = builder.add(builder.mul(span, I64(128)), I64(64 * half))
                    found = emit_lookup(builder, builder.load(pointer(builder, table, V64B, at), align=4), places)
                    made = emit_dot(builder, made, ones, builder.bitcast(found, V16I))
                new.append(made)
                total.add_incoming(words(0), before)
                total.add_incoming(made, builder.block)
            end_loop(builder, before, loop, after, span, spans)
            length = emit_load(builder, builder.add(block, builder.mul(spans, I64(64))), "f16")
            low, high, bias = (_floats((127 + by) * ONE) for by in (-STEEPEST, STEEPEST, 0))
            others = builder.icmp_signed("!=", more, I64(0))
            for r, (tail, total) in enumerate(zip(tails, new, strict=True)):
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
        chunks, block, spans = codes // CHUNK, place + codes + STEP_BYTES, (dims + SPAN - 1) // SPAN
        firsts = size - TAIL_BYTES
        if heads == 1:
            means1(place, chunks, records, size, firsts, sums)
            for b in range(blocks):
                slots1(block + b * each, spans, records, size, codes, sums + slot_sums, b)
        elif heads == 2:
            means2(place, chunks, records, size, firsts, sums)
            for b in range(blocks):
                slots2(block + b * each, spans, records, size, codes, sums + slot_sums, b)
        elif heads == 3:
            means3(place, chunks, records, size, firsts, sums)
            for b in range(blocks):
                slots3(block + b * each, spans, records, size, codes, sums + slot_sums, b)
        else:
            means4(place, chunks, records, size, firsts, sums)
            for b in range(blocks):
                slots4(block + b * each, spans, records, size, codes, sums + slot_sums, b)

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
                unit = records + (r + 1) * size - TAIL_BYTES + UNIT
                put_heights(sums + r * PAGES * 64, steps, unit, out + r * apart + i * 4)

    return heights


def _floats(value: float) -> Any:
    return ir.Constant(V16F, [value] * 16)
