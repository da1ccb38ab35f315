"""The two limits of this machine, measured by loops that do nothing else: reading memory, and fused multiply-adds."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import arg, put_f32
from kvist.kernels.cpu.sizes import FMA_CHAINS
from kvist.kernels.cpu.vector import I64, V16F, add, begin_loop, emit_fma, emit_load, end_loop, has, reduce_add, splat
from kvist.kernels.cpu.vector_memory import load_f32


@intrinsic
def multiply_adds(typingctx: Any, start: Any, count: Any) -> Any:
    """Run `count` rounds of FMA_CHAINS fused multiply-adds on registers.

    Returns the sum of all lanes, so that nothing is optimised away.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, count = args
        seeds = [emit_load(builder, address, "f32", I64(64 * i)) for i in range(FMA_CHAINS)]
        new, together = [], FMA_CHAINS if has("avx512f") else 4  # AVX2: eight registers, two whole latencies
        for first in range(0, FMA_CHAINS, together):
            before, loop, after, counter = begin_loop(builder)
            sums = [builder.phi(V16F) for _ in range(together)]
            made = [emit_fma(builder, total, seeds[0], seeds[1]) for total in sums]
            for phi, seed, value in zip(sums, seeds[first:], made, strict=False):
                phi.add_incoming(seed, before)
                phi.add_incoming(value, loop)
            end_loop(builder, before, loop, after, counter, count)
            new += made
        total = new[0]
        for value in new[1:]:
            total = builder.fadd(total, value)
        return builder.extract_element(total, ir.IntType(32)(0))

    return types.float32(types.int64, types.int64), codegen


@jit
def fma_peak(op: int, piece: int, scratch: int) -> None:
    """A piece of the FMA loop. Arguments: rounds a piece, pieces, address of 16 vectors of seeds."""
    put_f32(scratch, multiply_adds(arg(op, 2), arg(op, 0)))


@jit
def read_all(op: int, piece: int, scratch: int) -> None:
    """Read one piece of a buffer in one stream. Arguments: address, pieces, bytes a piece (a multiple of 256)."""
    size = arg(op, 2)
    at, end = arg(op, 0) + piece * size, arg(op, 0) + piece * size + size
    a = b = c = d = splat(0.0)
    while at < end:
        a = add(a, load_f32(at))
        b = add(b, load_f32(at + 64))
        c = add(c, load_f32(at + 128))
        d = add(d, load_f32(at + 192))
        at += 256
    put_f32(scratch, reduce_add(add(add(a, b), add(c, d))))
