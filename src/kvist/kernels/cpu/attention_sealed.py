"""Attention over packed layers: a row reads its own page and page 0 as floats, all other pages as they were packed.

A tile that holds nothing but sealed pages, for every row of an item, is like one of floats. The others are *mixed*:
the first tile, and those that the rows' own pages lie in. There each block is copied as float32, from the sealed pages
or the exact ones or, where rows differ, from both; rows with the same own page, a *run*, read the same copies::

    pages          12      13      14      15         page size 16: a tile
    rows 208..223  sealed  exact   -       -          own page 13
    rows 224..239  sealed  sealed  exact   -          own page 14

A copy holds the very numbers that few rows would unpack, so which way they go changes no bits.
"""

from __future__ import annotations

from typing import Any

from kvist.cache.codec import any_codec, codec
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_extras import block_at, soften
from kvist.kernels.cpu.attention_rows import make_score_rows, make_weigh_rows
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.packed_rows import (
    MOST_FEW,
    make_copy_part,
    make_packed_score_rows,
    make_packed_weigh_rows,
    part_bytes,
)
from kvist.kernels.cpu.scalar import arg, slot
from kvist.kernels.cpu.vector import keep_first, splat
from kvist.kernels.cpu.vector_memory import load_f32, store_f32

TILE = abi.TILE


@jit
def forget_before(p: int, low: int) -> None:
    """Weights of the slots 0..low-1 of a tile become 0: the row's window begins at `low`."""
    for i in range(4):
        store_f32(p + i * 64, keep_first(splat(0.0), low - i * 16, load_f32(p + i * 64)))


def make_copy_block(exact: str, k: str, v: str) -> Any:
    """``copy(sealed, block, header, dims, out_k, out_v, scratch)``: a block of either kind as float32."""
    floats, k_codec, v_codec = codec(exact), any_codec(k), any_codec(v)
    float_part = make_copy_part(floats, keys=True)  # K and V of floats lie as they are copied
    k_part, v_part = make_copy_part(k_codec, keys=True), make_copy_part(v_codec, keys=False)
    k_bytes = part_bytes(k_codec, keys=True)[0]
    itemsize = floats.itemsize

    @jit
    def copy_block(sealed: bool, block: int, header: int, dims: int, out_k: int, out_v: int, scratch: int) -> None:
        if sealed:
            k_part(block, header, dims, out_k, scratch)
            v_part(block + k_bytes(dims), header, dims, out_v, scratch)
        else:
            float_part(block, 0, dims, out_k, scratch)
            float_part(block + 16 * dims * itemsize, 0, dims, out_v, scratch)

    return copy_block


