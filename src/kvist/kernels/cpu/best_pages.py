"""The pages that tokens choose to read (after Quest, Tang et al. 2024): their bounds, their scores, the best of them.

A page's bounds are the smallest and the largest number of each dim of its keys. A page's score is what the query heads
of a KV head find there together (see `policy.topk`), a dot product of the bounds, as they lie, with what their queries
have in common::

    page p   [low 0 .. d-1                ][high 0 .. d-1               ]
    query    [2 sum_h q_h - sum_h |q_h|   ][2 sum_h q_h + sum_h |q_h|   ]

The best are found without a sort: t, the largest number that enough scores reach, by halves. A score is what a page and
a query make of each other, whatever the rows and pages beside them.

Scratch of a thread, float32: query [2 d], scores of pages 1, 2, ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_plan import SEQ_BYTES, pages_read
from kvist.kernels.cpu.formats import Format
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import arg, get_f32, get_i32, prefetch, put_f32, put_i32, slot
from kvist.kernels.cpu.tile import ZEROS, emit_sums, fold_eight
from kvist.kernels.cpu.vector import (
    I32,
    I64,
    absolute,
    add,
    emit_load,
    keep_first,
    maximum,
    minimum,
    pointer,
    reduce_max,
    splat,
    sub,
)
from kvist.kernels.cpu.vector_memory import ITEMSIZE, load, load_f32, store, store_f32
from kvist.kernels.cpu.wide import as_float, count_between, pack_between

PAGES = 8  # scored together
LOWEST, LARGEST = -3.0e38, 3.0e38  # scores are kept between them
INFINITY = float("inf")
AHEAD = 24  # pages between what is scored and what is asked for
TOP, BOTTOM = 0x7F7FFFFF, -0x7F7FFFFF  # float32's largest and smallest, as places in their order


def pairs(dtype: str) -> Format:
    """Bounds read in turns of 32 numbers."""

    def emit(builder: Any, row: Any) -> Iterator[Any]:
        for step in range(2):
            yield emit_load(builder, row, dtype, I64(16 * ITEMSIZE[dtype] * step))

    return Format("bounds", 2, 32 * ITEMSIZE[dtype], emit)


def make_score_eight(dtype: str) -> Any:
    """``score(pages, count, bounds, page_bytes, query, numbers, out)``: eight pages, by their ids, times a query.

    Of fewer the last is taken again. out: eight float32 between LOWEST and LARGEST; what is no number is LOWEST.
    """
    form = pairs(dtype)

    @intrinsic
    def score(
        typingctx: Any, pages: Any, count: Any, bounds: Any, page_bytes: Any, query: Any, numbers: Any, out: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pages, count, bounds, page_bytes, query, numbers, out = args
            last, rows = builder.sub(count, I64(1)), []
            for i in range(PAGES):
                at = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
                page = builder.load(pointer(builder, pages, I32, builder.mul(at, I64(4))), align=4)
                rows.append(builder.add(bounds, builder.mul(builder.sext(page, I64), page_bytes)))
            sums = emit_sums(builder, form, rows, [query], numbers, [[ZEROS]] * PAGES)
            folded = fold_eight(builder, [page[0] for page in sums])
            lowest, largest = (ir.Constant(folded.type, [limit] * PAGES) for limit in (LOWEST, LARGEST))
            folded = builder.select(builder.fcmp_ordered(">", folded, lowest), folded, lowest)
            folded = builder.select(builder.fcmp_ordered("<", folded, largest), folded, largest)
            builder.store(folded, pointer(builder, out, folded.type), align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 7), codegen

    return score


def make_score(dtype: str) -> Any:
    """Scores of `count` pages; pages: their ids, bounds: where page 0 has them."""
    score_eight, itemsize = make_score_eight(dtype), ITEMSIZE[dtype]

    @jit
    def score(query: int, dims: int, pages: int, count: int, bounds: int, page_bytes: int, out: int) -> None:
        for i in range(0, count, PAGES):
            for ahead in range(i + AHEAD, min(i + AHEAD + PAGES, count)):
                place = bounds + get_i32(pages + ahead * 4) * page_bytes
                for line in range(0, 2 * dims * itemsize, 64):
                    prefetch(place + line)
            score_eight(pages + i * 4, count - i, bounds, page_bytes, query, 2 * dims, out + i * 4)

    return score


@jit
def float_at(place: int) -> float:
    """The float32 at a place in their order; 0 is one number."""
    size: float = as_float(abs(place))
    return size if place >= 0 else -size


@jit
def reaching(scores: int, count: int, least: float) -> int:
    """How many scores are at least that much; behind them lies what is lower than any."""
    found, bound = 0, splat(least)
    for i in range(0, count * 4, 64):
        found += count_between(load_f32(scores + i), bound, splat(INFINITY))
    return found


@jit
def reach(scores: int, count: int, wanted: int) -> float:
    """The largest number that at least `wanted` of the scores reach, or a lower one that no more of them reach."""
    low, high = BOTTOM, TOP  # enough reach `low`, too few `high`
    while high - low > 1:
        middle = (low + high) >> 1
        found = reaching(scores, count, float_at(middle))
        if found == wanted:
            return float_at(middle)
        if found > wanted:
            low = middle
        else:
            high = middle
    return float_at(low)


@jit
def put_best(scores: int, count: int, wanted: int, pages: int, out: int) -> None:
    """The ids of the `wanted` best pages in order, of equal ones the earlier."""
    least = reach(scores, count, wanted)
    spare, n = reaching(scores, count, least) - wanted, 0
    if spare == 0:
        bound = splat(least)
        whole = count // 16 * 16
        for i in range(0, whole * 4, 64):
            found = load_f32(scores + i)
            n += pack_between(out + n * 4, load_f32(pages + i), found, bound, splat(INFINITY))
        for i in range(whole, count):  # a vector would reach beyond the table
            if get_f32(scores + i * 4) >= least:
                put_i32(out + n * 4, get_i32(pages + i * 4))
                n += 1
        return
    equal = 0  # too many reach it, so all that are over are as much
    for i in range(count):
        equal += get_f32(scores + i * 4) == least
    equal -= spare
    for i in range(count):
        found = get_f32(scores + i * 4)
        if found > least or (found == least and equal > 0):
            equal -= found == least
            put_i32(out + n * 4, get_i32(pages + i * 4))
            n += 1


@jit
def join(q: int, group: int, dims: int, out: int) -> None:
    """What the queries of a group have in common, each half of the bounds' (see above)."""
    for d in range(0, dims * 4, 64):
        both = size = splat(0.0)
        for head in range(group):
            number = load_f32(q + head * dims * 4 + d)
            both, size = add(both, number), add(size, absolute(number))
        both = add(both, both)
        store_f32(out + d, sub(both, size))
        store_f32(out + dims * 4 + d, add(both, size))


