"""Attention over packed layers: a row reads its own page and page 0 as floats, all other pages as they were packed.

Of a tile a row sees, in this order, slots of page 0, sealed slots, slots of its own page; each range may be empty. All
are whole blocks, for pages are. Rows for which the ranges are the same, a *run*, go together::

    pages          12      13      14      15         page size 16: a tile
    rows 208..223  sealed  exact   -       -          own page 13
    rows 224..239  sealed  sealed  exact   -          own page 14

A row's ranges depend on its position alone, and so does its arithmetic: scores of both kinds, one softmax, then the
exact values, slot by slot, then the sealed ones.

A tile of sealed slots whose scores are all far below the largest so far weighs nothing (`factors.counting`). That is
known before its values are read, and mostly thanks to the first position: so rows that see it begin each split with its
block's largest score as their maximum.
"""

from __future__ import annotations

from typing import Any

from kvist.cache.codec import any_codec, codec
from kvist.cache.codec.factors import FAR
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_extras import LOG_2, ask_for, cap_scores, share_of, soften
from kvist.kernels.cpu.attention_row import LOWEST, NEVER
from kvist.kernels.cpu.attention_rows import make_score_rows, make_weigh_rows
from kvist.kernels.cpu.math import apart, inlined, jit
from kvist.kernels.cpu.packed_rows import (
    BLOCKS_BYTES,
    WEIGH_SCRATCH,
    even_share,
    make_prepare,
    part_bytes,
    put_blocks,
    query_bytes,
)
from kvist.kernels.cpu.packed_scores import make_score_side
from kvist.kernels.cpu.packed_weigh import make_weigh_side
from kvist.kernels.cpu.places import block_at, head_at
from kvist.kernels.cpu.scalar import arg, arg_address, arg_f32, put_f32, slot
from kvist.kernels.cpu.vector import keep_first, reduce_max, splat
from kvist.kernels.cpu.vector_memory import load_f32, store_f32

TILE = abi.TILE


@jit
def sealed_scratch(rows: int, dims: int) -> int:
    """Bytes behind an item's turned queries: rounded ones, exact scores, rounded weights and scales, blocks, maxima."""
    return rows * (dims * 4 + query_bytes(dims) + 256 + 4) + WEIGH_SCRATCH + BLOCKS_BYTES


@jit
def sealed_places(copy: int, rows: int, dims: int) -> tuple[int, int, int]:
    """Where rounded queries, exact scores and rounded weights lie, behind the turned queries."""
    rounded = copy + rows * dims * 4
    other = rounded + rows * query_bytes(dims)
    return rounded, other, other + rows * 256


@jit
def first_maxima(copy: int, rows: int, dims: int) -> int:
    """Where the maxima lie that an item's rows begin a split with."""
    return sealed_places(copy, rows, dims)[2] + WEIGH_SCRATCH + BLOCKS_BYTES


@jit
def packed_ids(item: int, op: int, kv_head: int) -> int:
    """Address of the ids of an item's packed pages: those of their group, or the second side of what is chosen."""
    pages, stride = slot(item, abi.ITEM_PAGES), slot(item, abi.ITEM_STRIDE)
    return pages + (arg(op, 19) * stride if arg(op, abi.ATTEND_CHOSEN) == 0 else kv_head * stride + (stride >> 1))


@jit
def ask_for_scales(places: int, at: int, size: int) -> None:
    """Of the blocks read next, of `size` bytes, what the two sides leave: it begins `at` bytes in."""
    for b in (4, 7):
        ask_for(slot(places, b) + at, size - at)


