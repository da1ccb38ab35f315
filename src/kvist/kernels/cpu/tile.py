"""The matmul micro-kernels: a tile of weight rows times activation rows, held in registers.

::

            k ->  16 lanes  16 lanes ...
    w row 0   [..............|.....]      accumulator (r, c): sixteen lanes, lane i sums k = i, i+16, i+32, ...
    w row R-1 [..............|.....]      in ascending order, one fused multiply-add each; at the end the lanes
    x row 0   [..............|.....]      fold by one fixed tree (i + i+8, then +4, +2, +1).
    x row C-1 [..............|.....]

The sum of an output element never sees R, C, or where its weights come from, so every tile gives the same bits; that
is half of the exactness contract. Two tiles serve every number of rows:

* **stream**: 8 weight rows, two at a time, times 1 to 4 activation rows. For few rows (up to 8, in two turns; up to 5
  where AVX2 unpacks blocks) reading weights is all that counts; two rows that lie one after the other are nearly one
  stream, and lines are asked for 8 KiB ahead, which the processor's own prefetcher does not do across a page's end
  (measured: 11 to 15 GB/s on one core that reads 16). Where registers are few (AVX2), tiles of 3 and 4 activation rows
  take one at a time.
* **panel** (`panel`): 4 weight rows, unpacked once, times 1 to 6 activation rows, for whatever is more.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu.formats import FORMATS, Format
from kvist.kernels.cpu.sizes import PANEL_ROWS
from kvist.kernels.cpu.vector import F32, I64, V16F, emit_fma, emit_load, emit_prefetch, in_halves, pointer, shuffle

AHEAD = 8192  # bytes between what is read and what is asked for
LINE = 64
Sums = list[list[Any]]  # LLVM values [weight row][activation row]
ZEROS = ir.Constant(V16F, [0.0] * 16)


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
    crowded = C > 2 and dtype != "f32" and in_halves()  # sums and what is being unpacked would not fit the registers
    form, together = FORMATS[dtype], 1 if R == 1 or crowded else 2

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
                sums += emit_sums(builder, form, rows, rows_at(builder, x, xs, C), K, zeros, stream=True)
            store_tile(builder, sums, R, C, bias, res, rs, out, os)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 10), codegen

    return tile


def rows_at(builder: Any, base: Any, stride: Any, count: int) -> list[Any]:
    """Addresses of rows that lie `stride` bytes apart."""
    return [builder.add(base, builder.mul(stride, I64(i))) for i in range(count)]


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


def store_tile(builder: Any, sums: Any, R: int, C: int, bias: Any, res: Any, rs: Any, out: Any, os: Any) -> None:
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
