"""What attention each position gets from a step's rows: softmax(q K^T) once more, summed over rows instead of values.

Attention itself keeps no weights. Two ops follow it here, for the rows of one sequence. The first finds for each row
and head the largest score and the sum; the second goes through the rows again, tile of positions by tile, and adds each
weight to its position's number, or keeps the largest. A position takes from rows in ascending order and from the heads
of a group in theirs, one by one; so how rows were cut into steps changes no bits.

Scratch of a thread: the scores of a tile, float32 [64].
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


def make_tile_scores(dtype: str) -> Any:
    """Scores of one query over the tile of positions that begins at `begin`, of which row t sees 0..t."""
    itemsize, load_k = ITEMSIZE[dtype], load[dtype]

    @jit
    def tile_scores(ctx: int, op: int, q: int, head: int, begin: int, t: int, out: int) -> None:
        dims, strides, scale, cap = arg(op, 2), arg_address(op, 6), splat(arg_f32(op, 4)), arg_f32(op, 5)
        pages = slot(slot(ctx, abi.SEQUENCE_TABLE), abi.SEQ_PAGES)
        pages += arg(op, 8) * slot(slot(ctx, abi.SEQUENCE_TABLE), abi.SEQ_STRIDE)
        page_size, block = slot(ctx, abi.PAGE_SIZE), 2 * 16 * dims * itemsize
        last = t // 16 * 16  # blocks behind it may not exist: their scores are hidden, any address will do
        k0 = block_at(pages, min(begin, last), page_size, strides, head, block)
        k1 = block_at(pages, min(begin + 16, last), page_size, strides, head, block)
        k2 = block_at(pages, min(begin + 32, last), page_size, strides, head, block)
        k3 = block_at(pages, min(begin + 48, last), page_size, strides, head, block)
        s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for d in range(dims):
            x, at = splat(get_f32(q + d * 4)), d * 16 * itemsize
            s0 = fma(x, load_k(k0 + at), s0)
            s1 = fma(x, load_k(k1 + at), s1)
            s2 = fma(x, load_k(k2 + at), s2)
            s3 = fma(x, load_k(k3 + at), s3)
        store_f32(out, mul(s0, scale))
        store_f32(out + 64, mul(s1, scale))
        store_f32(out + 128, mul(s2, scale))
        store_f32(out + 192, mul(s3, scale))
        if cap > 0.0:
            cap_scores(out, cap)
        if begin + TILE > t + 1:
            for i in range(4):
                hidden = keep_first(load_f32(out + i * 64), t + 1 - begin - i * 16, splat(LOWEST))
                store_f32(out + i * 64, hidden)

    return tile_scores


def make_unit(dtype: str) -> Any:
    """The entry of the unit for pages of `dtype`: a piece of either op.

    Arguments: q, its stride, head size, where the layer lies in page 0, scale, soft cap (0: none), bytes from page to
    page, from extent to extent, the layer's group, largest scores and sums (f32 [row][2][heads]), their stride, what is
    noted (f32 [KV head][position]), its stride, its positions, whether the largest is kept.
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
        t = slot(slot(ctx, abi.SEQUENCE_TABLE), abi.SEQ_POSITION) + row
        for h in range(kv_head * group, (kv_head + 1) * group):
            q = arg(op, 0) + row * arg(op, 1) + h * arg(op, 2) * 4
            top, total = splat(LOWEST), splat(0.0)
            for begin in range(0, t + 1, TILE):
                tile_scores(ctx, op, q, keys_of(ctx, op, kv_head), begin, t, p)
                old = top
                for i in range(0, 256, 64):
                    top = maximum(top, load_f32(p + i))
                total = mul(total, exp(sub(old, top)))
                for i in range(0, 256, 64):
                    total = add(total, exp(sub(load_f32(p + i), top)))
            largest = reduce_max(top)
            out = arg(op, 9) + row * arg(op, 10) + h * 4
            put_f32(out, largest)
            put_f32(out + group * kv_heads * 4, reduce_add(mul(total, exp(sub(top, splat(largest))))))

    @jit
    def observe(ctx: int, op: int, piece: int, p: int) -> None:
        """A tile of positions of a KV head takes what it gets from all rows that see it."""
        group, kv_heads, zero = slot(ctx, abi.GROUP), slot(ctx, abi.KV_HEADS), splat(0.0)
        kv_head, begin = piece % kv_heads, piece // kv_heads * TILE
        start = slot(slot(ctx, abi.SEQUENCE_TABLE), abi.SEQ_POSITION)
        into = arg(op, 11) + kv_head * arg(op, 12) + begin * 4
        for row in range(max(0, begin - start), slot(ctx, abi.ROWS)):
            for h in range(kv_head * group, (kv_head + 1) * group):
                q = arg(op, 0) + row * arg(op, 1) + h * arg(op, 2) * 4
                tile_scores(ctx, op, q, keys_of(ctx, op, kv_head), begin, start + row, p)
                found = arg(op, 9) + row * arg(op, 10) + h * 4
                top, total = splat(get_f32(found)), splat(get_f32(found + group * kv_heads * 4))
                for i in range(4):
                    weight = div(exp(sub(load_f32(p + i * 64), top)), total)
                    weight = keep_first(weight, start + row + 1 - begin - i * 16, zero)
                    old = load_f32(into + i * 64)
                    store_f32(into + i * 64, maximum(old, weight) if arg(op, 14) else add(old, weight))

    def entry(ctx: int, op: int, piece: int, tid: int) -> int:
        p = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        if slot(op, abi.CODE) == abi.NORMALISE:
            normalise(ctx, op, piece, p)
        else:
            observe(ctx, op, piece, p)
        return 0

    return entry
