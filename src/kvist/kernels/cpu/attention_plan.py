"""Cut a step's attention into items that threads take one by one."""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import put_i64, slot

SPLIT, TILE_ROWS = abi.SPLIT, abi.TILE_ROWS
ITEM_BYTES, SEQ_BYTES = abi.ITEM_SLOTS * 8, abi.SEQUENCE_SLOTS * 8


@jit
def _put_item(
    at: int, seq: int, row: int, tokens: int, position: int, first_split: int, last_split: int, partial: int
) -> None:
    put_i64(at + abi.ITEM_ROW * 8, row)
    put_i64(at + abi.ITEM_TOKENS * 8, tokens)
    put_i64(at + abi.ITEM_POSITION * 8, position)
    put_i64(at + abi.ITEM_PAGES * 8, slot(seq, abi.SEQ_PAGES))
    put_i64(at + abi.ITEM_STRIDE * 8, slot(seq, abi.SEQ_STRIDE))
    put_i64(at + abi.ITEM_FROM * 8, first_split)
    put_i64(at + abi.ITEM_TO * 8, last_split)
    put_i64(at + abi.ITEM_PARTIAL * 8, partial)


@jit
def plan(ctx: int) -> None:
    """Cut this step's attention into items (the longest first) and merges. Affects who computes, never what.

    A sequence with one tile of rows (decode, or the verification of a few tokens) is split by context; one with many
    rows has pieces enough. When the room for partial results is used up, the rest is not split.
    """
    group, kv_heads = slot(ctx, abi.GROUP), slot(ctx, abi.KV_HEADS)
    items, merges = slot(ctx, abi.ITEM_TABLE), slot(ctx, abi.MERGE_TABLE)
    room, used = slot(ctx, abi.PARTIAL_ROWS), 0
    tile_tokens = max(1, TILE_ROWS // group)
    n_items, n_merges, capacity = 0, 0, slot(ctx, abi.ITEM_CAPACITY)
    for s in range(slot(ctx, abi.SEQUENCES)):
        seq = slot(ctx, abi.SEQUENCE_TABLE) + s * SEQ_BYTES
        row, tokens = slot(seq, abi.SEQ_ROW), slot(seq, abi.SEQ_TOKENS)
        position = slot(seq, abi.SEQ_POSITION)
        splits = (position + tokens - 1) // SPLIT + 1
        need = splits * tokens * group * kv_heads
        if tokens <= tile_tokens and splits > 1 and used + need <= room and n_items + splits <= capacity // 2:
            _put_item(merges + n_merges * ITEM_BYTES, seq, row, tokens, position, 0, splits, used)
            n_merges += 1
            for split in range(splits):
                _put_item(items + n_items * ITEM_BYTES, seq, row, tokens, position, split, split + 1, used)
                n_items += 1
                used += tokens * group * kv_heads
        else:
            tile = (tokens - 1) // tile_tokens
            while tile >= 0:
                start = tile * tile_tokens
                count = min(tile_tokens, tokens - start)
                last = (position + start + count - 1) // SPLIT + 1
                _put_item(items + n_items * ITEM_BYTES, seq, row + start, count, position + start, 0, last, -1)
                n_items += 1
                tile -= 1
    put_i64(ctx + abi.ITEMS * 8, n_items)
    put_i64(ctx + abi.MERGES * 8, n_merges)
