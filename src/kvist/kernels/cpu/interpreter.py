"""The one compiled loop: every thread of a step runs it over the same table of ops.

For each op a thread waits until the ops it depends on are done. Then it takes pieces of its own share, one by one from
an atomic counter; they lie one after the other, so what it reads is one stream. When its share is used up it takes
from the others', and goes on without waiting for them. So a thread that starts late, or is put aside by the operating
system, delays only the piece it holds; which thread computes a piece changes no bits.
"""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_merge import merge
from kvist.kernels.cpu.attention_plan import choosing_parts, plan
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.matmul import ask_ahead, matmul_pieces
from kvist.kernels.cpu.pointwise import (
    cap,
    copy_row,
    gate,
    layer_norm,
    likeliest,
    make_rotary_store,
    rms_norm,
    row_pieces,
)
from kvist.kernels.cpu.roofline import fma_peak, read_all
from kvist.kernels.cpu.routing import choose, combine, gather, place
from kvist.kernels.cpu.scalar import arg, get_i64, let_others_run, nanoseconds, peek, put_i64, slot, take
from kvist.kernels.cpu.unit_call import call_unit

OP_BYTES = abi.OP_SLOTS * 8
SPINS = 4000  # looks at a counter before the core is given away

rotary_store_f32, rotary_store_f16, rotary_store_bf16 = (make_rotary_store(dtype) for dtype in abi.DTYPES)


@jit
def pieces_of(code: int, ctx: int, op: int) -> int:
    """How many pieces this op has in this step."""
    if code == abi.MATMUL:
        return matmul_pieces(ctx, op)
    if code == abi.ATTEND:
        return slot(ctx, abi.ITEMS + arg(op, abi.ATTEND_CHOSEN)) * slot(ctx, abi.KV_HEADS)
    if code == abi.MERGE:
        return slot(ctx, abi.MERGES + arg(op, abi.ATTEND_CHOSEN)) * slot(ctx, abi.KV_HEADS)
    if code == abi.BEST:
        choosers = slot(ctx, abi.ROWS) * slot(ctx, abi.KV_HEADS)
        return choosers * choosing_parts(choosers, slot(ctx, abi.THREADS))
    if code == abi.SEAL or code == abi.SKETCH:
        return slot(ctx, abi.FULL) * slot(ctx, abi.KV_HEADS)
    if code == abi.PLAN or code == abi.PLACE:
        return 1
    if code == abi.NORMALISE:
        return slot(ctx, abi.ROWS) * slot(ctx, abi.KV_HEADS)
    if code == abi.OBSERVE:
        sequence = slot(ctx, abi.SEQUENCE_TABLE)
        end = min(slot(sequence, abi.SEQ_POSITION) + slot(sequence, abi.SEQ_TOKENS), arg(op, abi.OBSERVED))
        return (end + abi.TILE - 1) // abi.TILE * slot(ctx, abi.KV_HEADS)
    if code == abi.EXPERTS:
        return arg(op, 14) * ((arg(op, 2) + abi.EXPERT_ROWS - 1) // abi.EXPERT_ROWS)
    if code == abi.LIKELIEST or code == abi.CAP:
        return slot(ctx, abi.SAMPLED)
    if code == abi.READ or code == abi.FMA_PEAK or code == abi.DRAW or code == abi.RATE:
        return arg(op, 1)
    if code == abi.CONVERT:
        return (arg(op, 1) + abi.CONVERT_ROWS - 1) // abi.CONVERT_ROWS
    if code == abi.FIND_NONFINITE:
        return (arg(op, 1) + abi.SEARCH_BLOCKS - 1) // abi.SEARCH_BLOCKS
    if code == abi.RMS_NORM or code == abi.LAYER_NORM:
        return 0 if is_private(ctx, op) else row_pieces(norm_rows(ctx, op))
    return row_pieces(slot(ctx, abi.ROWS))


@jit
def norm_rows(ctx: int, op: int) -> int:
    """Rows of a norm: all, or those whose logits are asked for."""
    return slot(ctx, abi.SAMPLED) if arg(op, 9) else slot(ctx, abi.ROWS)


@jit
def is_private(ctx: int, op: int) -> bool:
    """Whether every thread does this norm for itself: its few rows feed matmuls alone."""
    return arg(op, 10) != 0 and norm_rows(ctx, op) <= abi.PRIVATE_ROWS


@jit
def norm(code: int, ctx: int, op: int, row: int, place: int) -> None:
    """One row of either kind of norm."""
    if code == abi.RMS_NORM:
        rms_norm(ctx, op, row, place)
    else:
        layer_norm(ctx, op, row, place)


@jit
def run_rows(code: int, ctx: int, op: int, piece: int) -> None:
    """A piece of an op that works row by row."""
    is_norm = code == abi.RMS_NORM or code == abi.LAYER_NORM
    rows = norm_rows(ctx, op) if is_norm else slot(ctx, abi.ROWS)
    for row in range(piece * abi.ROWS_A_PIECE, min(rows, (piece + 1) * abi.ROWS_A_PIECE)):
        if is_norm:
            norm(code, ctx, op, row, row)
        elif code == abi.GATE:
            gate(ctx, op, row)
        elif code == abi.CHOOSE:
            choose(op, row)
        elif code == abi.GATHER:
            gather(op, row)
        elif code == abi.COMBINE:
            combine(op, row)
        elif code == abi.COPY:
            copy_row(op, row)
        else:
            rotary_store(ctx, op, row)


@jit
def rotary_store(ctx: int, op: int, row: int) -> None:
    """A row, in the type of the pages."""
    dtype = arg(op, 13)
    if dtype == 0:
        rotary_store_f32(ctx, op, row)
    elif dtype == 1:
        rotary_store_f16(ctx, op, row)
    else:
        rotary_store_bf16(ctx, op, row)


@jit
def run_piece(code: int, ctx: int, op: int, piece: int, tid: int) -> None:
    """One piece of one op."""
    if slot(op, abi.UNIT) != 0:
        call_unit(slot(op, abi.UNIT), ctx, op, piece, tid)
    elif code == abi.MERGE:
        merge(ctx, op, piece, tid)
    elif code == abi.PLAN:
        plan(ctx, op)
    elif code == abi.PLACE:
        place(ctx, op)
    elif code == abi.LIKELIEST:
        likeliest(op, piece)
    elif code == abi.CAP:
        cap(op, piece)
    elif code == abi.READ:
        read_all(op, piece, slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES))
    elif code == abi.FMA_PEAK:
        fma_peak(op, piece, slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES))
    else:
        run_rows(code, ctx, op, piece)


