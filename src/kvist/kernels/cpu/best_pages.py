"""The pages that tokens choose to read: those that weigh most by their sketches.

The best are found without a sort: t, the largest number that enough weights reach, by halves. A weight is what a page
and a query make of each other and of the pages there are to choose from, whatever the rows beside them.

Scratch of a thread: float32 weights of pages 1, 2, ...; records of queries, room for one, units; float32 heights of
pages in each head. What parts share: an int64, how many are done; after 64 bytes the heights.
"""

from __future__ import annotations

from typing import Any

from kvist.cache.sketch import DEEPEST, HIGHEST
from kvist.kernels.cpu import abi, sizes
from kvist.kernels.cpu.attention_plan import SEQ_BYTES, choosing_parts, pages_read
from kvist.kernels.cpu.math import exp, jit
from kvist.kernels.cpu.scalar import arg, arg_f32, get_f32, get_i32, put_i32, put_i64, slot, take
from kvist.kernels.cpu.sketch import make_sketch
from kvist.kernels.cpu.sketch_weights import PORTION, ask, make_heights, record_bytes
from kvist.kernels.cpu.vector import add, fma, keep_first, maximum, mul, reduce_add, reduce_max, splat, sub
from kvist.kernels.cpu.vector_memory import load_f32, store_f32
from kvist.kernels.cpu.wide import as_float, count_between, pack_between

LN_2 = 0.6931471805599453
INFINITY = float("inf")
PART = 64  # pages, at least
TOP, BOTTOM = 0x7F7FFFFF, -0x7F7FFFFF  # float32's largest and smallest, as places in their order

weighing_bytes = jit(sizes.weighing_bytes)


@jit
def add_shares(heights: int, count: int, weights: int) -> None:
    """Add what each page has of all that a head gives them."""
    last = heights + (count - 1) // 16 * 64
    store_f32(last, keep_first(load_f32(last), (count - 1) % 16 + 1, splat(-HIGHEST)))
    most, total = splat(-HIGHEST), splat(0.0)
    for i in range(0, count * 4, 64):
        most = maximum(most, load_f32(heights + i))
    top = splat(reduce_max(most))
    for i in range(0, count * 4, 64):
        below = maximum(sub(load_f32(heights + i), top), splat(-DEEPEST))
        share = exp(mul(below, splat(LN_2)))
        share = keep_first(share, count - i // 4, splat(0.0))
        total = add(total, share)
        store_f32(heights + i, share)
    inverse = splat(1.0 / reduce_add(total))
    for i in range(0, count * 4, 64):
        store_f32(weights + i, fma(load_f32(heights + i), inverse, load_f32(weights + i)))


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


def make_best() -> Any:
    """One (row, KV head), or one part of its pages where those are few: the ids of the pages it reads, in order.

    Of parts, whoever ends the last one chooses.

    Arguments: q, its stride, head size, where the sketches of the layer begin, from one KV head's to the next one's,
    the group of their pages, share, least, address of int32 [row][KV head][sides][most], most, signs, scale of scores,
    sides, the group of pages of floats, address of what parts share of each, its bytes. Of a packed layer, page 0 and
    the row's own are named as pages of floats, the others, in the second side, as they were packed; nobody reads the
    other places.
    """
    heights = make_heights()

    @jit
    def weigh(
        ctx: int, op: int, q: int, pages: int, count: int, head: int, scratch: int, rows: int, apart: int
    ) -> None:
        dims, group, blocks = arg(op, 2), slot(ctx, abi.GROUP), slot(ctx, abi.PAGE_SIZE) // 16
        size, x, sketches = record_bytes(dims), scratch + PORTION * record_bytes(dims), arg(op, 3) + head * arg(op, 4)
        for first in range(0, group, PORTION):
            heads = min(PORTION, group - first)
            for r in range(heads):
                ask(q + (first + r) * dims * 4, arg(op, 10), dims, arg_f32(op, 11), x, scratch + r * size)
            heights(
                scratch, heads, dims, blocks, pages, count, sketches, x + dims * 20, rows + first * apart, apart
            )  # fmt: skip

    @jit
    def choose(ctx: int, rows: int, apart: int, pages: int, count: int, wanted: int, weights: int, out: int) -> None:
        for i in range(0, count * 4, 64):
            store_f32(weights + i, splat(0.0))
        for r in range(slot(ctx, abi.GROUP)):
            add_shares(rows + r * apart, count, weights)
        last = weights + count // 16 * 64
        store_f32(last, keep_first(load_f32(last), count % 16, splat(-INFINITY)))
        put_best(weights, count, wanted, pages, out)

    @jit
    def best(ctx: int, op: int, piece: int, tid: int) -> None:
        kv_heads, choosers = slot(ctx, abi.KV_HEADS), slot(ctx, abi.ROWS) * slot(ctx, abi.KV_HEADS)
        parts = choosing_parts(choosers, slot(ctx, abi.THREADS))
        chooser, part = piece // parts, piece % parts
        row, head = chooser // kv_heads, chooser % kv_heads
        own = get_i32(slot(ctx, abi.POSITIONS) + row * 4) // slot(ctx, abi.PAGE_SIZE)
        pages, exact = pages_of(ctx, arg(op, 5), row), pages_of(ctx, arg(op, 13), row)
        floats = arg(op, 8) + chooser * arg(op, 12) * arg(op, 9) * 4
        out = floats if arg(op, 5) == arg(op, 13) else floats + arg(op, 9) * 4
        read, count = pages_read(own + 1, arg(op, 6), arg(op, 7)), own - 2
        if read == own + 1 or read <= abi.ALWAYS:
            if part > 0:
                return
            for i in range(read if read == own + 1 else 0):
                put_i32(out + i * 4, get_i32(pages + i * 4))
        else:
            q = arg(op, 0) + row * arg(op, 1) + head * slot(ctx, abi.GROUP) * arg(op, 2) * 4
            apart, each = (count + 15) // 16 * 64, max(PART, ((count + parts - 1) // parts + 15) // 16 * 16)
            weights = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
            scratch = weights + apart + 64
            own_rows = scratch + weighing_bytes(arg(op, 2))
            shared = arg(op, 14) + chooser * arg(op, 15) if parts > 1 else own_rows
            rows = shared + 64
            first, end = min(count, part * each), min(count, (part + 1) * each)
            if first < end:
                weigh(ctx, op, q, pages + (1 + first) * 4, end - first, head, scratch, rows + first * 4, apart)
            if parts > 1 and take(shared) < parts - 1:
                return
            put_i64(shared, 0)
            choose(ctx, rows, apart, pages + 4, count, read - abi.ALWAYS, weights, out + 4)
        if read > 1:
            put_i32(out + (read - 2) * 4, get_i32(pages + (own - 1) * 4))
        put_i32(floats, get_i32(exact))
        put_i32(floats + (read - 1) * 4, get_i32(exact + own * 4))

    return best


def make_unit(dtype: str) -> Any:
    """The entry of the unit, for pages of a type: a piece of either op."""
    sketch, best = make_sketch(dtype), make_best()

    def entry(ctx: int, op: int, piece: int, tid: int) -> int:
        if slot(op, abi.CODE) == abi.SKETCH:
            sketch(ctx, op, piece, tid)
        else:
            best(ctx, op, piece, tid)
        return 0

    return entry
