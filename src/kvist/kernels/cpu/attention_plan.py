"""Cut a step's attention into items that threads take one by one."""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import arg, put_i64, slot

SPLIT, TILE_ROWS = abi.SPLIT, abi.TILE_ROWS
ITEM_BYTES, SEQ_BYTES = abi.ITEM_SLOTS * 8, abi.SEQUENCE_SLOTS * 8


@jit
def _put_item(
    at: int, row: int, tokens: int, position: int, pages: int, stride: int, first_split: int, last_split: int,
    partial: int,
) -> None:  # fmt: skip
    put_i64(at + abi.ITEM_ROW * 8, row)
    put_i64(at + abi.ITEM_TOKENS * 8, tokens)
    put_i64(at + abi.ITEM_POSITION * 8, position)
    put_i64(at + abi.ITEM_PAGES * 8, pages)
    put_i64(at + abi.ITEM_STRIDE * 8, stride)
    put_i64(at + abi.ITEM_FROM * 8, first_split)
    put_i64(at + abi.ITEM_TO * 8, last_split)
    put_i64(at + abi.ITEM_PARTIAL * 8, partial)


@jit
def pages_read(pages: int, share: int, least: int) -> int:
    """How many of the pages up to its own a token reads: `cache.policy.Choice.count`."""
    return min(pages, max(least, (pages * share + abi.WHOLE - 1) // abi.WHOLE))


@jit
def choosing_parts(choosers: int, threads: int) -> int:
    """In how many parts pages are weighed for each of so many choosers (row, KV head): few are shared out evenly."""
    parts = 1
    while choosers < abi.FEW_CHOOSERS * threads and parts * choosers % threads != 0:
        parts += 1
    return parts


@jit
def plan(ctx: int, op: int) -> None:
    """Cut this step's attention into items (the longest first) and merges. Affects who computes, never what.

    A sequence with one tile of rows (decode, or the verification of a few tokens) is split by context; one with many
    rows has pieces enough. When the room for partial results is used up, the rest is not split.

    Arguments: where the counts go, from ITEMS on; where tokens choose their pages: share, least (see `Choice`), address
    of int32 [row][KV head][places]: the pages of each, and places. There each row is an item, at the position that it
    has among the pages it reads.
    """
    chosen, share, least, tables, stride = arg(op, 0), arg(op, 1), arg(op, 2), arg(op, 3), arg(op, 4) * 4
    group, kv_heads, page_size = slot(ctx, abi.GROUP), slot(ctx, abi.KV_HEADS), slot(ctx, abi.PAGE_SIZE)
    items, merges = slot(ctx, abi.ITEM_TABLE + chosen), slot(ctx, abi.MERGE_TABLE + chosen)
    room, used = slot(ctx, abi.PARTIAL_ROWS), 0
    tile_tokens = 1 if chosen else max(1, TILE_ROWS // group)
    n_items, n_merges, capacity = 0, 0, slot(ctx, abi.ITEM_CAPACITY)
    for s in range(slot(ctx, abi.SEQUENCES)):
        seq = slot(ctx, abi.SEQUENCE_TABLE) + s * SEQ_BYTES
        row, tokens, pages = slot(seq, abi.SEQ_ROW), slot(seq, abi.SEQ_TOKENS), slot(seq, abi.SEQ_PAGES)
        stride = stride if chosen else slot(seq, abi.SEQ_STRIDE)
        tile = (tokens - 1) // tile_tokens
        alone = tile == 0
        while tile >= 0:
            start = tile * tile_tokens
            count, position = min(tile_tokens, tokens - start), slot(seq, abi.SEQ_POSITION) + start
            if chosen:
                read = pages_read(position // page_size + 1, share, least)
                position = (read - 1) * page_size + position % page_size
                pages = tables + (row + start) * kv_heads * stride
            splits = (position + count - 1) // SPLIT + 1
            need = splits * count * group * kv_heads
            if alone and splits > 1 and used + need <= room and n_items + splits <= capacity // 2:
                _put_item(merges + n_merges * ITEM_BYTES, row, count, position, pages, stride, 0, splits, used)
                n_merges += 1
                for split in range(splits):
                    at = items + n_items * ITEM_BYTES
                    _put_item(at, row, count, position, pages, stride, split, split + 1, used)
                    n_items += 1
                    used += count * group * kv_heads
            else:
                at = items + n_items * ITEM_BYTES
                _put_item(at, row + start, count, position, pages, stride, 0, splits, -1)
                n_items += 1
            tile -= 1
    put_i64(ctx + (abi.ITEMS + chosen) * 8, n_items)
    put_i64(ctx + (abi.MERGES + chosen) * 8, n_merges)
