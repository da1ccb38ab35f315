"""The one compiled loop: every thread of a step runs it over the same table of ops.

For each op a thread waits until the ops it depends on are done, then takes pieces of it one by one from an atomic
counter until none is left, and goes on without waiting for the others. So a thread that starts late, or is put aside
by the operating system, delays only the piece it holds; which thread computes a piece changes no bits.
"""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_call import call_attend
from kvist.kernels.cpu.attention_merge import merge
from kvist.kernels.cpu.attention_plan import plan
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.matmul import make_matmul, matmul_pieces
from kvist.kernels.cpu.pointwise import (
    ROWS_A_PIECE,
    gate,
    layer_norm,
    make_embed,
    make_rotary_store,
    rms_norm,
    row_pieces,
)
from kvist.kernels.cpu.roofline import fma_peak, read_all
from kvist.kernels.cpu.scalar import arg, let_others_run, peek, slot, take
from kvist.kernels.cpu.unpack import NUMBERS_A_PIECE, make_find_nonfinite, make_unpack
from kvist.kernels.cpu.unpack import ROWS_A_PIECE as UNPACK_ROWS

OP_BYTES = abi.OP_SLOTS * 8
SPINS = 4000  # looks at a counter before the core is given away

matmul_f32, matmul_f16, matmul_bf16 = (make_matmul(dtype) for dtype in abi.DTYPES)
embed_f32, embed_f16, embed_bf16 = (make_embed(dtype) for dtype in abi.DTYPES)
rotary_store_f32, rotary_store_f16, rotary_store_bf16 = (make_rotary_store(dtype) for dtype in abi.DTYPES)
unpack_f32, unpack_f16, unpack_bf16 = (make_unpack(dtype) for dtype in abi.DTYPES)
find_nonfinite_f32, find_nonfinite_f16, find_nonfinite_bf16 = (make_find_nonfinite(dtype) for dtype in abi.DTYPES)


@jit
def pieces_of(code: int, ctx: int, op: int) -> int:
    """How many pieces this op has in this step."""
    if code == abi.MATMUL:
        return matmul_pieces(ctx, op)
    if code == abi.ATTEND:
        return slot(ctx, abi.ITEMS) * slot(ctx, abi.KV_HEADS)
    if code == abi.MERGE:
        return slot(ctx, abi.MERGES) * slot(ctx, abi.KV_HEADS)
    if code == abi.PLAN:
        return 1
    if code == abi.READ or code == abi.FMA_PEAK:
        return arg(op, 1)
    if code == abi.UNPACK:
        return (arg(op, 2) + UNPACK_ROWS - 1) // UNPACK_ROWS
    if code == abi.FIND_NONFINITE:
        return (arg(op, 1) + NUMBERS_A_PIECE - 1) // NUMBERS_A_PIECE
    if (code == abi.RMS_NORM or code == abi.LAYER_NORM) and arg(op, 9):
        return row_pieces(slot(ctx, abi.SAMPLED))
    return row_pieces(slot(ctx, abi.ROWS))


@jit
def run_rows(code: int, dtype: int, ctx: int, op: int, piece: int) -> None:
    """A piece of an op that works row by row."""
    rows = slot(ctx, abi.ROWS)
    if (code == abi.RMS_NORM or code == abi.LAYER_NORM) and arg(op, 9):
        rows = slot(ctx, abi.SAMPLED)
    for row in range(piece * ROWS_A_PIECE, min(rows, (piece + 1) * ROWS_A_PIECE)):
        if code == abi.RMS_NORM:
            rms_norm(ctx, op, row)
        elif code == abi.LAYER_NORM:
            layer_norm(ctx, op, row)
        elif code == abi.GATE:
            gate(ctx, op, row)
        elif code == abi.ROTARY_STORE:
            if dtype == 0:
                rotary_store_f32(ctx, op, row)
            elif dtype == 1:
                rotary_store_f16(ctx, op, row)
            else:
                rotary_store_bf16(ctx, op, row)
        elif dtype == 0:
            embed_f32(ctx, op, row)
        elif dtype == 1:
            embed_f16(ctx, op, row)
        else:
            embed_bf16(ctx, op, row)


@jit
def run_piece(code: int, dtype: int, ctx: int, op: int, piece: int, tid: int) -> None:
    """One piece of one op."""
    if code == abi.MATMUL:
        if dtype == 0:
            matmul_f32(ctx, op, piece)
        elif dtype == 1:
            matmul_f16(ctx, op, piece)
        else:
            matmul_bf16(ctx, op, piece)
    elif code == abi.ATTEND:
        call_attend(slot(ctx, abi.ATTEND_FUNCTION), dtype, ctx, op, piece, tid)
    elif code == abi.MERGE:
        merge(ctx, op, piece, tid)
    elif code == abi.PLAN:
        plan(ctx)
    elif code >= abi.READ:
        scratch = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        if code == abi.READ:
            read_all(op, piece, scratch)
        elif code == abi.FMA_PEAK:
            fma_peak(op, piece, scratch)
        elif code == abi.FIND_NONFINITE:
            if dtype == 0:
                find_nonfinite_f32(op, piece)
            elif dtype == 1:
                find_nonfinite_f16(op, piece)
            else:
                find_nonfinite_bf16(op, piece)
        elif dtype == 0:
            unpack_f32(ctx, op, piece, scratch)
        elif dtype == 1:
            unpack_f16(ctx, op, piece, scratch)
        else:
            unpack_bf16(ctx, op, piece, scratch)
    else:
        run_rows(code, dtype, ctx, op, piece)


@jit
def wait(counter: int, total: int) -> None:
    """Until `total` pieces are done: look a while, then let others run between looks."""
    spins = 0
    while peek(counter) < total:
        spins += 1
        if spins > SPINS:
            let_others_run()


def run(table: int, count: int, ctx: int, tid: int) -> int:
    """Run `count` ops of the table as thread `tid`; returns when every piece of every op is done."""
    counters = slot(ctx, abi.COUNTERS)
    for i in range(count):
        op = table + i * OP_BYTES
        code = slot(op, abi.CODE) % 256
        for j in range(slot(op, abi.WAIT_FROM), slot(op, abi.WAIT_TO)):
            earlier = table + j * OP_BYTES
            wait(counters + j * 16 + 8, pieces_of(slot(earlier, abi.CODE) % 256, ctx, earlier))
        total = pieces_of(code, ctx, op)
        piece = take(counters + i * 16)
        while piece < total:
            run_piece(code, slot(op, abi.CODE) // 256, ctx, op, piece, tid)
            take(counters + i * 16 + 8)
            piece = take(counters + i * 16)
    for i in range(count):
        op = table + i * OP_BYTES
        wait(counters + i * 16 + 8, pieces_of(slot(op, abi.CODE) % 256, ctx, op))
    return 0
