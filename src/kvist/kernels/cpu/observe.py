"""What attention each position gets from a step's rows: softmax(q K^T) once more, summed over rows instead of values.

Attention itself keeps no weights. Two ops follow it here, for the rows of one sequence. The first finds for each row
and head the largest score and the sum; the second goes through the rows again, tile of positions by tile, and adds each
weight, times what its row counts, to its position's number, or keeps the largest. A position takes from rows in
ascending order and from the heads of a group in theirs, one by one; so how rows were cut into steps changes no bits.

Two queries at a time go over a tile, for a key that is read and widened serves both: heads of one row in the first
op, head after head and row after row in the second. Each has sums of its own, with the bits of one alone.

Scratch of a thread: scores of a tile, float32 [2][64]; in the first op largest scores and sums, [2][16] each.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_extras import cap_scores
from kvist.kernels.cpu.attention_row import LOWEST
from kvist.kernels.cpu.math import exp, jit
from kvist.kernels.cpu.places import block_at, head_at
from kvist.kernels.cpu.scalar import arg, arg_address, arg_f32, get_f32, put_f32, slot
from kvist.kernels.cpu.vector import add, div, fma, keep_first, maximum, mul, reduce_add, reduce_max, splat, sub
from kvist.kernels.cpu.vector_memory import ITEMSIZE, load, load_f32, store_f32

TILE = abi.TILE
SCORES = 4 * TILE
"""Bytes of a tile's scores."""


def make_tile_scores(dtype: str) -> Any:
    """Scores of two queries over the tile of positions that begins at `begin`; the newer of their rows sees 0..t."""
    itemsize, load_k = ITEMSIZE[dtype], load[dtype]

    @jit
    def tile_scores(ctx: int, op: int, q0: int, q1: int, keys: int, begin: int, t: int, out: int) -> None:
        dims, strides, scale = arg(op, 2), arg_address(op, 6), splat(arg_f32(op, 4))
        pages = slot(slot(ctx, abi.SEQUENCE_TABLE), abi.SEQ_PAGES)
        pages += arg(op, 8) * slot(slot(ctx, abi.SEQUENCE_TABLE), abi.SEQ_STRIDE)
        page_size, block = slot(ctx, abi.PAGE_SIZE), 2 * 16 * dims * itemsize
        last = t // 16 * 16  # blocks behind it may not exist: their scores are hidden, any address will do
        for i in range(2):  # two blocks of two queries: AVX2 has registers for eight sums, and what they are made of
            k0 = block_at(pages, min(begin + i * 32, last), page_size, strides, keys, block)
            k1 = block_at(pages, min(begin + i * 32 + 16, last), page_size, strides, keys, block)
            a0, a1, b0, b1 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
            for d in range(dims):
                first, second = load_k(k0 + d * 16 * itemsize), load_k(k1 + d * 16 * itemsize)
                x, y = splat(get_f32(q0 + d * 4)), splat(get_f32(q1 + d * 4))
                a0, a1 = fma(x, first, a0), fma(x, second, a1)
                b0, b1 = fma(y, first, b0), fma(y, second, b1)
            own = out + i * 128
            store_f32(own, mul(a0, scale))
            store_f32(own + 64, mul(a1, scale))
            store_f32(own + SCORES, mul(b0, scale))
            store_f32(own + SCORES + 64, mul(b1, scale))

    return tile_scores


@jit
def settle(op: int, p: int, begin: int, t: int) -> None:
    """What is left to do to the scores of one query, whose row sees 0..t: the soft cap, and hiding."""
    if arg_f32(op, 5) > 0.0:
        cap_scores(p, arg_f32(op, 5))
    if begin + TILE > t + 1:
        for i in range(4):
            hidden = keep_first(load_f32(p + i * 64), t + 1 - begin - i * 16, splat(LOWEST))
            store_f32(p + i * 64, hidden)


@jit
def query_at(op: int, row: int, h: int) -> int:
    """Where the query of a row and head lies."""
    return arg(op, 0) + row * arg(op, 1) + h * arg(op, 2) * 4


@jit
def take(op: int, p: int, row: int, h: int, heads: int, seen: int, into: int) -> None:
    """The first `seen` positions of a tile take what a row and head gives them by its scores."""
    found, counts = arg(op, 9) + row * arg(op, 10) + h * 4, splat(get_f32(arg(op, 15) + row * 4))
    top, total = splat(get_f32(found)), splat(get_f32(found + heads * 4))
    for i in range(4):
        weight = mul(div(exp(sub(load_f32(p + i * 64), top)), total), counts)
        weight = keep_first(weight, seen - i * 16, splat(0.0))
        old = load_f32(into + i * 64)
        store_f32(into + i * 64, maximum(old, weight) if arg(op, 14) else add(old, weight))


