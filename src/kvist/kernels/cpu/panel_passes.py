"""Panel tiles where registers hold eight lanes, sixteen registers in all (AVX2): the sums of a tile in several passes.

A pass takes one half of the lanes of 4 weight rows and up to 3 activation rows: 12 accumulators, 7 loads for 12
multiply-adds. Between passes the sums wait in memory; a lane still meets the same numbers in the same order. ::

    panel    [k 0..7 | 8..15: row 0][row 1][row 2][row 3][k 16..23 | 24..31: row 0] ...
    pass 0     ======         ===     ===     ===   ======
    pass 1              =====    ===     ===    ===          ======
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from kvist.kernels.cpu.formats import Format
from kvist.kernels.cpu.sizes import PANEL_ROWS
from kvist.kernels.cpu.tile import LINE, store_tile
from kvist.kernels.cpu.vector import F32, I64, V16F, begin_loop, emit_prefetch, end_loop, external, pointer

HALF = 8  # lanes
V8F = ir.VectorType(F32, HALF)
MOST = 3  # activation rows of a pass


def places(builder: Any, sums: Any, C: int, kind: Any = V16F) -> list[list[Any]]:
    """Pointers to the vectors of a tile's sums, or to so many lanes of each, [weight row][activation row]."""
    return [[pointer(builder, sums, kind, I64(64 * (r * C + c))) for c in range(C)] for r in range(PANEL_ROWS)]


def emit_unpack(builder: Any, form: Format, rows: Sequence[Any], panel: Any, columns: Any) -> None:
    """Leave `columns` numbers of 4 weight rows in the panel."""
    size = 16 * form.vectors
    before, loop, after, block = begin_loop(builder)
    offset, place = builder.mul(block, I64(form.size)), builder.mul(block, I64(4 * size * PANEL_ROWS))
    for r, row in enumerate(rows):
        for s, vector in enumerate(form.emit(builder, builder.add(row, offset))):
            at = pointer(builder, builder.add(panel, place), V16F, I64(64 * (s * PANEL_ROWS + r)))
            builder.store(vector, at, align=64)
    end_loop(builder, before, loop, after, block, builder.udiv(columns, I64(size)))


def emit_in_passes(builder: Any, panel: Any, x_rows: Sequence[Any], columns: Any, args: Sequence[Any]) -> None:
    """A tile over a panel. args: of a panel tile, from its bias on."""
    bias, res, rs, out, os, sums, begins, ends, ahead = args
    C = len(x_rows)
    fresh = builder.icmp_signed("!=", begins, I64(0))
    for first in range(0, C, MOST):
        rows = range(first, min(C, first + MOST))
        for part in range(16 // HALF):
            shift = I64(4 * HALF * part)
            own = [row[rows.start : rows.stop] for row in places(builder, builder.add(sums, shift), C, V8F)]
            asked = ahead if first == 0 and part == 0 else None
            _emit_pass(
                builder, builder.add(panel, shift), [builder.add(x_rows[c], shift) for c in rows], columns, own,
                fresh, asked,
            )  # fmt: skip
    with builder.if_then(builder.icmp_signed("!=", ends, I64(0))):
        found = [[builder.load(place, align=64) for place in row] for row in places(builder, sums, C)]
        store_tile(builder, found, PANEL_ROWS, C, bias, res, rs, out, os)


def _emit_pass(
    builder: Any, panel: Any, x_rows: Sequence[Any], columns: Any, at: list[list[Any]], fresh: Any, ahead: Any
) -> None:
    """Add to the sums at `at` [weight row][activation row], which begin at zero if they are fresh."""
    zero = ir.Constant(V8F, [0.0] * HALF)
    fma = external(builder, f"llvm.fma.v{HALF}f32", V8F, [V8F] * 3)
    start = [[builder.select(fresh, zero, builder.load(place, align=32)) for place in row] for row in at]
    before, loop, after, step = begin_loop(builder)
    sums = [[builder.phi(V8F) for _ in row] for row in at]
    if ahead is not None:
        emit_prefetch(builder, ahead, builder.mul(step, I64(LINE)))
    x_at, w_at = builder.mul(step, I64(64)), builder.mul(step, I64(64 * PANEL_ROWS))
    xs = [builder.load(pointer(builder, row, V8F, x_at), align=4) for row in x_rows]
    for r, row in enumerate(sums):
        weights = builder.load(pointer(builder, panel, V8F, builder.add(w_at, I64(64 * r))), align=32)
        for phi, x, begun in zip(row, xs, start[r], strict=True):
            phi.add_incoming(begun, before)
            phi.add_incoming(builder.call(fma, [weights, x, phi]), builder.block)
    made = [[phi.incomings[1][0] for phi in row] for row in sums]
    end_loop(builder, before, loop, after, step, builder.lshr(columns, I64(4)))
    for values, row in zip(made, at, strict=True):
        for value, place in zip(values, row, strict=True):
            builder.store(value, place, align=32)
