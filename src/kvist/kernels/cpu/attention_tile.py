"""The two micro-kernels of attention: scores of a tile of 64 positions, and the weighted sum of its values.

A tile is four blocks of sixteen slots. In a block K lies dim-major (sixteen slots are the sixteen lanes, so a score
vector needs no horizontal sum) and V slot-major (sixteen dims are the lanes)::

    K block   [dim 0: slot 0..15][dim 1: slot 0..15] ...          score[slot] += q[dim] * K[dim][slot], dim ascending
    V block   [slot 0: dim 0..d-1][slot 1: dim 0..d-1] ...        out[dim]    += p[slot] * V[slot][dim], slot ascending

Each query row has chains of its own, so the number of rows a call takes changes no bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu.vector import F32, I64, V16F, emit_fma, emit_load, emit_prefetch, emit_splat, pointer
from kvist.kernels.cpu.vector_memory import ITEMSIZE

BLOCKS = 4  # blocks of sixteen slots in a tile of 64 positions


def begin_loop(builder: Any) -> tuple[Any, Any, Any, Any]:
    """A loop over 0, 1, ...: the blocks before it, of it and after it, its counter."""
    before = builder.block
    loop = builder.append_basic_block("loop")
    after = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    return before, loop, after, builder.phi(I64)


def end_loop(builder: Any, before: Any, loop: Any, after: Any, counter: Any, limit: Any) -> None:
    """Close what `begin_loop` began: once more while the counter is below `limit`."""
    following = builder.add(counter, I64(1))
    counter.add_incoming(I64(0), before)
    counter.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, limit), loop, after)
    builder.position_at_end(after)


def make_scores(dtype: str, rows: int, ahead: bool) -> Any:
    """``scores(q, q_stride, k0, k1, k2, k3, dims, out, n0, n1, n2, n3)``.

    out[row][64] = sum over dims of q[row][dim] * K[dim][slot]. q and out are float32; k0..k3 are the addresses of the
    four K blocks; out rows lie 256 bytes apart. ahead: ask for the K blocks n0..n3, to be read next: pages lie
    anywhere, so no processor can guess them.
    """

    @intrinsic
    def scores(
        typingctx: Any, q: Any, qs: Any, k0: Any, k1: Any, k2: Any, k3: Any, dims: Any, out: Any,
        n0: Any, n1: Any, n2: Any, n3: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            q, stride, *blocks, dims, out = args[:8]
            q_rows = [builder.add(q, builder.mul(stride, I64(r))) for r in range(rows)]
            before, loop, after, dim = begin_loop(builder)
            sums = [[builder.phi(V16F) for _ in range(BLOCKS)] for _ in range(rows)]
            offset = builder.mul(dim, I64(16 * ITEMSIZE[dtype]))
            if ahead:
                for block in args[8:]:
                    emit_prefetch(builder, block, offset)
            keys = [emit_load(builder, block, dtype, offset) for block in blocks]
            new = []
            for r in range(rows):
                number = builder.load(pointer(builder, q_rows[r], F32, builder.mul(dim, I64(4))))
                wide = emit_splat(builder, number)
                new.append([emit_fma(builder, wide, keys[b], sums[r][b]) for b in range(BLOCKS)])
            zero = ir.Constant(V16F, [0.0] * 16)
            for r in range(rows):
                for b in range(BLOCKS):
                    sums[r][b].add_incoming(zero, before)
                    sums[r][b].add_incoming(new[r][b], builder.block)
            end_loop(builder, before, loop, after, dim, dims)
            for r in range(rows):
                for b in range(BLOCKS):
                    builder.store(new[r][b], pointer(builder, out, V16F, I64(r * 256 + b * 64)), align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 12), codegen

    return scores


def make_weigh(dtype: str, rows: int, width: int, ahead: bool) -> Any:
    """``weigh(p, v, v_stride, slots, acc, acc_stride, following)``.

    acc[row][16*width dims] += p[row][slot] * V[slot][dim].

    `slots` slots that lie one after the other, in ascending order; p rows lie 256 bytes apart; acc is float32, in
    memory.
    ahead: ask for the same slots and dims of the V block `following`.
    """

    @intrinsic
    def weigh(
        typingctx: Any, p: Any, v: Any, v_stride: Any, slots: Any, acc: Any, acc_stride: Any, following: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            p, v, v_stride, slots, acc, acc_stride, following = args
            rows_at = [builder.add(acc, builder.mul(acc_stride, I64(r))) for r in range(rows)]
            start = [[emit_load(builder, rows_at[r], "f32", I64(64 * j)) for j in range(width)] for r in range(rows)]
            before, loop, after, slot = begin_loop(builder)
            sums = [[builder.phi(V16F) for _ in range(width)] for _ in range(rows)]
            base = builder.add(v, builder.mul(slot, v_stride))
            if ahead:
                for line in range(0, 16 * width * ITEMSIZE[dtype], 64):
                    emit_prefetch(builder, following, builder.add(builder.mul(slot, v_stride), I64(line)))
            values = [emit_load(builder, base, dtype, I64(16 * j * ITEMSIZE[dtype])) for j in range(width)]
            new = []
            for r in range(rows):
                place = builder.add(builder.mul(slot, I64(4)), I64(256 * r))
                wide = emit_splat(builder, builder.load(pointer(builder, p, F32, place)))
                new.append([emit_fma(builder, wide, values[j], sums[r][j]) for j in range(width)])
            for r in range(rows):
                for j in range(width):
                    sums[r][j].add_incoming(start[r][j], before)
                    sums[r][j].add_incoming(new[r][j], builder.block)
            end_loop(builder, before, loop, after, slot, slots)
            for r in range(rows):
                for j in range(width):
                    builder.store(new[r][j], pointer(builder, rows_at[r], V16F, I64(64 * j)), align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 7), codegen

    return weigh