def make_mixed_tile(copy_block: Any, exact: str) -> Any:
    """A tile in which some block is exact for some row."""
    score, weigh = make_score_rows("f32", False), make_weigh_rows("f32", False)
    itemsize = codec(exact).itemsize

    @jit
    def pick(page: int, own: int, sealed: int, floats: int, size: int) -> int:
        """The copy of the block of that page which rows with this own page read."""
        return floats if page == 0 or page >= own else sealed

    @jit
    def mixed_tile(
        begin: int, skip: int, stop: int, group: int, position: int, dims: int, pages: int, page_bytes: int, head: int,
        sealed_pages: int, sealed_bytes: int, sealed_head: int, header: int, sealed_block: int, page_size: int,
        q: int, p: int, copy: int, acc: int, row_max: int, row_sum: int, window: int, cap: float,
    ) -> None:  # fmt: skip
        first, last = position + skip // group, position + (stop - 1) // group
        old, new = max(0, first - window + 1 - begin) // 16, min(TILE - 1, last - begin) // 16
        size = TILE * dims * 4  # of K or V of a copied tile: sealed K, sealed V, exact K, exact V
        scratch = copy + 4 * size
        for b in range(old, new + 1):
            at = begin + b * 16
            page = at // page_size
            to_k, to_v = copy + b * dims * 64, copy + size + b * dims * 64
            if page != 0 and page < last // page_size:
                block = block_at(sealed_pages, at, page_size, sealed_bytes, sealed_head + header, sealed_block)
                top = block_at(sealed_pages, at // page_size * page_size, page_size, sealed_bytes, sealed_head, 0)
                copy_block(True, block, top, dims, to_k, to_v, scratch)
            if page == 0 or page >= first // page_size:
                block = block_at(pages, at, page_size, page_bytes, head, 32 * dims * itemsize)
                copy_block(False, block, 0, dims, to_k + 2 * size, to_v + 2 * size, scratch)
        token = skip // group
        while token * group < stop:
            own = (position + token) // page_size
            end = min(stop // group, (own + 1) * page_size - position)
            rows, at = (end - token) * group, token * group
            k = copy + old * dims * 64  # where there is nothing: any numbers do
            k0 = pick(begin // page_size, own, copy, copy + 2 * size, 0) if old <= 0 <= new else k
            k1 = pick((begin + 16) // page_size, own, copy, copy + 2 * size, 0) + dims * 64 if old <= 1 <= new else k
            k2 = pick((begin + 32) // page_size, own, copy, copy + 2 * size, 0) + dims * 128 if old <= 2 <= new else k
            k3 = pick((begin + 48) // page_size, own, copy, copy + 2 * size, 0) + dims * 192 if old <= 3 <= new else k
            score(q + at * dims * 4, rows, dims, k0, k1, k2, k3, p + at * 256, 0, 0, 0, 0)
            soften(p, at, at + rows, group, position, begin, row_max, row_sum, acc, dims, window, cap)
            for t in range(token, end):
                seen = position + t + 1 - begin
                for b in range(max(0, seen - window) // 16, (min(TILE, seen) - 1) // 16 + 1):
                    low, valid = max(0, seen - window - b * 16), min(16, seen - b * 16)
                    v = pick((begin + b * 16) // page_size, own, copy, copy + 2 * size, 0) + size + b * dims * 64
                    pr = p + t * group * 256 + (b * 16 + low) * 4
                    weigh(pr, group, v + low * dims * 4, valid - low, acc + t * group * dims * 4, dims, 0)
            token = end

    return mixed_tile


def make_attend_sealed_tile(exact: str, k: str, v: str) -> Any:
    """One tile of positions for all rows of an item that may see it, of a layer that is packed."""
    k_codec, v_codec = any_codec(k), any_codec(v)
    (k_bytes, k_header), (v_bytes, v_header) = part_bytes(k_codec, keys=True), part_bytes(v_codec, keys=False)
    copy_block = make_copy_block(exact, k, v)
    mixed_tile = make_mixed_tile(copy_block, exact)
    score_few, weigh_few = make_packed_score_rows(k_codec), make_packed_weigh_rows(v_codec)
    score_many, weigh_many = make_score_rows("f32", False), make_weigh_rows("f32", False)

    @jit
    def attend_tile(
        op: int, item: int, kv_head: int, tile: int, end: int, rows: int, group: int, position: int, dims: int,
        pages: int, page_size: int, page_bytes: int, head: int, q: int, p: int, copy: int, acc: int, row_max: int,
        row_sum: int, window: int, cap: float, follower: int, n_kv_head: int, n_begin: int, n_live: int,
    ) -> None:  # fmt: skip
        begin = tile * TILE
        skip = max(0, begin - position) * group
        stop = min(rows, (begin + TILE - 1 + window - position) * group)
        sealed_pages = slot(item, abi.ITEM_PAGES) + arg(op, 17) * slot(item, abi.ITEM_STRIDE)
        split, header = k_bytes(dims), k_header(dims) + v_header(dims)
        size, sealed_bytes = split + v_bytes(dims), arg(op, 16)
        top = arg(op, 15) + kv_head * (header + page_size // 16 * size)
        if begin < page_size or begin + TILE > position // page_size * page_size:
            mixed_tile(
                begin, skip, stop, group, position, dims, pages, page_bytes, head, sealed_pages, sealed_bytes, top,
                header, size, page_size, q, p, copy, acc, row_max, row_sum, window, cap,
            )  # fmt: skip
            return
        blocks = top + header
        old = max(0, position - window + 1 - begin) // 16  # blocks before it may be gone
        b0 = block_at(sealed_pages, begin + old * 16, page_size, sealed_bytes, blocks, size)
        b1 = block_at(sealed_pages, begin + 16, page_size, sealed_bytes, blocks, size) if old < 1 else b0
        b2 = block_at(sealed_pages, begin + 32, page_size, sealed_bytes, blocks, size) if old < 2 else b0
        b3 = block_at(sealed_pages, begin + 48, page_size, sealed_bytes, blocks, size) if old < 3 else b0
        head_of = block_at(sealed_pages, (begin + old * 16) // page_size * page_size, page_size, sealed_bytes, top, 0)
        scratch = copy + 4 * TILE * dims * 4
        if stop > MOST_FEW:
            k_copy, v_copy = copy, copy + TILE * dims * 4
            for b in range(4):
                block = b0 if b == 0 else b1 if b == 1 else b2 if b == 2 else b3
                copy_block(True, block, head_of, dims, k_copy + b * dims * 64, v_copy + b * dims * 64, scratch)
            k1, k2, k3 = k_copy + dims * 64, k_copy + dims * 128, k_copy + dims * 192
            score_many(q, stop, dims, k_copy, k1, k2, k3, p, 0, 0, 0, 0)
            soften(p, 0, stop, group, position, begin, row_max, row_sum, acc, dims, window, cap)
            for r in range(stop):
                forget_before(p + r * 256, position + r // group + 1 - begin - window)
            weigh_many(p, stop, v_copy, TILE, acc, dims, 0)
            return
        n0, n1, n2, n3 = b0, b1, b2, b3
        n_pages, n_blocks = sealed_pages, blocks
        if tile + 1 < end:
            n_begin, n_live = begin + TILE, position // page_size * page_size - begin - TILE
        else:
            n_pages = slot(follower, abi.ITEM_PAGES) + arg(op, 17) * slot(follower, abi.ITEM_STRIDE)
            n_blocks += (n_kv_head - kv_head) * (header + page_size // 16 * size)
            n_live = slot(follower, abi.ITEM_POSITION) // page_size * page_size - n_begin
        if n_live >= TILE:  # it is sealed as well
            n0 = block_at(n_pages, n_begin, page_size, sealed_bytes, n_blocks, size)
            n1 = block_at(n_pages, n_begin + 16, page_size, sealed_bytes, n_blocks, size)
            n2 = block_at(n_pages, n_begin + 32, page_size, sealed_bytes, n_blocks, size)
            n3 = block_at(n_pages, n_begin + 48, page_size, sealed_bytes, n_blocks, size)
        score_few(q, stop, dims, b0, b1, b2, b3, p, head_of, scratch, n0, n1, n2, n3)
        soften(p, 0, stop, group, position, begin, row_max, row_sum, acc, dims, window, cap)
        if position + 1 - begin > window:
            for r in range(stop):
                forget_before(p + r * 256, position + r // group + 1 - begin - window)
        weigh_few(p, stop, b0 + split, acc, dims, scratch, n0 + split)
        weigh_few(p + 64, stop, b1 + split, acc, dims, scratch, n1 + split)
        weigh_few(p + 128, stop, b2 + split, acc, dims, scratch, n2 + split)
        weigh_few(p + 192, stop, b3 + split, acc, dims, scratch, n3 + split)

    return attend_tile
