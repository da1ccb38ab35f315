"""Fold the partial results of split attention."""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_extras import join_sink
from kvist.kernels.cpu.attention_plan import ITEM_BYTES
from kvist.kernels.cpu.attention_row import finish, fold
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import arg, slot

SPLIT = abi.SPLIT


@jit
def merge(ctx: int, op: int, piece: int, tid: int) -> None:
    """Fold the partial results of one (sequence, KV head), in order of their splits, and write its rows."""
    group, kv_heads = slot(ctx, abi.GROUP), slot(ctx, abi.KV_HEADS)
    stride, out, dims, window, sinks = arg(op, 1), arg(op, 2), arg(op, 3), arg(op, 6), arg(op, 8)
    item = slot(ctx, abi.MERGE_TABLE + arg(op, abi.ATTEND_CHOSEN)) + (piece // kv_heads) * ITEM_BYTES
    kv_head = piece % kv_heads
    row, tokens = slot(item, abi.ITEM_ROW), slot(item, abi.ITEM_TOKENS)
    position, splits = slot(item, abi.ITEM_POSITION), slot(item, abi.ITEM_TO)
    rows = tokens * group
    row_bytes = (dims + 2) * 4
    start = slot(ctx, abi.PARTIALS) + (slot(item, abi.ITEM_PARTIAL) + kv_head * rows) * row_bytes
    total = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
    total_max = total + dims * 4
    for r in range(rows):
        at = position + r // group
        begin = max(0, at - window + 1) // SPLIT
        for split in range(begin, min(splits, at // SPLIT + 1)):
            part = start + split * rows * kv_heads * row_bytes
            row_max = part + rows * dims * 4 + r * 4
            fold(
                total, total_max, total_max + 4, part + r * dims * 4, row_max, row_max + rows * 4, dims, split == begin
            )
        if sinks != 0:
            join_sink(sinks + (kv_head * group + r % group) * 4, total, total_max, total_max + 4, dims)
        target = out + (row + r // group) * stride + kv_head * group * dims * 4 + (r % group) * dims * 4
        finish(target, total, total_max + 4, dims, arg(op, 21))