@apart
def forget_before(p: int, rows: int, group: int, low: int) -> None:
    """Weights of the slots before a row's window become 0; it begins at `low` for the first token's rows, and so on."""
    for r in range(rows):
        for i in range(4):
            at = p + r * 256 + i * 64
            store_f32(at, keep_first(splat(0.0), low + r // group - i * 16, load_f32(at)))


@jit
def first_header(pages: int, begin: int, low: int, page_size: int, strides: int, head: int) -> int:
    """Address of the header of the page that block `low` of a tile lies in."""
    return block_at(pages, (begin + low * 16) & -page_size, page_size, strides, head, 0)


def make_first_maxima(exact: str) -> Any:
    """``put(q, rows, group, position, dims, block, p, out, window, cap)``: the largest score of the first block.

    Of rows that see it and stand behind it. p: room for their scores, 256 bytes apart; out: a float32 each.
    """
    score_block = make_score_rows(exact, 0, 1)

    @apart
    def put_maxima(
        q: int, rows: int, group: int, position: int, dims: int, block: int, p: int, out: int, window: int, cap: float
    ) -> None:  # fmt: skip
        if position < window:
            score_block(q, rows, dims, block, block, block, block, p, block, block, block, block)
        for r in range(rows):
            largest = LOWEST
            if 16 <= position + r // group < window:
                if cap > 0.0:
                    cap_scores(p + r * 256, cap)
                largest = reduce_max(load_f32(p + r * 256))
            put_f32(out + r * 4, largest)

    return put_maxima


def make_exact(exact: str) -> tuple[Any, Any]:
    """A tile's exact blocks: those before the block `low` and from `high` on, up to the row's own position."""
    score_rows, score_block = make_score_rows(exact, 0), make_score_rows(exact, 0, 1)
    weigh_rows = make_weigh_rows(exact, False)
    itemsize = codec(exact).itemsize

    @apart
    def score_exact(
        begin: int, low: int, high: int, last: int, rows: int, dims: int, pages: int, page_size: int, strides: int,
        head: int, q: int, p: int, other: int,
    ) -> None:  # fmt: skip
        """Scores in the exact blocks of the tile; others that lie in p stay. other: room for as many rows."""
        size = 32 * dims * itemsize
        any_block = block_at(pages, begin if low > 0 else begin + high * 16, page_size, strides, head, size)
        b0 = b1 = b2 = b3 = any_block
        end = min(4, (last - begin) // 16 + 1)
        if low + max(0, end - high) == 1:
            score_block(q, rows, dims, b0, b0, b0, b0, p + (0 if low > 0 else high * 64), b0, b0, b0, b0)
            return
        if high <= 0 < end:
            b0 = block_at(pages, begin, page_size, strides, head, size)
        if low > 1 or high <= 1 < end:
            b1 = block_at(pages, begin + 16, page_size, strides, head, size)
        if low > 2 or high <= 2 < end:
            b2 = block_at(pages, begin + 32, page_size, strides, head, size)
        if low > 3 or high <= 3 < end:
            b3 = block_at(pages, begin + 48, page_size, strides, head, size)
        score_rows(q, rows, dims, b0, b1, b2, b3, other, b0, b1, b2, b3)
        for r in range(rows):
            for b in range(4):
                if b < low or b >= high:
                    store_f32(p + r * 256 + b * 64, load_f32(other + r * 256 + b * 64))

    @apart
    def weigh_exact(
        begin: int, low: int, high: int, position: int, group: int, dims: int, pages: int, page_size: int,
        strides: int, head: int, p: int, acc: int, window: int,
    ) -> None:  # fmt: skip
        """The values of one token's heads, as far as it sees them."""
        size, end = 32 * dims * itemsize, position + 1 - begin
        for b in range(4):
            first, valid = max(0, end - window - b * 16), min(16, end - b * 16)
            if (b < low or b >= high) and first < valid:
                v = block_at(pages, begin + b * 16, page_size, strides, head, size) + (16 + first) * dims * itemsize
                weigh_rows(p + (b * 16 + first) * 4, group, v, valid - first, acc, dims, v)

    return score_exact, weigh_exact


def make_attend_sealed_tile(exact: str, k: str, v: str) -> tuple[Any, Any]:
    """Of a layer that is packed: what is done with an item's queries first; one tile of positions for all its rows."""
    k_codec, v_codec = any_codec(k), any_codec(v)
    (k_bytes, k_header), (v_bytes, v_header) = part_bytes(k_codec, keys=True), part_bytes(v_codec, keys=False)
    channels = getattr(k_codec, "channels", False)
    prepare, share = make_prepare(k_codec), even_share(k_codec, v_codec)
    score_sealed, weigh_sealed = make_score_side(k_codec, share), make_weigh_side(v_codec, share)
    (score_exact, weigh_exact), put_maxima = make_exact(exact), make_first_maxima(exact)
    itemsize = codec(exact).itemsize

    @jit
    def begin_item(
        op: int, rows: int, group: int, position: int, dims: int, pages: int, page_size: int, strides: int, head: int,
        q: int, p: int, copy: int,
    ) -> None:  # fmt: skip
        if not channels:
            prepare(q, rows, dims, 0, copy + rows * dims * 4)
        block, out = block_at(pages, 0, page_size, strides, head, 32 * dims * itemsize), first_maxima(copy, rows, dims)
        put_maxima(q, rows, group, position, dims, block, p, out, arg(op, 6), arg_f32(op, 7))

    @inlined
    def attend_tile(
        op: int, item: int, kv_head: int, tile: int, until: int, rows: int, group: int, position: int, dims: int,
        pages: int, page_size: int, strides: int, head: int, q: int, p: int, copy: int, acc: int, row_max: int,
        row_sum: int, window: int, cap: float, follower: int, n_kv_head: int, n_begin: int, n_live: int,
    ) -> None:  # fmt: skip
        begin = tile * TILE
        sealed_pages = packed_ids(item, op, kv_head)
        split, header, sealed_strides = k_bytes(dims), k_header(dims) + v_header(dims), arg_address(op, 17)
        size = split + v_bytes(dims)
        blocks = head_at(arg(op, 16), kv_head, page_size, sealed_strides) + header
        rounded, other, scratch = sealed_places(copy, rows, dims)
        places = scratch + WEIGH_SCRATCH
        low = min(4, (page_size - begin) >> 4) if begin < page_size else 0  # blocks of page 0
        token, tokens = max(0, begin - position), min(rows // group, begin + TILE - 1 + window - position)
        while token < tokens:
            own = ((position + token) & -page_size) - begin  # pages are powers of two
            next_token = tokens if own >= TILE else min(tokens, own + begin + page_size - position)
            high = max(low, min(4, own >> 4))
            n, at, last = (next_token - token) * group, token * group, position + next_token - 1
            qs, asked = q + at * dims * 4, rounded + at * query_bytes(dims)
            ps, acs = p + at * 256, acc + at * dims * 4
            # blocks before the window may be gone; whatever is read there is weighed by 0
            old = max(low, max(0, position + token - window + 1 - begin) >> 4)
            if old < high:
                put_blocks(places, sealed_pages, begin, old, high, page_size, sealed_strides, blocks, size)
                n_pages, n_tile, n_blocks, whole = sealed_pages, begin + TILE, blocks, own >= 2 * TILE
                if tile + 1 >= until:
                    n_pages, n_tile = packed_ids(follower, op, n_kv_head), n_begin
                    n_blocks = head_at(blocks, n_kv_head - kv_head, page_size, sealed_strides)
                    whole = (slot(follower, abi.ITEM_POSITION) & -page_size) - n_begin >= TILE
                n_old, n_high = 0, 4
                if not whole:
                    n_pages, n_tile, n_blocks, n_old, n_high = sealed_pages, begin, blocks, old, high
                put_blocks(places + 32, n_pages, n_tile, n_old, n_high, page_size, sealed_strides, n_blocks, size)
                if channels:
                    page = first_header(sealed_pages, begin, old, page_size, sealed_strides, blocks - header)
                    prepare(qs, n, dims, page, asked)
                score_sealed(qs, asked, n, dims, places, ps)
            of_row = 0
            if share > 0 and old < high:
                ask_for_scales(places, (dims >> 2) * share, size)
                of_row = share_of(size, n)
            if low > 0 or high < 4:
                score_exact(begin, low, high, last, n, dims, pages, page_size, strides, head, qs, ps, other)
            soften(
                p, at, at + n, group, position, begin, row_max, row_sum, acc, dims, window, cap, slot(places, 5),
                of_row, NEVER if low > 0 or high < 4 else FAR * LOG_2,
            )  # fmt: skip
            if low > 0 or high < 4:
                for t in range(token, next_token):
                    pt, at_acc = p + t * group * 256, acc + t * group * dims * 4
                    weigh_exact(
                        begin, low, high, position + t, group, dims, pages, page_size, strides, head, pt, at_acc,
                        window,
                    )  # fmt: skip
            if old < high:
                if last + 1 - begin > window:
                    forget_before(ps, n, group, position + token + 1 - begin - window)
                weigh_sealed(ps, n, old, high, places, split, size, acs, dims, scratch)
            token = next_token

    return begin_item, attend_tile
