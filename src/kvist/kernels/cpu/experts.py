"""Matmuls of experts: each one's weights times the rows that chose it (see `routing`). A unit for each type of weights.

The product is the matmul's own, so a row's bits are those it would have alone.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.abi import EXPERT_ROWS
from kvist.kernels.cpu.math import activate, exp, jit
from kvist.kernels.cpu.matmul import make_product, rows_a_piece
from kvist.kernels.cpu.scalar import arg, arg_f32, get_i32, get_i64, slot
from kvist.kernels.cpu.vector import add, div, maximum, minimum, mul, splat
from kvist.kernels.cpu.vector_memory import load_f32, store_f32


@jit
def clamped(gate: Any, up: Any, limit: float) -> Any:
    """gpt-oss: g / (1 + e**(-1.702 g)) * (up + 1), g at most and up within the limit."""
    gate, up = minimum(gate, splat(limit)), minimum(maximum(up, splat(-limit)), splat(limit))
    swish = div(gate, add(splat(1.0), exp(mul(splat(-1.702), gate))))
    return mul(add(up, splat(1.0)), swish)


def make_unit(dtype: str) -> Any:
    """The entry of the unit for weights of `dtype`: some weight rows of one expert, times all its rows.

    Arguments of the op: table of weights' addresses (int64 an expert), table of biases', N, K, bytes of a weight row,
    x, out, zeros, starts, table of up weights' or 0, of their biases', up's out, activation or -1, limit (0: none),
    experts.
    x and out are rows of K and N numbers without gaps.
    """
    product = make_product(dtype)

    @jit
    def multiply(
        w: int, ws: int, x: int, count: int, K: int, bias: int, zeros: int, out: int, N: int, n: int, end: int,
        scratch: int,
    ) -> None:  # fmt: skip
        """Rows n to end - 1 of an expert times its rows, as many at once as a product takes."""
        high, after = rows_a_piece(count, K), w + end * ws
        for m in range(0, count, high):
            rows, at = min(high, count - m), out + m * N * 4
            product(w, ws, x + m * K * 4, K * 4, rows, K, bias, zeros, 0, at, N * 4, n, end, scratch, after)

    def experts(ctx: int, op: int, piece: int, tid: int) -> int:
        N, K, ws = arg(op, 2), arg(op, 3), arg(op, 4)
        across = (N + EXPERT_ROWS - 1) // EXPERT_ROWS
        e, n = piece // across, piece % across * EXPERT_ROWS
        first, last = get_i32(arg(op, 8) + e * 4), get_i32(arg(op, 8) + e * 4 + 4)
        if first == last:
            return 0
        end, scratch = min(N, n + EXPERT_ROWS), slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        x, out, up_out, zeros = (
            arg(op, 5) + first * K * 4,
            arg(op, 6) + first * N * 4,
            arg(op, 11) + first * N * 4,
            arg(op, 7),
        )
        count = last - first
        w, bias = get_i64(arg(op, 0) + e * 8), get_i64(arg(op, 1) + e * 8)
        multiply(w, ws, x, count, K, bias, zeros, out, N, n, end, scratch)
        if arg(op, 9) != 0:
            w, bias = get_i64(arg(op, 9) + e * 8), get_i64(arg(op, 10) + e * 8)
            multiply(w, ws, x, count, K, bias, zeros, up_out, N, n, end, scratch)
            limit = arg_f32(op, 13)
            for row in range(count):
                for d in range(row * N * 4 + n * 4, row * N * 4 + end * 4, 64):
                    gate, up = load_f32(out + d), load_f32(up_out + d)
                    if limit > 0.0:
                        store_f32(out + d, clamped(gate, up, limit))
                    else:
                        store_f32(out + d, mul(activate(arg(op, 12), gate), up))
        return 0

    return experts