def make_unit(dtype: str) -> Any:
    """The entry of the unit for pages of `dtype`: a piece of either op.

    Arguments: q, its stride, head size, where the layer lies in page 0, scale, soft cap (0: none), bytes from page to
    page, from extent to extent, the layer's group, largest scores and sums (f32 [row][2][heads]), their stride, what is
    noted (f32 [KV head][position]), its stride, its positions, whether the largest is kept, what rows count (f32).
    """
    tile_scores = make_tile_scores(dtype)

    @jit
    def keys_of(ctx: int, op: int, kv_head: int) -> int:
        return head_at(arg(op, 3), kv_head, slot(ctx, abi.PAGE_SIZE), arg_address(op, 6))

    @jit
    def normalise(ctx: int, op: int, piece: int, p: int) -> None:
        """The largest score and the sum of a row's heads that share a KV head, lane by lane, then folded."""
        group, kv_heads = slot(ctx, abi.GROUP), slot(ctx, abi.KV_HEADS)
        row, kv_head = piece // kv_heads, piece % kv_heads
        t, end = slot(slot(ctx, abi.SEQUENCE_TABLE), abi.SEQ_POSITION) + row, (kv_head + 1) * group
        tops, totals = p + 2 * SCORES, p + 2 * SCORES + 2 * 64
        for h in range(kv_head * group, end, 2):
            q0, q1, count = query_at(op, row, h), query_at(op, row, min(h + 1, end - 1)), min(2, end - h)
            for i in range(count):
                store_f32(tops + i * 64, splat(LOWEST))
                store_f32(totals + i * 64, splat(0.0))
            for begin in range(0, t + 1, TILE):
                tile_scores(ctx, op, q0, q1, keys_of(ctx, op, kv_head), begin, t, p)
                for i in range(count):
                    scores = p + i * SCORES
                    settle(op, scores, begin, t)
                    old = load_f32(tops + i * 64)
                    top = old
                    for at in range(0, SCORES, 64):
                        top = maximum(top, load_f32(scores + at))
                    total = mul(load_f32(totals + i * 64), exp(sub(old, top)))
                    for at in range(0, SCORES, 64):
                        total = add(total, exp(sub(load_f32(scores + at), top)))
                    store_f32(tops + i * 64, top)
                    store_f32(totals + i * 64, total)
            for i in range(count):
                top = load_f32(tops + i * 64)
                largest = reduce_max(top)
                out = arg(op, 9) + row * arg(op, 10) + (h + i) * 4
                put_f32(out, largest)
                sums = mul(load_f32(totals + i * 64), exp(sub(top, splat(largest))))
                put_f32(out + group * kv_heads * 4, reduce_add(sums))

    @jit
    def observe(ctx: int, op: int, piece: int, p: int) -> None:
        """A tile of positions of a KV head takes what it gets from all rows that see it."""
        group, kv_heads = slot(ctx, abi.GROUP), slot(ctx, abi.KV_HEADS)
        kv_head, begin = piece % kv_heads, piece // kv_heads * TILE
        start = slot(slot(ctx, abi.SEQUENCE_TABLE), abi.SEQ_POSITION)
        into = arg(op, 11) + kv_head * arg(op, 12) + begin * 4
        first, end = max(0, begin - start) * group, slot(ctx, abi.ROWS) * group  # a number for each row and head
        for query in range(first, end, 2):
            other = min(query + 1, end - 1)
            q0 = query_at(op, query // group, kv_head * group + query % group)
            q1 = query_at(op, other // group, kv_head * group + other % group)
            tile_scores(ctx, op, q0, q1, keys_of(ctx, op, kv_head), begin, start + other // group, p)
            for i in range(min(2, end - query)):
                row, h = (query + i) // group, kv_head * group + (query + i) % group
                settle(op, p + i * SCORES, begin, start + row)
                take(op, p + i * SCORES, row, h, group * kv_heads, start + row + 1 - begin, into)

    def entry(ctx: int, op: int, piece: int, tid: int) -> int:
        p = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        if slot(op, abi.CODE) == abi.NORMALISE:
            normalise(ctx, op, piece, p)
        else:
            observe(ctx, op, piece, p)
        return 0

    return entry
