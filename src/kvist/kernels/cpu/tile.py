"""The matmul micro-kernels: a tile of weight rows times activation rows, held in registers.

::

            k ->  16 lanes  16 lanes ...
    w row 0   [..............|.....]      accumulator (r, c): sixteen lanes, lane i sums k = i, i+16, i+32, ...
    w row R-1 [..............|.....]      in ascending order, one fused multiply-add each; at the end the lanes
    x row 0   [..............|.....]      fold by one fixed tree (i + i+8, then +4, +2, +1).
    x row C-1 [..............|.....]

The sum of an output element never sees R, C, or where its weights come from, so every tile gives the same bits; that
is half of the exactness contract. Two tiles serve every number of rows:

* **stream**: 8 weight rows, two at a time, times 1 to 4 activation rows. For few rows (up to 8, in two turns) reading
  weights is all that counts; two rows that lie one after the other are nearly one stream, and lines are asked for
  8 KiB ahead, which the processor's own prefetcher does not do across a page's end (measured: 11 to 15 GB/s on one
  core that reads 16).
* **panel**: 4 weight rows times 1 to 6 activation rows: 24 accumulators need 10 loads for 24 multiply-adds. The first
  tile unpacks the weights and leaves them as float32 in a *panel*, which the others read. A panel is 12 KiB at most,
  so that it stays in the first-level cache; wider rows are taken in blocks of 768 numbers, and the accumulators wait
  in memory in between, sixteen lanes each.

    panel   [k 0..15: row 0 | row 1 | row 2 | row 3][k 16..31: row 0 | ...] ...    float32
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu.formats import FORMATS, Format
from kvist.kernels.cpu.sizes import PANEL_ROWS
from kvist.kernels.cpu.vector import F32, I64, V16F, emit_fma, emit_load, emit_prefetch, pointer, shuffle

AHEAD = 8192  # bytes between what is read and what is asked for
LINE = 64
Sums = list[list[Any]]  # LLVM values [weight row][activation row]
ZEROS = ir.Constant(V16F, [0.0] * 16)


def _panel_format(steps: int) -> Format:
    """A panel read in turns of so many times sixteen numbers a row."""

    def emit(builder: Any, row: Any) -> Iterator[Any]:
        for step in range(steps):
            yield emit_load(builder, row, "f32", I64(64 * PANEL_ROWS * step))

    return Format("panel", steps, 64 * PANEL_ROWS * steps, emit)


ONE, PAIR = _panel_format(1), _panel_format(2)


def fold_eight(builder: Any, sums: list[Any]) -> Any:
    """Eight vectors of 16 lanes -> one of 8 lanes, lane j being the tree sum of vector j."""
    last = fold(builder, sums)  # eight segments of two lanes
    return builder.fadd(
        shuffle(builder, last, last, list(range(0, 16, 2))), shuffle(builder, last, last, list(range(1, 16, 2)))
    )


def fold(builder: Any, sums: list[Any]) -> Any:
    """2, 4, 8 or 16 vectors of 16 lanes -> one of as many segments, segment j being partial sums of vector j.

    They fold together: each level adds two shuffles of two vectors, so one instruction serves two (then four, then
    eight) outputs; a lane still meets just the partner that the tree names. After the level of segment width w, a
    vector holds 16 / w partial segments of w lanes each, in the order of the inputs.
    """
    width = 16
    while len(sums) > 1:
        width //= 2
        lanes = [start + i for start in range(0, 32, 2 * width) for i in range(width)]
        sums = [
            builder.fadd(shuffle(builder, a, b, lanes), shuffle(builder, a, b, [lane + width for lane in lanes]))
            for a, b in zip(sums[::2], sums[1::2], strict=True)
        ]
    return sums[0]


def make_stream(dtype: str, R: int, C: int) -> Any:
    """A stream tile of R weight rows (8, or 1 for what is left over) by C activation rows.

    Called as ``tile(w, w_stride, x, x_stride, K, bias, residual, residual_stride, out, out_stride)``: addresses and
    strides in bytes. Writes out[c][r] = (sum + bias[r]) + residual[c][r]. With nothing to add, bias and residual point
    at zeros (stride 0), which costs one load and keeps one path.
    """
    form, together = FORMATS[dtype], min(R, 2)

    @intrinsic
    def tile(
        typingctx: Any, w: Any, ws: Any, x: Any, xs: Any, K: Any, bias: Any, res: Any, rs: Any, out: Any, os: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, ws, x, xs, K, bias, res, rs, out, os = args
            sums = []
            for r in range(0, R, together):
                rows = [builder.add(w, builder.mul(ws, I64(r + g))) for g in range(together)]
                zeros = [[ZEROS] * C for _ in rows]
                sums += emit_sums(builder, form, rows, _rows_at(builder, x, xs, C), K, zeros, stream=True)
            _store_tile(builder, sums, R, C, bias, res, rs, out, os)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 10), codegen

    return tile


def make_panel_tile(C: int) -> Any:
    """A panel tile of 4 weight rows by C activation rows.

    Called as ``tile(panel, x, x_stride, columns, bias, residual, residual_stride, out, out_stride, sums, begins,
    ends, ahead)``: for `columns` numbers of a row. begins: they are the first, the sums start at zero, else at what
    lies at `sums`. ends: they are the last, and the tile is folded and stored as a stream tile is; else the sums are
    left at `sums`, 4 C vectors. Meanwhile it asks for memory from `ahead` on, a line for every sixteen numbers.
    """

    @intrinsic
    def tile(
        typingctx: Any, panel: Any, x: Any, xs: Any, columns: Any, bias: Any, res: Any, rs: Any, out: Any, os: Any,
        sums: Any, begins: Any, ends: Any, ahead: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            panel, x, xs, columns = args[:4]
            rows, x_rows = [builder.add(panel, I64(64 * r)) for r in range(PANEL_ROWS)], _rows_at(builder, x, xs, C)
            even = builder.and_(columns, I64(-32))
            start = _emit_start(builder, C, args[9], args[10])

            def pairs() -> Sums:
                return emit_sums(builder, PAIR, rows, x_rows, even, start, ahead=args[12])

            def last() -> Sums:
                at = [builder.add(row, builder.mul(even, I64(4 * PANEL_ROWS))) for row in rows]
                x_at = [builder.add(row, builder.mul(even, I64(4))) for row in x_rows]
                return emit_sums(builder, ONE, at, x_at, I64(16), found)

            found = _emit_if(builder, builder.icmp_signed("!=", even, I64(0)), pairs, start)
            found = _emit_if(builder, builder.icmp_signed("!=", even, columns), last, found)
            _emit_end(builder, found, C, args[4:12])
            return context.get_dummy_value()

        return types.none(*[types.int64] * 13), codegen

    return tile


def make_keep_tile(dtype: str, C: int) -> Any:
    """The panel tile that comes first: it unpacks its weights itself, and leaves the panel for the others.

    Called as a panel tile is, with the address and the stride of the weight rows behind.
    """
    form = FORMATS[dtype]

    @intrinsic
    def tile(
        typingctx: Any, panel: Any, x: Any, xs: Any, columns: Any, bias: Any, res: Any, rs: Any, out: Any, os: Any,
        sums: Any, begins: Any, ends: Any, ahead: Any, w: Any, ws: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            panel, x, xs, columns = args[:4]
            rows, x_rows = _rows_at(builder, args[13], args[14], PANEL_ROWS), _rows_at(builder, x, xs, C)
            start = _emit_start(builder, C, args[9], args[10])
            found = emit_sums(builder, form, rows, x_rows, columns, start, ahead=args[12], panel=panel)
            _emit_end(builder, found, C, args[4:12])
            return context.get_dummy_value()

        return types.none(*[types.int64] * 15), codegen

    return tile


def _emit_start(builder: Any, C: int, sums: Any, begins: Any) -> Sums:
    """Where the sums of a panel tile begin: at zero, or at what was left."""

    def load() -> Sums:
        return [[builder.load(place, align=64) for place in row] for row in _places(builder, sums, C)]

    zeros = [[ZEROS] * C for _ in range(PANEL_ROWS)]
    return _emit_if(builder, builder.icmp_signed("==", begins, I64(0)), load, zeros)


def _emit_end(builder: Any, found: Sums, C: int, args: Sequence[Any]) -> None:
    """What becomes of the sums of a panel tile: outputs, or left for the next block of columns.

    args: of the tile, from its bias to `ends`.
    """
    bias, res, rs, out, os, sums, _, ends = args
    fold, leave, done = (builder.append_basic_block(name) for name in ("fold", "leave", "done"))
    builder.cbranch(builder.icmp_signed("!=", ends, I64(0)), fold, leave)
    builder.position_at_end(leave)
    for vectors, places in zip(found, _places(builder, sums, C), strict=True):
        for vector, place in zip(vectors, places, strict=True):
            builder.store(vector, place, align=64)
    builder.branch(done)
    builder.position_at_end(fold)
    _store_tile(builder, found, PANEL_ROWS, C, bias, res, rs, out, os)
    builder.branch(done)
    builder.position_at_end(done)


def _places(builder: Any, sums: Any, C: int) -> Sums:
    """Pointers to the vectors of a tile's sums."""
    return [[pointer(builder, sums, V16F, I64(64 * (r * C + c))) for c in range(C)] for r in range(PANEL_ROWS)]


