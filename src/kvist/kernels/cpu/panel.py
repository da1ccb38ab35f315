"""Panel tiles: 4 weight rows times 1 to 6 activation rows, where many rows pass by (see `tile`).

24 accumulators need 10 loads for 24 multiply-adds. The first tile unpacks the weights and leaves them as float32 in a
*panel*, which the others read. A panel is 12 KiB at most, so that it stays in the first-level cache; wider rows are
taken in blocks of 768 numbers, and the accumulators wait in memory in between, sixteen lanes each. ::

    panel   [k 0..15: row 0 | row 1 | row 2 | row 3][k 16..31: row 0 | ...] ...    float32

AVX2 has registers for a quarter of these accumulators: there `panel_passes` does the same in passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu.formats import FORMATS, Format
from kvist.kernels.cpu.panel_passes import emit_in_passes, emit_unpack, places
from kvist.kernels.cpu.sizes import PANEL_ROWS, WIDE
from kvist.kernels.cpu.tile import ZEROS, Sums, emit_sums, rows_at, store_tile
from kvist.kernels.cpu.vector import I64, V16F, emit_load, in_halves


def first_rows(dtype: str) -> int:
    """Activation rows of the tile that comes first: unpacking blocks takes registers, if it happens on the way."""
    return WIDE if FORMATS[dtype].vectors == 1 or in_halves() else 4


def _panel_format(steps: int) -> Format:
    """A panel read in turns of so many times sixteen numbers a row."""

    def emit(builder: Any, row: Any) -> Iterator[Any]:
        for step in range(steps):
            yield emit_load(builder, row, "f32", I64(64 * PANEL_ROWS * step))

    return Format("panel", steps, 64 * PANEL_ROWS * steps, emit)


ONE, PAIR = _panel_format(1), _panel_format(2)


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
            if in_halves():
                emit_in_passes(builder, panel, rows_at(builder, x, xs, C), columns, args[4:])
                return context.get_dummy_value()
            rows, x_rows = [builder.add(panel, I64(64 * r)) for r in range(PANEL_ROWS)], rows_at(builder, x, xs, C)
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
            rows, x_rows = rows_at(builder, args[13], args[14], PANEL_ROWS), rows_at(builder, x, xs, C)
            if in_halves():
                emit_unpack(builder, form, rows, panel, columns)
                emit_in_passes(builder, panel, x_rows, columns, args[4:13])
                return context.get_dummy_value()
            start = _emit_start(builder, C, args[9], args[10])
            found = emit_sums(builder, form, rows, x_rows, columns, start, ahead=args[12], panel=panel)
            _emit_end(builder, found, C, args[4:12])
            return context.get_dummy_value()

        return types.none(*[types.int64] * 15), codegen

    return tile


def _emit_start(builder: Any, C: int, sums: Any, begins: Any) -> Sums:
    """Where the sums of a panel tile begin: at zero, or at what was left."""

    def load() -> Sums:
        return [[builder.load(place, align=64) for place in row] for row in places(builder, sums, C)]

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
    for vectors, row in zip(found, places(builder, sums, C), strict=True):
        for vector, place in zip(vectors, row, strict=True):
            builder.store(vector, place, align=64)
    builder.branch(done)
    builder.position_at_end(fold)
    store_tile(builder, found, PANEL_ROWS, C, bias, res, rs, out, os)
    builder.branch(done)
    builder.position_at_end(done)


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
