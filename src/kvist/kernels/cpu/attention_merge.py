"""Fold the partial results of split attention."""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_plan import ITEM_BYTES
from kvist.kernels.cpu.attention_row import finish, fold
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import get_i64

SPLIT = abi.SPLIT


@jit
def merge(ctx: int, op: int, piece: int, tid: int) -> None:
    """Fold the partial results of one (sequence, KV head), in order of their splits, and write its rows."""
    group, kv_heads = get_i64(ctx + abi.GROUP * 8), get_i64(ctx + abi.KV_HEADS * 8)
    stride, out, dims = get_i64(op + 32), get_i64(op + 40), get_i64(op + 48)
    item = get_i64(ctx + abi.MERGE_TABLE * 8) + (piece // kv_heads) * ITEM_BYTES
    kv_head = piece % kv_heads
    row, tokens = get_i64(item + abi.ITEM_ROW * 8), get_i64(item + abi.ITEM_TOKENS * 8)
    position, splits = get_i64(item + abi.ITEM_POSITION * 8), get_i64(item + abi.ITEM_TO * 8)
    rows = tokens * group
    row_bytes = (dims + 2) * 4
    start = get_i64(ctx + abi.PARTIALS * 8) + (get_i64(item + abi.ITEM_PARTIAL * 8) + kv_head * rows) * row_bytes
    total = get_i64(ctx + abi.SCRATCH * 8) + tid * get_i64(ctx + abi.SCRATCH_BYTES * 8)
    total_max = total + dims * 4
    for r in range(rows):
        for split in range(min(splits, (position + r // group) // SPLIT + 1)):
            part = start + split * rows * kv_heads * row_bytes
            row_max = part + rows * dims * 4 + r * 4
            fold(total, total_max, total_max + 4, part + r * dims * 4, row_max, row_max + rows * 4, dims, split == 0)
        target = out + (row + r // group) * stride + kv_head * group * dims * 4 + (r % group) * dims * 4
        finish(target, total, total_max + 4, dims)
