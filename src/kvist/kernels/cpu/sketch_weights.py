"""What pages weigh by their sketches, as `cache.sketch` defines it.

A query is, for each quad, the sixteen sums of its signs: four quads are one vector of bytes, in which one instruction
looks up the sums of sixteen slots, and another adds them up in four bytes each. Heads pass by in portions of four, so
that lanes are added up for all of them at once, and pages in pairs, so that a query is loaded once for both.

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

from kvist.cache.sketch import CHUNK, HIGHEST, LENGTHS_BYTES, SPAN, STEEPEST, STEP_BYTES
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.packed_factors import put_bytes
from kvist.kernels.cpu.packed_lanes import emit_splat_at, words
from kvist.kernels.cpu.packed_products import emit_dot, in_pairs
from kvist.kernels.cpu.scalar import get_f32, get_i32, prefetch, put_f32, put_i32
from kvist.kernels.cpu.sketch import block_bytes, mean_bytes, round_bytes, turn
from kvist.kernels.cpu.sketch_lookup import emit_add_bytes, emit_lookup
from kvist.kernels.cpu.tile import fold
from kvist.kernels.cpu.vector import (
    F32,
    I32,
    I64,
    V16F,
    V16I,
    begin_loop,
    emit_fma,
    emit_load,
    end_loop,
    pointer,
    shuffle,
)
from kvist.kernels.cpu.vector_bytes import V32H, V64B, emit_pairs
from kvist.kernels.cpu.vector_memory import load_f32, store_f32

PORTION = 4  # heads that pass by together
PAIRS = 2 * PORTION  # of a page and a head
V8F, V8I, V4L = ir.VectorType(F32, PAIRS), ir.VectorType(I32, PAIRS), ir.VectorType(ir.IntType(64), PORTION)
AHEAD = 16  # pages between what is looked at and what is asked for
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


def make_height(rows: int) -> Any:
    """``height(first, second, chunks, spans, blocks, records, record_bytes, units, out, apart)``: two pages.

    first, second: where their sketches lie; units: float32 [page][PORTION], of the heads, twice the same. out: log2 of
    what the first weighs, float32, then the second; each head's `apart` bytes after the one before.
    """

    @intrinsic
    def height(
        typingctx: Any, first: Any, second: Any, chunks: Any, spans: Any, blocks: Any, records: Any, size: Any,
        units: Any, out: Any, apart: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            *places, chunks, spans, blocks, records, size, units, out, apart = args
            owns = [builder.add(records, builder.mul(size, I64(r))) for r in range(rows)]
            tails = [builder.sub(builder.add(own, size), I64(TAIL_BYTES)) for own in owns]
            codes = builder.mul(chunks, I64(CHUNK))
            means = _emit_means(builder, places, chunks, owns, tails)
            tables = [builder.add(own, codes) for own in owns]
            begins = [builder.add(builder.add(place, codes), I64(STEP_BYTES)) for place in places]
            slots = _emit_slots(builder, begins, spans, blocks, tables, tails)
            unit = builder.load(pointer(builder, units, V8F), align=4)
            steps = [builder.load(pointer(builder, place, F32, codes), align=4) for place in places]
            made = _emit_heights(builder, means, slots, steps, unit)
            for r in range(rows):
                both = builder.extract_element(made, I32(r))
                builder.store(both, pointer(builder, builder.add(out, builder.mul(apart, I64(r))), both.type), align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 10), codegen

    return height


def _emit_heights(builder: Any, means: list[list[Any]], slots: list[list[Any]], steps: list[Any], unit: Any) -> Any:
    """Of each head the heights of two pages, as one word; made of their lanes, [page][head] each."""
    spare = [_floats(0.0)] * (PORTION - len(means[0]))
    wide = [lanes for page in means for lanes in (*(builder.sitofp(mean, V16F) for mean in page), *spare)]
    folded = fold(builder, [*wide, *(lanes for page in slots for lanes in (*page, *spare))])
    low, high = (shuffle(builder, folded, folded, list(range(part, part + PAIRS))) for part in (0, PAIRS))
    bits = builder.sitofp(builder.bitcast(high, V8I), V8F)
    log = builder.fsub(builder.fmul(bits, _pairs(1 / ONE)), _pairs(127.0))
    both = ir.Constant(V8F, ir.Undefined)
    for i, step in enumerate(steps):
        both = builder.insert_element(both, step, I32(i))
    both = shuffle(builder, both, both, [0] * PORTION + [1] * PORTION)
    made = builder.fadd(builder.fmul(builder.fmul(low, both), unit), log)
    for sign, limit in ((">", -HIGHEST), ("<", HIGHEST)):
        made = builder.select(builder.fcmp_ordered(sign, made, _pairs(limit)), made, _pairs(limit))
    by_head = [head + page * PORTION for head in range(PORTION) for page in range(2)]
    return builder.bitcast(shuffle(builder, made, made, by_head), V4L)


def _emit_means(builder: Any, places: list[Any], chunks: Any, owns: list[Any], tails: list[Any]) -> list[list[Any]]:
    """Of each page and query, the sum over the bytes of the page's mean, in sixteen parts, whole numbers."""
    begun = [builder.load(pointer(builder, tail, V16I, I64(FIRST)), align=4) for tail in tails]
    before, loop, after, chunk = begin_loop(builder)
    sums = [[builder.phi(V16I) for _ in owns] for _ in places]
    at = builder.mul(chunk, I64(CHUNK))
    queries = [builder.load(pointer(builder, own, V16I, at), align=4) for own in owns]
    made = []
    for place, totals in zip(places, sums, strict=True):
        codes = builder.load(pointer(builder, place, V16I, at), align=4)
        made.append([emit_dot(builder, total, codes, query) for total, query in zip(totals, queries, strict=True)])
    _close(sums, made, [begun] * len(places), before, builder.block)
    end_loop(builder, before, loop, after, chunk, chunks)
    return made


