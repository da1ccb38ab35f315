"""The two micro-kernels of attention: scores of a tile of 64 positions, and the weighted sum of its values.

A tile is four blocks of sixteen slots. In a block K lies dim-major (sixteen slots are the sixteen lanes, so a score
vector needs no horizontal sum) and V slot-major (sixteen dims are the lanes)::

    K block   [dim 0: slot 0..15][dim 1: slot 0..15] ...          score[slot] += q[dim] * K[dim][slot], dim ascending
    V block   [slot 0: dim 0..d-1][slot 1: dim 0..d-1] ...        out[dim]    += p[slot] * V[slot][dim], slot ascending

Each query row has chains of its own, so the number of rows a call takes changes no bits.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu.vector import (
    F32,
    I64,
    V16F,
    begin_loop,
    emit_fma,
    emit_load,
    emit_prefetch,
    emit_splat,
    end_loop,
    in_halves,
    pointer,
)
from kvist.kernels.cpu.vector_memory import ITEMSIZE

BLOCKS = 4  # blocks of sixteen slots in a tile of 64 positions


def together(rows: int) -> int:
    """Vectors (1, 2 or 4) that pass by so many rows at once: their sums just fit the registers.

    AVX2 has sixteen of half a vector; plainer processors are slow anyway, and keep the code short.
    """
    return {1: 4, 2: 2, 3: 2}.get(rows, 1) if in_halves() else BLOCKS


def make_scores(dtype: str, rows: int, ahead: int, count: int = BLOCKS) -> Any:
    """``scores(q, q_stride, k0, k1, k2, k3, dims, out, n0, n1, n2, n3)``.

    out[row][64] = sum over dims of q[row][dim] * K[dim][slot]. q and out are float32; k0..k3 are the addresses of the
    four K blocks; out rows lie 256 bytes apart. ahead: how many of n0..n3 to ask for, parts as large as a K block that
    are read next: pages lie anywhere, so no processor can guess them. count: only the first so many blocks.
    """

    def loop_over(builder: Any, q_rows: list[Any], blocks: list[Any], dims: Any, following: list[Any]) -> Any:
        """Scores of some blocks, [row][block]."""
        before, loop, after, dim = begin_loop(builder)
        sums = [[builder.phi(V16F) for _ in blocks] for _ in range(rows)]
        offset = builder.mul(dim, I64(16 * ITEMSIZE[dtype]))
        for block in following:
            emit_prefetch(builder, block, offset)
        keys = [emit_load(builder, block, dtype, offset) for block in blocks]
        new = []
        for r in range(rows):
            number = builder.load(pointer(builder, q_rows[r], F32, builder.mul(dim, I64(4))))
            wide = emit_splat(builder, number)
            new.append([emit_fma(builder, wide, key, total) for key, total in zip(keys, sums[r], strict=True)])
        zero = ir.Constant(V16F, [0.0] * 16)
        for phi, made in zip(chain(*sums), chain(*new), strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(made, builder.block)
        end_loop(builder, before, loop, after, dim, dims)
        return new

    @intrinsic
    def scores(
        typingctx: Any, q: Any, qs: Any, k0: Any, k1: Any, k2: Any, k3: Any, dims: Any, out: Any,
        n0: Any, n1: Any, n2: Any, n3: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            q, stride, *blocks, dims, out = args[:8]
            q_rows = [builder.add(q, builder.mul(stride, I64(r))) for r in range(rows)]
            step = together(rows)
            for first in range(0, count, step):
                following = args[8 : 8 + ahead][first : first + step]
                new = loop_over(builder, q_rows, blocks[first : min(count, first + step)], dims, following)
                for r in range(rows):
                    for b, made in enumerate(new[r], first):
                        builder.store(made, pointer(builder, out, V16F, I64(r * 256 + b * 64)), align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 12), codegen

    return scores


def make_weigh(dtype: str, rows: int, width: int, ahead: bool) -> Any:
    """``weigh(p, v, v_stride, slots, acc, acc_stride, following)``.

    acc[row][16*width dims] += p[row][slot] * V[slot][dim].

    `slots` slots that lie one after the other, in ascending order; p rows lie 256 bytes apart; acc is float32, in
    memory.
    ahead: ask for the same slots and dims of `following`, a part as large as a V block.
    """
    size = 16 * ITEMSIZE[dtype]

    def loop_over(builder: Any, args: Any, rows_at: list[Any], vectors: range) -> None:
        """Some vectors of dims."""
        p, v, v_stride, slots, _, _, following = args
        start = [[emit_load(builder, row, "f32", I64(64 * j)) for j in vectors] for row in rows_at]
        before, loop, after, slot = begin_loop(builder)
        sums = [[builder.phi(V16F) for _ in vectors] for _ in range(rows)]
        base = builder.add(v, builder.mul(slot, v_stride))
        if ahead:
            for line in range(-(-size * vectors.start // 64) * 64, size * vectors.stop, 64):
                emit_prefetch(builder, following, builder.add(builder.mul(slot, v_stride), I64(line)))
        values = [emit_load(builder, base, dtype, I64(size * j)) for j in vectors]
        new = []
        for r in range(rows):
            place = builder.add(builder.mul(slot, I64(4)), I64(256 * r))
            wide = emit_splat(builder, builder.load(pointer(builder, p, F32, place)))
            new.append([emit_fma(builder, wide, value, total) for value, total in zip(values, sums[r], strict=True)])
        for phi, begun, made in zip(*(chain(*every) for every in (sums, start, new)), strict=True):
            phi.add_incoming(begun, before)
            phi.add_incoming(made, builder.block)
        end_loop(builder, before, loop, after, slot, slots)
        for made_row, row in zip(new, rows_at, strict=True):
            for j, value in zip(vectors, made_row, strict=True):
                builder.store(value, pointer(builder, row, V16F, I64(64 * j)), align=4)

    @intrinsic
    def weigh(
        typingctx: Any, p: Any, v: Any, v_stride: Any, slots: Any, acc: Any, acc_stride: Any, following: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            acc, acc_stride = args[4:6]
            rows_at = [builder.add(acc, builder.mul(acc_stride, I64(r))) for r in range(rows)]
            for first in range(0, width, together(rows)):
                loop_over(builder, args, rows_at, range(first, min(width, first + together(rows))))
            return context.get_dummy_value()

        return types.none(*[types.int64] * 7), codegen

    return weigh