@jit
def pages_of(ctx: int, op_group: int, row: int) -> int:
    """Address of the page ids of the sequence that a row is in."""
    first, last = 0, slot(ctx, abi.SEQUENCES) - 1
    while first < last:
        middle = (first + last + 1) // 2
        if slot(slot(ctx, abi.SEQUENCE_TABLE) + middle * SEQ_BYTES, abi.SEQ_ROW) <= row:
            first = middle
        else:
            last = middle - 1
    sequence = slot(ctx, abi.SEQUENCE_TABLE) + first * SEQ_BYTES
    return slot(sequence, abi.SEQ_PAGES) + op_group * slot(sequence, abi.SEQ_STRIDE)


def make_best(dtype: str) -> Any:
    """One (row, KV head): the ids of the pages it reads, in order.

    Arguments: q, its stride, head size, where the bounds of the layer lie in page 0, bytes of a page, the layer's
    group, share, least, address of int32 [row][KV head][most], most.
    """
    score, itemsize = make_score(dtype), ITEMSIZE[dtype]

    @jit
    def best(ctx: int, op: int, piece: int, tid: int) -> None:
        kv_heads, dims, group = slot(ctx, abi.KV_HEADS), arg(op, 2), slot(ctx, abi.GROUP)
        row, kv_head = piece // kv_heads, piece % kv_heads
        own = get_i32(slot(ctx, abi.POSITIONS) + row * 4) // slot(ctx, abi.PAGE_SIZE)
        pages = pages_of(ctx, arg(op, 5), row)
        out = arg(op, 8) + piece * arg(op, 9) * 4
        read = pages_read(own + 1, arg(op, 6), arg(op, 7))
        if read == own + 1:
            for i in range(read):
                put_i32(out + i * 4, get_i32(pages + i * 4))
            return
        query = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        scores, count = query + dims * 8, own - 2
        join(arg(op, 0) + row * arg(op, 1) + kv_head * group * dims * 4, group, dims, query)
        bounds = arg(op, 3) + kv_head * 2 * dims * itemsize
        score(query, dims, pages + 4, count, bounds, arg(op, 4), scores)
        last = scores + count // 16 * 64
        store_f32(last, keep_first(load_f32(last), count % 16, splat(-INFINITY)))
        put_i32(out, get_i32(pages))
        if read > abi.ALWAYS:
            put_best(scores, count, read - abi.ALWAYS, pages + 4, out + 4)
        put_i32(out + (read - 2) * 4, get_i32(pages + (own - 1) * 4))
        put_i32(out + (read - 1) * 4, get_i32(pages + own * 4))

    return best


def make_bound(dtype: str) -> Any:
    """One KV head of a page that this step has filled: its bounds.

    Arguments: where the layer lies in page 0, bytes of a page, the layer's group, KV heads, head size, where bounds
    begin in the layer.
    """
    get, put, itemsize = load[dtype], store[dtype], ITEMSIZE[dtype]

    @jit
    def bound(ctx: int, op: int, piece: int, tid: int) -> None:
        kv_heads, dims, blocks = arg(op, 3), arg(op, 4), slot(ctx, abi.PAGE_SIZE) // 16
        number, head = piece // kv_heads, piece % kv_heads
        page = get_i32(slot(ctx, abi.FULL_PAGES) + (arg(op, 2) * slot(ctx, abi.FULL) + number) * 4)
        layer, size = arg(op, 0) + page * arg(op, 1), 2 * dims * itemsize
        keys, out = layer + head * blocks * 16 * size, layer + arg(op, 5) + head * size
        low = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        for d in range(dims):
            least = most = get(keys + d * 16 * itemsize)
            for b in range(1, blocks):
                numbers = get(keys + b * 16 * size + d * 16 * itemsize)
                least, most = minimum(least, numbers), maximum(most, numbers)
            put_f32(low + d * 4, -reduce_max(sub(splat(0.0), least)))
            put_f32(low + (dims + d) * 4, reduce_max(most))
        for d in range(0, 2 * dims, 16):
            put(out + d * itemsize, load_f32(low + d * 4))

    return bound


def make_unit(dtype: str) -> Any:
    """The entry of the unit, for pages of a type: a piece of either op."""
    bound, best = make_bound(dtype), make_best(dtype)

    def entry(ctx: int, op: int, piece: int, tid: int) -> int:
        if slot(op, abi.CODE) == abi.BOUND:
            bound(ctx, op, piece, tid)
        else:
            best(ctx, op, piece, tid)
        return 0

    return entry
