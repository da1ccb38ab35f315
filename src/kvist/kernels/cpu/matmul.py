"""Matmul of activation rows with weight rows, as pieces of work that threads take one by one.

out[m][n] = (sum over k of x[m][k] * w[n][k]) + bias[n] + residual[m][n]. A piece is 32 weight rows times a block of
activation rows small enough for the second-level cache. Few rows: weights are streamed past them. More: four
weight rows at a time become a float32 panel in the first-level cache, the activation rows pass by it six at a time,
and meanwhile the next weight rows are asked for.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.formats import FORMATS
from kvist.kernels.cpu.math import activate, jit
from kvist.kernels.cpu.panel import first_rows, make_keep_tile, make_panel_tile
from kvist.kernels.cpu.scalar import arg, get_i32, prefetch, slot
from kvist.kernels.cpu.sizes import PANEL_BYTES, PANEL_COLUMNS, PANEL_ROWS, SUMS_BYTES, WIDE, X_BYTES
from kvist.kernels.cpu.tile import LINE, make_stream
from kvist.kernels.cpu.vector import in_halves, mul
from kvist.kernels.cpu.vector_memory import load_f32, store_f32

WEIGHT_ROWS = 32  # of a piece: small, so that all threads are busy to the end
TOGETHER = 4  # activation rows of the largest stream tile
AT_ONCE = 16 << 10  # bytes a thread asks for while it waits


def most_streamed(dtype: str) -> int:
    """Up to so many rows weights are streamed past them, four at a time.

    Where AVX2 unpacks blocks, doing it once and keeping the numbers is faster as soon as the first panel tile is full.
    """
    return WIDE - 1 if FORMATS[dtype].vectors > 1 and in_halves() else 2 * TOGETHER


@jit
def rows_a_piece(rows: int, K: int) -> int:
    """Activation rows of a piece: as many as fit, in blocks of nearly equal size, multiples of the largest tile."""
    most = max(3 * WIDE, X_BYTES // (4 * K))
    blocks = (rows + most - 1) // most
    return ((rows + blocks - 1) // blocks + WIDE - 1) // WIDE * WIDE


@jit
def matmul_rows(ctx: int, op: int) -> int:
    """Activation rows of this op in this step: all, or those whose logits are asked for."""
    return slot(ctx, abi.SAMPLED) if arg(op, 9) else slot(ctx, abi.ROWS)


@jit
def matmul_pieces(ctx: int, op: int) -> int:
    """How many pieces the op falls into."""
    rows = matmul_rows(ctx, op)
    if rows == 0:
        return 0
    high = rows_a_piece(rows, arg(op, 3))
    return ((arg(op, 2) + WEIGHT_ROWS - 1) // WEIGHT_ROWS) * ((rows + high - 1) // high)


@jit
def ask_ahead(ctx: int, op: int, first: int, end: int) -> None:
    """Ask for the first weights of pieces first..end-1: they do not depend on what the op has to wait for."""
    across = (arg(op, 2) + WEIGHT_ROWS - 1) // WEIGHT_ROWS
    start, ws = first % across * WEIGHT_ROWS, arg(op, 11)
    weights = arg(op, 0) + start * ws
    size = min(AT_ONCE, min((end - first) * WEIGHT_ROWS, arg(op, 2) - start) * ws)
    for at in range(0, size, LINE):
        prefetch(weights + at)


@jit
def sampled_row(ctx: int, index: int) -> int:
    """The row of the step that the index-th row of logits belongs to."""
    return get_i32(slot(ctx, abi.SAMPLED_ROWS) + index * 4)


def make_few(dtype: str) -> Any:
    """The kernel for 8 weight rows times few activation rows; from the fifth on they meet weights that are near."""
    stream1, stream2, stream3, stream4 = (make_stream(dtype, 8, C) for C in (1, 2, 3, 4))

    @jit
    def few(
        w: int, ws: int, x: int, xs: int, rows: int, K: int, bias: int, res: int, rs: int, out: int, os: int
    ) -> None:
        while rows > 0:
            if rows == 1:
                stream1(w, ws, x, xs, K, bias, res, rs, out, os)
            elif rows == 2:
                stream2(w, ws, x, xs, K, bias, res, rs, out, os)
            elif rows == 3:
                stream3(w, ws, x, xs, K, bias, res, rs, out, os)
            else:
                stream4(w, ws, x, xs, K, bias, res, rs, out, os)
            rows -= TOGETHER
            x += TOGETHER * xs
            res += TOGETHER * rs
            out += TOGETHER * os

    return few


@jit
def block_columns(K: int) -> int:
    """Numbers of a row that a panel takes at once: all, or blocks of nearly equal size, multiples of 256."""
    blocks = (K + PANEL_COLUMNS - 1) // PANEL_COLUMNS
    return ((K + blocks - 1) // blocks + 255) // 256 * 256


def make_many(dtype: str) -> Any:
    """The kernel for 4 weight rows times more than a few activation rows (six at least)."""
    first = first_rows(dtype)
    keep = make_keep_tile(dtype, first)
    tile1, tile2, tile3, tile4, tile6 = (make_panel_tile(C) for C in (1, 2, 3, 4, WIDE))

    @jit
    def many(
        w: int, ws: int, x: int, xs: int, rows: int, K: int, bias: int, res: int, rs: int, out: int, os: int,
        panel: int, ahead: int,
    ) -> None:  # fmt: skip
        high, end = block_columns(K), ahead + PANEL_ROWS * ws
        for k in range(0, K, high):
            columns, begins, ends = min(high, K - k), int(k == 0), int(k + high >= K)
            apart = SUMS_BYTES if high < K else 0  # what need not wait may all be in one place
            sums, left, xk, rk, ok = panel + PANEL_BYTES, rows, x + k * 4, res, out
            while left > 0:
                n = first if left == rows else WIDE if left >= WIDE else 4 if left >= 4 else left
                if left == rows:
                    wk = w + k * ws // K
                    keep(panel, xk, xs, columns, bias, rk, rs, ok, os, sums, begins, ends, ahead, wk, ws)
                elif n == WIDE:
                    tile6(panel, xk, xs, columns, bias, rk, rs, ok, os, sums, begins, ends, ahead)
                elif n == 4:
                    tile4(panel, xk, xs, columns, bias, rk, rs, ok, os, sums, begins, ends, ahead)
                elif n == 3:
                    tile3(panel, xk, xs, columns, bias, rk, rs, ok, os, sums, begins, ends, ahead)
                elif n == 2:
                    tile2(panel, xk, xs, columns, bias, rk, rs, ok, os, sums, begins, ends, ahead)
                else:
                    tile1(panel, xk, xs, columns, bias, rk, rs, ok, os, sums, begins, ends, ahead)
                left -= n
                xk += n * xs
                rk += n * rs
                ok += n * os
                sums += n * apart
                ahead = min(ahead + columns // 16 * LINE, end)

    return many


def make_matmul(dtype: str) -> Any:
    """The kernel for weights of `dtype`.

    Arguments of the op: weight, x, N, K, bias, residual, residual stride, out, out stride, sampled, x stride, bytes of
    a weight row, up weight or 0, its bias, its out, activation or -1, whether x is private.

    With an activation, out becomes activation(out); with up weights too, activation(out) * up: while both are near.
    """
    product = make_product(dtype)

    @jit
    def matmul(ctx: int, op: int, piece: int, tid: int, scratch: int) -> None:
        rows = matmul_rows(ctx, op)
        N, K, ws = arg(op, 2), arg(op, 3), arg(op, 11)
        res, rs, os, xs = arg(op, 5), arg(op, 6), arg(op, 8), arg(op, 10)
        high, across = rows_a_piece(rows, K), (N + WEIGHT_ROWS - 1) // WEIGHT_ROWS
        m = piece // across * high
        count = min(high, rows - m)
        n, end = piece % across * WEIGHT_ROWS, min(N, piece % across * WEIGHT_ROWS + WEIGHT_ROWS)
        x, res, out, up_out = arg(op, 1) + m * xs, res + m * rs, arg(op, 7) + m * os, arg(op, 14) + m * os
        if arg(op, 16) != 0 and rows <= abi.PRIVATE_ROWS:
            x += tid * abi.PRIVATE_ROWS * xs
        after = arg(op, 0) + end * ws
        beside = after if arg(op, 12) == 0 else arg(op, 12) + n * ws
        product(arg(op, 0), ws, x, xs, count, K, arg(op, 4), res, rs, out, os, n, end, scratch, beside)
        if arg(op, 12) != 0:
            product(arg(op, 12), ws, x, xs, count, K, arg(op, 13), res, rs, up_out, os, n, end, scratch, after)
        if arg(op, 15) >= 0:
            for row in range(count):
                for d in range(n * 4, end * 4, 64):  # N is a multiple of 16 here
                    y = activate(arg(op, 15), load_f32(out + row * os + d))
                    if arg(op, 12) != 0:
                        y = mul(y, load_f32(up_out + row * os + d))
                    store_f32(out + row * os + d, y)

    return matmul


def make_product(dtype: str) -> Any:
    """The kernel for weight rows n to end - 1 times `count` activation rows; at `after` lie the weights that follow."""
    few, many, single, most = make_few(dtype), make_many(dtype), make_stream(dtype, 1, 1), most_streamed(dtype)

    @jit
    def product(
        w: int, ws: int, x: int, xs: int, count: int, K: int, bias: int, res: int, rs: int, out: int, os: int,
        n: int, end: int, scratch: int, after: int,
    ) -> None:  # fmt: skip
        if count <= most:
            while n + 8 <= end:
                few(w + n * ws, ws, x, xs, count, K, bias + n * 4, res + n * 4, rs, out + n * 4, os)
                n += 8
        else:
            while n + PANEL_ROWS <= end:
                following = w + (n + PANEL_ROWS) * ws if n + 2 * PANEL_ROWS <= end else after
                at = n * 4
                many(w + n * ws, ws, x, xs, count, K, bias + at, res + at, rs, out + at, os, scratch, following)
                n += PANEL_ROWS
        while n < end:  # what is left over
            for c in range(count):
                single(
                    w + n * ws, ws, x + c * xs, xs, K, bias + n * 4, res + c * rs + n * 4, rs, out + c * os + n * 4, os
                )
            n += 1

    return product
