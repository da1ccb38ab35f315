"""Paged attention: softmax(q K^T) V over pages, one arithmetic for every shape of batch.

For a query row at position t the positions 0..t are cut at multiples of 512 into *splits*, a split at multiples of
64 into *tiles*. Within a split the tiles are taken in order with a running maximum (Milakov & Gimelshein 2018); the
results of the splits are folded in order. Cuts lie at absolute positions, so a row's arithmetic depends on t and on
nothing else: not on the page size, the chunk it was computed in, the rows beside it, or on how many threads shared
the splits.

An *item* is a tile of query rows (some tokens x the query heads of one KV head, so K and V are read once for the
group) and either all its splits, folded at once, or one split, left as a partial result that `merge` folds later.

Scratch of a thread, float32, R = rows of an item, d = head size::

    q [R][d]  p [R][64]  part: acc [R][d]  max [R]  sum [R]     total: acc [R][d]  max [R]  sum [R]
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_plan import ITEM_BYTES
from kvist.kernels.cpu.attention_row import LOWEST, finish, fold, softmax_row
from kvist.kernels.cpu.attention_tile import make_scores, make_weigh
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import arg, arg_f32, get_i32, put_f32, slot
from kvist.kernels.cpu.tile import ITEMSIZE
from kvist.kernels.cpu.vector import mul, splat
from kvist.kernels.cpu.vector_memory import load_f32, store_f32

TILE, SPLIT = abi.TILE, abi.SPLIT


def make_score_rows(dtype: str) -> Any:
    """Scores of any number of query rows over a tile, p rows 256 bytes apart."""
    scores6, scores4, scores3, scores2, scores1 = (make_scores(dtype, rows) for rows in (6, 4, 3, 2, 1))

    @jit
    def score_rows(q: int, rows: int, dims: int, k0: int, k1: int, k2: int, k3: int, p: int) -> None:
        stride = dims * 4
        while rows > 0:
            if rows >= 6:
                scores6(q, stride, k0, k1, k2, k3, dims, p)
                n = 6
            elif rows >= 4:
                scores4(q, stride, k0, k1, k2, k3, dims, p)
                n = 4
            elif rows == 3:
                scores3(q, stride, k0, k1, k2, k3, dims, p)
                n = 3
            elif rows == 2:
                scores2(q, stride, k0, k1, k2, k3, dims, p)
                n = 2
            else:
                scores1(q, stride, k0, k1, k2, k3, dims, p)
                n = 1
            rows -= n
            q += n * stride
            p += n * 256

    return score_rows


def make_weigh_rows(dtype: str) -> Any:
    """The weighted sum of one block's values, added to any number of rows."""
    itemsize = ITEMSIZE[dtype]
    wide6, wide4, wide3, wide2, wide1 = (make_weigh(dtype, rows, 4) for rows in (6, 4, 3, 2, 1))
    narrow6, narrow1 = make_weigh(dtype, 6, 1), make_weigh(dtype, 1, 1)

    @jit
    def weigh_rows(p: int, rows: int, v: int, slots: int, acc: int, dims: int) -> None:
        stride, v_stride = dims * 4, dims * itemsize
        while rows > 0:
            n = 6 if rows >= 6 else 4 if rows >= 4 else rows
            d = 0
            while d + 64 <= dims:
                vd, ad = v + d * itemsize, acc + d * 4
                if n == 6:
                    wide6(p, vd, v_stride, slots, ad, stride)
                elif n == 4:
                    wide4(p, vd, v_stride, slots, ad, stride)
                elif n == 3:
                    wide3(p, vd, v_stride, slots, ad, stride)
                elif n == 2:
                    wide2(p, vd, v_stride, slots, ad, stride)
                else:
                    wide1(p, vd, v_stride, slots, ad, stride)
                d += 64
            while d < dims:
                vd, ad = v + d * itemsize, acc + d * 4
                if n == 6:
                    narrow6(p, vd, v_stride, slots, ad, stride)
                else:
                    for r in range(n):
                        narrow1(p + r * 256, vd, v_stride, slots, ad + r * stride, stride)
                d += 16
            rows -= n
            p += n * 256
            acc += n * stride

    return weigh_rows