def _rows_at(builder: Any, base: Any, stride: Any, count: int) -> list[Any]:
    return [builder.add(base, builder.mul(stride, I64(i))) for i in range(count)]


def _emit_if(builder: Any, condition: Any, then: Callable[[], Sums], otherwise: Sums) -> Sums:
    """Emit `then` behind a condition; the vectors it gives, or `otherwise`."""
    before, inside = builder.block, builder.append_basic_block("then")
    after = builder.append_basic_block("after")
    builder.cbranch(condition, inside, after)
    builder.position_at_end(inside)
    given = then()
    inside = builder.block
    builder.branch(after)
    builder.position_at_end(after)
    merged = []
    for yes_row, no_row in zip(given, otherwise, strict=True):
        merged.append([builder.phi(V16F) for _ in yes_row])
        for phi, yes, no in zip(merged[-1], yes_row, no_row, strict=True):
            phi.add_incoming(yes, inside)
            phi.add_incoming(no, before)
    return merged


def emit_sums(
    builder: Any, form: Format, w_rows: list[Any], x_rows: list[Any], K: Any, start: Sums,
    *, stream: bool = False, ahead: Any = None, panel: Any = None,
) -> Sums:  # fmt: skip
    """Emit the loop over the blocks of K numbers; the sums [weight row][activation row] as sixteen lanes each.

    stream: the weight rows lie one after the other; ask for what comes after them. ahead: ask for lines from there on,
    one for every sixteen numbers. panel: leave the weights there.
    """
    before, loop, after = builder.block, builder.append_basic_block("k_loop"), builder.append_basic_block("k_done")
    builder.branch(loop)  # K is at least one block
    builder.position_at_end(loop)
    block = builder.phi(I64)
    sums = [[builder.phi(V16F) for _ in x_rows] for _ in w_rows]
    new = [list(row) for row in sums]
    if stream:
        turn = len(w_rows) * form.size
        for line in range(0, turn, LINE):
            emit_prefetch(builder, w_rows[0], builder.add(builder.mul(block, I64(turn)), I64(AHEAD + line)))
    if ahead is not None:
        for i in range(form.vectors):
            emit_prefetch(builder, ahead, builder.add(builder.mul(block, I64(LINE * form.vectors)), I64(LINE * i)))
    offset = builder.mul(block, I64(form.size))
    unpacked = [form.emit(builder, builder.add(row, offset)) for row in w_rows]
    for s in range(form.vectors):
        x_offset = builder.add(builder.mul(block, I64(64 * form.vectors)), I64(64 * s))
        xv = [emit_load(builder, row, "f32", x_offset) for row in x_rows]
        for r, vectors in enumerate(unpacked):
            wv = next(vectors)
            if panel is not None:
                place = builder.add(builder.mul(x_offset, I64(PANEL_ROWS)), I64(64 * r))
                builder.store(wv, pointer(builder, panel, V16F, place), align=64)
            new[r] = [emit_fma(builder, wv, xv[c], new[r][c]) for c in range(len(x_rows))]
    following = builder.add(block, I64(1))
    block.add_incoming(I64(0), before)
    block.add_incoming(following, builder.block)
    for phis, firsts, values in zip(sums, start, new, strict=True):
        for phi, first, value in zip(phis, firsts, values, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, builder.block)
    more = builder.icmp_signed("<", builder.mul(following, I64(16 * form.vectors)), K)
    builder.cbranch(more, loop, after)
    builder.position_at_end(after)
    return new


def _store_tile(builder: Any, sums: Any, R: int, C: int, bias: Any, res: Any, rs: Any, out: Any, os: Any) -> None:
    """Fold, add bias and residual, store: groups of eight outputs, R of them side by side in an output row."""
    order = [(r, c) for c in range(C) for r in range(R)]
    for start in range(0, len(order), 8):
        group = order[start : start + 8]
        filled = [sums[r][c] for r, c in group]
        filled += [filled[0]] * (8 - len(filled))
        folded = fold_eight(builder, filled)
        for first in range(0, len(group), R):
            c = group[first][1]
            run = ir.VectorType(F32, R)
            value = folded if R == 8 else shuffle(builder, folded, folded, list(range(first, first + R)))
            value = builder.fadd(value, builder.load(pointer(builder, bias, run), align=4))
            value = builder.fadd(value, builder.load(pointer(builder, res, run, builder.mul(rs, I64(c))), align=4))
            builder.store(value, pointer(builder, out, run, builder.mul(os, I64(c))), align=4)
