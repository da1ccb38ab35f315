"""The pages that tokens choose to read: those that weigh most by their sketches.

The best are found without a sort: t, the largest number that enough weights reach, by halves. A weight is what a page
and a query make of each other and of the pages there are to choose from, whatever the rows beside them.

Scratch of a thread: float32 weights of pages 1, 2, ...; records of queries; room for one; sums; float32 heights of
pages in up to four heads.
"""

from __future__ import annotations

from typing import Any

from kvist.cache.sketch import DEEPEST, HIGHEST, STEP_BYTES
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_plan import SEQ_BYTES, pages_read
from kvist.kernels.cpu.math import exp, jit
from kvist.kernels.cpu.scalar import arg, arg_f32, get_f32, get_i32, put_i32, slot
from kvist.kernels.cpu.sketch import block_bytes, make_sketch, mean_bytes
from kvist.kernels.cpu.sketch_weights import PORTION, SUMS_BYTES, ask, make_heights, record_bytes
from kvist.kernels.cpu.vector import add, fma, keep_first, maximum, mul, reduce_add, reduce_max, splat, sub
from kvist.kernels.cpu.vector_memory import load_f32, store_f32
from kvist.kernels.cpu.wide import as_float, count_between, pack_between

LN_2 = 0.6931471805599453
INFINITY = float("inf")
TOP, BOTTOM = 0x7F7FFFFF, -0x7F7FFFFF  # float32's largest and smallest, as places in their order


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
    """One (row, KV head): the ids of the pages it reads, in order.

    Arguments: q, its stride, head size, where the sketches of the layer lie in page 0, bytes of a page, the group of
    these pages, share, least, address of int32 [row][KV head][sides][most], most, signs, scale of scores, sides, the
    group of pages of floats. Of a packed layer, page 0 and the row's own are named as pages of floats, the others, in
    the second side, as they were packed; nobody reads the other places.
    """
    heights = make_heights()

    @jit
    def weigh(ctx: int, op: int, q: int, pages: int, count: int, head: int, scratch: int, weights: int) -> None:
        dims, group, blocks = arg(op, 2), slot(ctx, abi.GROUP), slot(ctx, abi.PAGE_SIZE) // 16
        size, apart = record_bytes(dims), (count + 15) // 16 * 64
        x = scratch + PORTION * size
        sums = x + dims * 4
        rows = sums + SUMS_BYTES
        sketches = arg(op, 3) + head * (mean_bytes(dims) + STEP_BYTES + blocks * block_bytes(dims))
        for i in range(0, count * 4, 64):
            store_f32(weights + i, splat(0.0))
        for first in range(0, group, PORTION):
            heads = min(PORTION, group - first)
            for r in range(heads):
                ask(q + (first + r) * dims * 4, arg(op, 10), dims, arg_f32(op, 11), x, scratch + r * size)
            heights(scratch, heads, dims, blocks, pages, count, sketches, arg(op, 4), sums, rows, apart)
            for r in range(heads):
                add_shares(rows + r * apart, count, weights)

    @jit
    def best(ctx: int, op: int, piece: int, tid: int) -> None:
        kv_heads, dims = slot(ctx, abi.KV_HEADS), arg(op, 2)
        row, head = piece // kv_heads, piece % kv_heads
        own = get_i32(slot(ctx, abi.POSITIONS) + row * 4) // slot(ctx, abi.PAGE_SIZE)
        pages, exact = pages_of(ctx, arg(op, 5), row), pages_of(ctx, arg(op, 13), row)
        floats = arg(op, 8) + piece * arg(op, 12) * arg(op, 9) * 4
        out = floats if arg(op, 5) == arg(op, 13) else floats + arg(op, 9) * 4
        read, count = pages_read(own + 1, arg(op, 6), arg(op, 7)), own - 2
        if read == own + 1:
            for i in range(read):
                put_i32(out + i * 4, get_i32(pages + i * 4))
        elif read > abi.ALWAYS:
            q = arg(op, 0) + row * arg(op, 1) + head * slot(ctx, abi.GROUP) * dims * 4
            weights = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
            scratch = weights + (count + 15) // 16 * 64 + 64
            weigh(ctx, op, q, pages + 4, count, head, scratch, weights)
            last = weights + count // 16 * 64
            store_f32(last, keep_first(load_f32(last), count % 16, splat(-INFINITY)))
            put_best(weights, count, read - abi.ALWAYS, pages + 4, out + 4)
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