@jit
def block_at(pages: int, position: int, page_size: int, page_bytes: int, head: int, block_bytes: int) -> int:
    """Address of the block of sixteen slots that holds a position; head: the address of the KV head in page 0."""
    page = get_i32(pages + position // page_size * 4)
    return head + page * page_bytes + position % page_size // 16 * block_bytes


def make_attend_tile(dtype: str) -> Any:
    """One tile of positions for all rows of an item."""
    itemsize, score_rows, weigh_rows = ITEMSIZE[dtype], make_score_rows(dtype), make_weigh_rows(dtype)

    @jit
    def attend_tile(
        tile: int,
        rows: int,
        group: int,
        position: int,
        dims: int,
        pages: int,
        page_size: int,
        page_bytes: int,
        head: int,
        q: int,
        p: int,
        acc: int,
        row_max: int,
        row_sum: int,
    ) -> None:
        """One tile of positions for all rows of an item that may see it."""
        block_bytes = 2 * 16 * dims * itemsize
        begin = tile * TILE
        last = position + (rows - 1) // group  # the newest position any row sees
        live = min(TILE, last + 1 - begin)  # slots that hold something
        skip = max(0, begin - position) * group  # rows whose position is before the tile
        # blocks past `live` may not exist: their scores are masked, so any address will do
        b0 = block_at(pages, begin, page_size, page_bytes, head, block_bytes)
        b1 = block_at(pages, begin + 16, page_size, page_bytes, head, block_bytes) if live > 16 else b0
        b2 = block_at(pages, begin + 32, page_size, page_bytes, head, block_bytes) if live > 32 else b0
        b3 = block_at(pages, begin + 48, page_size, page_bytes, head, block_bytes) if live > 48 else b0
        score_rows(q + skip * dims * 4, rows - skip, dims, b0, b1, b2, b3, p + skip * 256)
        for r in range(skip, rows):
            valid = min(TILE, position + r // group + 1 - begin)
            softmax_row(p + r * 256, valid, row_max + r * 4, row_sum + r * 4, acc + r * dims * 4, dims)
        v = 16 * dims * itemsize
        whole = min(rows, max(skip, (begin + TILE - 1 - position) * group))  # rows from here on see the whole tile
        for r in range(skip, whole):
            valid = position + r // group + 1 - begin
            pr, ar = p + r * 256, acc + r * dims * 4
            weigh_rows(pr, 1, b0 + v, min(16, valid), ar, dims)
            if valid > 16:
                weigh_rows(pr + 64, 1, b1 + v, min(16, valid - 16), ar, dims)
            if valid > 32:
                weigh_rows(pr + 128, 1, b2 + v, min(16, valid - 32), ar, dims)
            if valid > 48:
                weigh_rows(pr + 192, 1, b3 + v, valid - 48, ar, dims)
        pw, aw = p + whole * 256, acc + whole * dims * 4
        weigh_rows(pw, rows - whole, b0 + v, 16, aw, dims)
        weigh_rows(pw + 64, rows - whole, b1 + v, 16, aw, dims)
        weigh_rows(pw + 128, rows - whole, b2 + v, 16, aw, dims)
        weigh_rows(pw + 192, rows - whole, b3 + v, 16, aw, dims)

    return attend_tile


def make_attend(dtype: str) -> Any:
    """The kernel that computes one (item, KV head) over pages of `dtype`."""
    itemsize, attend_tile = ITEMSIZE[dtype], make_attend_tile(dtype)

    @jit
    def attend(ctx: int, op: int, piece: int, tid: int) -> None:
        group, kv_heads = slot(ctx, abi.GROUP), slot(ctx, abi.KV_HEADS)
        query, q_stride, out = arg(op, 0), arg(op, 1), arg(op, 2)
        dims, layer_offset, factor = arg(op, 3), arg(op, 4), arg_f32(op, 5)
        item = slot(ctx, abi.ITEM_TABLE) + (piece // kv_heads) * ITEM_BYTES
        kv_head = piece % kv_heads
        row, tokens = slot(item, abi.ITEM_ROW), slot(item, abi.ITEM_TOKENS)
        position, pages = slot(item, abi.ITEM_POSITION), slot(item, abi.ITEM_PAGES)
        first_split, last_split = slot(item, abi.ITEM_FROM), slot(item, abi.ITEM_TO)
        partial = slot(item, abi.ITEM_PARTIAL)
        page_size, page_bytes = slot(ctx, abi.PAGE_SIZE), slot(ctx, abi.PAGE_BYTES)
        head = slot(ctx, abi.POOL) + layer_offset + kv_head * page_size * dims * 2 * itemsize
        rows = tokens * group
        q = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        p = q + rows * dims * 4
        acc = p + rows * 256
        row_max = acc + rows * dims * 4
        row_sum = row_max + rows * 4
        total = row_sum + rows * 4
        total_max = total + rows * dims * 4
        total_sum = total_max + rows * 4
        if partial >= 0:
            at = (partial + kv_head * rows) * (dims + 2) * 4
            acc = slot(ctx, abi.PARTIALS) + at
            row_max = acc + rows * dims * 4
            row_sum = row_max + rows * 4
        head_offset = kv_head * group * dims * 4
        scale = splat(factor)
        for r in range(rows):
            source = query + (row + r // group) * q_stride + head_offset + (r % group) * dims * 4
            for d in range(0, dims, 16):
                store_f32(q + (r * dims + d) * 4, mul(load_f32(source + d * 4), scale))
        last = position + tokens - 1
        for split in range(first_split, last_split):
            for r in range(rows):
                put_f32(row_max + r * 4, LOWEST)
                put_f32(row_sum + r * 4, 0.0)
                for d in range(0, dims, 16):
                    store_f32(acc + (r * dims + d) * 4, splat(0.0))
            for tile in range(split * (SPLIT // TILE), min((split + 1) * (SPLIT // TILE), last // TILE + 1)):
                attend_tile(
                    tile, rows, group, position, dims, pages, page_size, page_bytes, head, q, p, acc, row_max, row_sum
                )
            if partial < 0:
                skip = max(0, split * SPLIT - position) * group
                for r in range(skip, rows):
                    fold(
                        total + r * dims * 4,
                        total_max + r * 4,
                        total_sum + r * 4,
                        acc + r * dims * 4,
                        row_max + r * 4,
                        row_sum + r * 4,
                        dims,
                        split == 0,
                    )
        if partial < 0:
            for r in range(rows):
                target = out + (row + r // group) * q_stride + head_offset + (r % group) * dims * 4
                finish(target, total + r * dims * 4, total_sum + r * 4, dims)

    return attend


attend_f32, attend_f16, attend_bf16 = (make_attend(dtype) for dtype in abi.DTYPES)


def attend(dtype: int, ctx: int, op: int, piece: int, tid: int) -> int:
    """One (item, KV head) over pages of `dtype` (numbered as abi.DTYPES): the entry of this compiled unit."""
    if dtype == 0:
        attend_f32(ctx, op, piece, tid)
    elif dtype == 1:
        attend_f16(ctx, op, piece, tid)
    else:
        attend_bf16(ctx, op, piece, tid)
    return 0
