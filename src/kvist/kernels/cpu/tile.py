"""The matmul micro-kernel: a tile of weight rows times activation rows, held in registers.

::

            k ->  16 lanes  16 lanes ...
    w row 0   [..............|.....]      accumulator (r, c): sixteen lanes, lane i sums k = i, i+16, i+32, ...
    w row R-1 [..............|.....]      in ascending order, one fused multiply-add each; at the end the lanes
    x row 0   [..............|.....]      fold by one fixed tree (i + i+8, then +4, +2, +1).
    x row C-1 [..............|.....]

The sum of an output element never sees R or C, so every tile shape gives the same bits; that is half of the exactness
contract. Eight accumulators fold together: each level adds two shuffles of two vectors, so one instruction serves two
(then four, then eight) outputs; a lane still meets just the partner that the tree names.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu.vector import F32, I64, V16F, emit_fma, emit_load, pointer, shuffle

ITEMSIZE = {"f32": 4, "f16": 2, "bf16": 2}


def fold_eight(builder: Any, sums: list[Any]) -> Any:
    """Eight vectors of 16 lanes -> one of 8 lanes, lane j being the tree sum of vector j.

    After the level of segment width w, a vector holds 16 / w partial segments of w lanes each, in the order of the
    inputs.
    """
    width = 16
    while len(sums) > 1:
        width //= 2
        lanes = [start + i for start in range(0, 32, 2 * width) for i in range(width)]
        sums = [
            builder.fadd(shuffle(builder, a, b, lanes), shuffle(builder, a, b, [lane + width for lane in lanes]))
            for a, b in zip(sums[::2], sums[1::2], strict=True)
        ]
    last = sums[0]  # eight segments of two lanes
    return builder.fadd(
        shuffle(builder, last, last, list(range(0, 16, 2))), shuffle(builder, last, last, list(range(1, 16, 2)))
    )


def make_tile(dtype: str, R: int, C: int, stream: bool = False) -> Any:
    """A compiled tile of R weight rows by C activation rows.

    stream: weight rows one after the other instead of side by side. Memory is then read as one stream, which the
    processor prefetches up to twice as fast as R short ones: right for few activation rows, when reading
    weights is all that counts.

    Called as ``tile(w, w_stride, x, x_stride, steps, bias, residual, residual_stride, out, out_stride)``: addresses and
    strides in bytes, `steps` = K / 16. Writes out[c][r] = (sum + bias[r]) + residual[c][r]. With nothing to add, bias
    and residual point at zeros (stride 0), which costs one load and keeps one path.
    """

    @intrinsic
    def tile(
        typingctx: Any, w: Any, ws: Any, x: Any, xs: Any, steps: Any, bias: Any, res: Any, rs: Any, out: Any, os: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            (_emit_stream if stream else _emit_tile)(builder, dtype, R, C, *args)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 10), codegen

    return tile


def _emit_tile(
    builder: Any, dtype: str, R: int, C: int,
    w: Any, ws: Any, x: Any, xs: Any, steps: Any, bias: Any, res: Any, rs: Any, out: Any, os: Any,
) -> None:  # fmt: skip
    """One loop over k for all R x C sums."""
    sums = _dot_products(builder, dtype, [builder.add(w, builder.mul(ws, I64(r))) for r in range(R)], x, xs, C, steps)
    _store_tile(builder, sums, R, C, bias, res, rs, out, os)


def _emit_stream(
    builder: Any, dtype: str, R: int, C: int,
    w: Any, ws: Any, x: Any, xs: Any, steps: Any, bias: Any, res: Any, rs: Any, out: Any, os: Any,
) -> None:  # fmt: skip
    """R loops over k, one for each weight row."""
    sums = []
    for r in range(R):
        sums += _dot_products(builder, dtype, [builder.add(w, builder.mul(ws, I64(r)))], x, xs, C, steps)
    _store_tile(builder, sums, R, C, bias, res, rs, out, os)


def _dot_products(builder: Any, dtype: str, w_rows: list[Any], x: Any, xs: Any, C: int, steps: Any) -> list[list[Any]]:
    """Emit the loop over k; the sums [weight row][activation row] as sixteen lanes each."""
    x_rows = [builder.add(x, builder.mul(xs, I64(c))) for c in range(C)]
    before = builder.block
    loop = builder.append_basic_block("k_loop")
    after = builder.append_basic_block("k_done")
    builder.branch(loop)  # K is at least 16
    builder.position_at_end(loop)
    step = builder.phi(I64)
    sums = [[builder.phi(V16F) for _ in range(C)] for _ in w_rows]
    w_offset = builder.mul(step, I64(16 * ITEMSIZE[dtype]))
    x_offset = builder.mul(step, I64(64))
    xv = [emit_load(builder, row, "f32", x_offset) for row in x_rows]
    new = []
    for r, row in enumerate(w_rows):
        wv = emit_load(builder, row, dtype, w_offset)
        new.append([emit_fma(builder, wv, xv[c], sums[r][c]) for c in range(C)])
    following = builder.add(step, I64(1))
    step.add_incoming(I64(0), before)
    step.add_incoming(following, builder.block)
    zero = ir.Constant(V16F, [0.0] * 16)
    for r in range(len(w_rows)):
        for c in range(C):
            sums[r][c].add_incoming(zero, before)
            sums[r][c].add_incoming(new[r][c], builder.block)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
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
