"""Matmul of activation rows with weight rows, as pieces of work that threads take one by one.

out[m][n] = (sum over k of x[m][k] * w[n][k]) + bias[n] + residual[m][n]. A piece is a block of weight rows times a
block of activation rows; within it 48 activation rows at a time stay in the second-level cache while a few weight rows
stay in the first.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import arg, get_i32, slot
from kvist.kernels.cpu.tile import ITEMSIZE, make_tile

PANEL = 48  # activation rows that share a pass over the weight rows of a piece


@jit
def weight_rows_a_piece(rows: int) -> int:
    """Few rows: small pieces keep both cores busy to the end. Many: larger ones, so that x is read less often."""
    return 32 if rows <= 16 else 96


@jit
def rows_a_piece(rows: int) -> int:
    """Activation rows of a piece."""
    return 192


@jit
def matmul_rows(ctx: int, op: int) -> int:
    """Activation rows of this op in this step: all, or those whose logits are asked for."""
    return slot(ctx, abi.SAMPLED) if arg(op, 9) else slot(ctx, abi.ROWS)


@jit
def matmul_pieces(ctx: int, op: int) -> int:
    """How many pieces the op falls into."""
    rows = matmul_rows(ctx, op)
    high = weight_rows_a_piece(rows)
    return ((arg(op, 2) + high - 1) // high) * ((rows + rows_a_piece(rows) - 1) // rows_a_piece(rows))


def make_eight_rows(dtype: str) -> Any:
    """The kernel for eight weight rows times any number of activation rows."""
    tile81, tile82, tile83 = (make_tile(dtype, 8, C, stream=True) for C in (1, 2, 3))
    tile44, tile45, tile46 = (make_tile(dtype, 4, C) for C in (4, 5, 6))

    @jit
    def eight_rows(
        w: int, ws: int, x: int, xs: int, rows: int, steps: int, bias: int, res: int, rs: int, out: int, os: int
    ) -> None:
        while rows > 0:
            if rows >= 6:
                tile46(w, ws, x, xs, steps, bias, res, rs, out, os)
                tile46(w + 4 * ws, ws, x, xs, steps, bias + 16, res + 16, rs, out + 16, os)
                n = 6
            elif rows == 5:
                tile45(w, ws, x, xs, steps, bias, res, rs, out, os)
                tile45(w + 4 * ws, ws, x, xs, steps, bias + 16, res + 16, rs, out + 16, os)
                n = 5
            elif rows == 4:
                tile44(w, ws, x, xs, steps, bias, res, rs, out, os)
                tile44(w + 4 * ws, ws, x, xs, steps, bias + 16, res + 16, rs, out + 16, os)
                n = 4
            elif rows == 3:
                tile83(w, ws, x, xs, steps, bias, res, rs, out, os)
                n = 3
            elif rows == 2:
                tile82(w, ws, x, xs, steps, bias, res, rs, out, os)
                n = 2
            else:
                tile81(w, ws, x, xs, steps, bias, res, rs, out, os)
                n = 1
            rows -= n
            x += n * xs
            res += n * rs
            out += n * os

    return eight_rows


def make_matmul(dtype: str) -> Any:
    """The kernel for weights of `dtype`.

    Arguments of the op: weight, x, N, K, bias, residual, residual stride, out, out stride, sampled, x stride.
    """
    eight_rows, tile11, itemsize = make_eight_rows(dtype), make_tile(dtype, 1, 1), ITEMSIZE[dtype]

    @jit
    def matmul(ctx: int, op: int, piece: int) -> None:
        rows = matmul_rows(ctx, op)
        w, x, N, K = arg(op, 0), arg(op, 1), arg(op, 2), arg(op, 3)
        bias, res, rs = arg(op, 4), arg(op, 5), arg(op, 6)
        out, os, xs = arg(op, 7), arg(op, 8), arg(op, 10)
        high = weight_rows_a_piece(rows)
        across = (N + high - 1) // high
        n0, m0 = piece % across * high, piece // across * rows_a_piece(rows)
        n1, m1 = min(N, n0 + high), min(rows, m0 + rows_a_piece(rows))
        ws, steps = K * itemsize, K // 16
        whole = n1 - (n1 - n0) % 8
        while m0 < m1:
            count = min(PANEL, m1 - m0)
            xm, resm, outm = x + m0 * xs, res + m0 * rs, out + m0 * os
            for n in range(n0, whole, 8):
                eight_rows(w + n * ws, ws, xm, xs, count, steps, bias + n * 4, resm + n * 4, rs, outm + n * 4, os)
            for n in range(whole, n1):
                for m in range(count):
                    tile11(
                        w + n * ws,
                        ws,
                        xm + m * xs,
                        xs,
                        steps,
                        bias + n * 4,
                        resm + m * rs + n * 4,
                        rs,
                        outm + m * os + n * 4,
                        os,
                    )
            m0 += count

    return matmul


@jit
def sampled_row(ctx: int, index: int) -> int:
    """The row of the step that the index-th row of logits belongs to."""
    return get_i32(slot(ctx, abi.SAMPLED_ROWS) + index * 4)