@jit
def wait(counter: int, total: int) -> None:
    """Until `total` pieces are done: look a while, then let others run between looks."""
    spins = 0
    while peek(counter) < total:
        spins += 1
        if spins > SPINS:
            let_others_run()


@jit
def note_times(place: int, begin: int, ready: int) -> None:
    """Add what an op took this thread: nanoseconds waited for others, nanoseconds worked."""
    put_i64(place, get_i64(place) + ready - begin)
    put_i64(place + 8, get_i64(place + 8) + nanoseconds() - ready)


@jit
def take_pieces(code: int, ctx: int, op: int, counters: int, total: int, tid: int) -> None:
    """Run pieces of one op until none is left to take."""
    threads = slot(ctx, abi.THREADS)
    for turn in range(threads):
        owner = (tid + turn) % threads
        first, end = total * owner // threads, total * (owner + 1) // threads
        if first < end:
            piece = first + take(counters + 8 + owner * 8)
            while piece < end:
                run_piece(code, ctx, op, piece, tid)
                take(counters)
                piece = first + take(counters + 8 + owner * 8)


@jit
def ask_for_next_weights(op: int, end: int, ctx: int, tid: int) -> None:
    """Let memory work while threads do or wait for small things: the next matmul's weights depend on nothing."""
    while op < end and slot(op, abi.CODE) != abi.MATMUL:
        op += OP_BYTES
    if op < end:
        total, threads = pieces_of(abi.MATMUL, ctx, op), slot(ctx, abi.THREADS)
        ask_ahead(ctx, op, total * tid // threads, total * (tid + 1) // threads)


@jit
def run_table(table: int, count: int, ctx: int, tid: int) -> None:
    """Run `count` ops of the table as thread `tid`; returns when every piece of every op is done."""
    counters, times = slot(ctx, abi.COUNTERS), slot(ctx, abi.TIMES)
    stride = (slot(ctx, abi.THREADS) + 1) * 8
    begin, ready = 0, 0
    for i in range(count):
        op = table + i * OP_BYTES
        code = slot(op, abi.CODE)
        if times != 0:
            begin = nanoseconds()
        if code != abi.MATMUL and (i == 0 or slot(op - OP_BYTES, abi.CODE) == abi.MATMUL):
            ask_for_next_weights(op, table + count * OP_BYTES, ctx, tid)
        for j in range(slot(op, abi.WAIT_FROM), slot(op, abi.WAIT_TO)):
            earlier = table + j * OP_BYTES
            wait(counters + j * stride, pieces_of(slot(earlier, abi.CODE), ctx, earlier))
        if times != 0:
            ready = nanoseconds()
        if (code == abi.RMS_NORM or code == abi.LAYER_NORM) and is_private(ctx, op):
            for row in range(norm_rows(ctx, op)):
                norm(code, ctx, op, row, tid * abi.PRIVATE_ROWS + row)
        take_pieces(code, ctx, op, counters + i * stride, pieces_of(code, ctx, op), tid)
        if times != 0:
            note_times(times + (tid * count + i) * 16, begin, ready)
    if times != 0:
        begin = nanoseconds()
    for i in range(count):
        op = table + i * OP_BYTES
        wait(counters + i * stride, pieces_of(slot(op, abi.CODE), ctx, op))
    if times != 0:  # the wait for the end counts as the last op's
        note_times(times + (tid * count + count - 1) * 16, begin, nanoseconds())