def _emit_slots(
    builder: Any, begins: list[Any], spans: Any, blocks: Any, tables: list[Any], tails: list[Any]
) -> list[list[Any]]:  # fmt: skip
    """Of each page and query, the sum over blocks of 2**score of their slots, away from the mean."""
    before, loop, after, number = begin_loop(builder)
    sums = [[builder.phi(V16F) for _ in tables] for _ in begins]
    lengths_at = builder.mul(spans, I64(64))
    each = builder.mul(number, builder.add(lengths_at, I64(LENGTHS_BYTES)))
    own = [builder.add(begin, each) for begin in begins]
    steeps = [emit_splat_at(builder, tail, STEEP) for tail in tails]
    low, high, bias = (_floats((127 + by) * ONE) for by in (-STEEPEST, STEEPEST, 0))
    made = []
    for block, found, totals in zip(own, _emit_lookups(builder, own, spans, tables), sums, strict=True):
        length, powers = emit_load(builder, builder.add(block, lengths_at), "f16"), []
        for steep, whole, total in zip(steeps, found, totals, strict=True):
            power = emit_fma(builder, builder.sitofp(whole, V16F), builder.fmul(length, steep), bias)
            power = builder.select(builder.fcmp_ordered(">", power, low), power, low)
            power = builder.select(builder.fcmp_ordered("<", power, high), power, high)
            powers.append(builder.fadd(total, builder.bitcast(builder.fptosi(power, V16I), V16F)))
        made.append(powers)
    _close(sums, made, [[_floats(0.0)] * len(tables)] * len(begins), before, builder.block)
    end_loop(builder, before, loop, after, number, blocks)
    return made


def _emit_lookups(builder: Any, blocks: list[Any], spans: Any, tables: list[Any]) -> list[list[Any]]:
    """Of each block and query, the sums of its slots with their signs, whole numbers.

    A table is loaded once for all blocks: while memory is waited for, loads are what there is least of.
    """
    low, kind = ir.Constant(V64B, [15] * 64), V32H if in_pairs() else V16I
    before, loop, after, span = begin_loop(builder)
    totals, halves = [[builder.phi(kind) for _ in tables] for _ in blocks], []
    for block in blocks:
        marks = builder.load(pointer(builder, block, V64B, builder.mul(span, I64(64))), align=2)
        high = builder.bitcast(builder.lshr(builder.bitcast(marks, V16I), words(4)), V64B)
        halves.append([builder.and_(part, low) for part in (marks, high)])
    made = [list[Any](row) for row in totals]
    for r, table in enumerate(tables):
        for half in range(2):
            at = builder.add(builder.mul(span, I64(128)), I64(64 * half))
            sums = builder.load(pointer(builder, table, V64B, at), align=4)
            for row, places in zip(made, halves, strict=True):
                row[r] = emit_add_bytes(builder, row[r], emit_lookup(builder, sums, places[half]))
    zero = ir.Constant(kind, [0] * kind.count)
    _close(totals, made, [[zero] * len(tables)] * len(blocks), before, builder.block)
    end_loop(builder, before, loop, after, span, spans)
    if in_pairs():
        return [[emit_pairs(builder, total, words(0x0001_0001)) for total in row] for row in made]
    return made


def _close(phis: list[list[Any]], made: list[list[Any]], begun: list[list[Any]], before: Any, block: Any) -> None:
    """Say what a loop's sums begin with, and how they go on."""
    for rows in zip(phis, made, begun, strict=True):
        for phi, following, start in zip(*rows, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(following, block)


def make_heights() -> Any:
    """``heights(records, heads, dims, blocks, pages, count, sketches, units, out, apart)``.

    Up to PORTION heads: log2 of what pages weigh, float32 rows `apart` bytes apart. pages: ids; sketches: of all pages,
    one after another; units: room for twice PORTION numbers. Of an odd count the last page is there twice.
    """
    height1, height2, height3, height4 = (make_height(rows) for rows in (1, 2, 3, 4))

    @jit
    def heights(
        records: int, heads: int, dims: int, blocks: int, pages: int, count: int, sketches: int, units: int, out: int,
        apart: int,
    ) -> None:  # fmt: skip
        codes, size, spans = mean_bytes(dims), record_bytes(dims), (dims + SPAN - 1) // SPAN
        chunks, kept = codes // CHUNK, codes + STEP_BYTES + blocks * block_bytes(dims)
        for r in range(heads):
            unit = get_f32(records + (r + 1) * size - TAIL_BYTES + UNIT)
            put_f32(units + r * 4, unit)
            put_f32(units + (PORTION + r) * 4, unit)
        for i in range(0, count, 2):
            for j in range(i + AHEAD, min(i + AHEAD + 2, count)):
                ahead = sketches + get_i32(pages + j * 4) * kept
                for line in range(0, kept, 64):
                    prefetch(ahead + line)
            one, at = sketches + get_i32(pages + i * 4) * kept, out + i * 4
            two = sketches + get_i32(pages + min(i + 1, count - 1) * 4) * kept
            if heads == 1:
                height1(one, two, chunks, spans, blocks, records, size, units, at, apart)
            elif heads == 2:
                height2(one, two, chunks, spans, blocks, records, size, units, at, apart)
            elif heads == 3:
                height3(one, two, chunks, spans, blocks, records, size, units, at, apart)
            else:
                height4(one, two, chunks, spans, blocks, records, size, units, at, apart)

    return heights


def _floats(value: float) -> Any:
    return ir.Constant(V16F, [value] * 16)


def _pairs(value: float) -> Any:
    return ir.Constant(V8F, [value] * PAIRS)
