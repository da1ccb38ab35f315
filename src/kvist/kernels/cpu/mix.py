"""The rotation that spreads a head's numbers before they are packed: signs, then a Walsh-Hadamard transform.

In place, over float32. Stages with a stride of 1 to 8 exchange lanes of a vector, wider ones whole vectors; every sum
is of two numbers, so there is no order that could differ.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.vector import LANES, V16F, add, emit_fma, f32x16, mul, shuffle, splat, sub
from kvist.kernels.cpu.vector_memory import load_f32, store_f32


@intrinsic
def mix_lanes(typingctx: Any, a: Any) -> Any:
    """The four stages inside a vector: lanes x and x + stride become their sum and their difference."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = args[0]
        for stride in (1, 2, 4, 8):
            other = shuffle(builder, vector, vector, [lane ^ stride for lane in range(LANES)])
            signs = ir.Constant(V16F, [-1.0 if lane & stride else 1.0 for lane in range(LANES)])
            vector = emit_fma(builder, vector, signs, other)
        return vector

    return f32x16(f32x16), codegen


@jit
def transform(x: int, dims: int, factor: float) -> None:
    """Walsh-Hadamard over `dims` numbers, a power of two from 16 on, times the factor."""
    for d in range(0, dims, 16):
        store_f32(x + d * 4, mul(mix_lanes(load_f32(x + d * 4)), splat(factor)))
    step = 16
    while step < dims:
        for base in range(0, dims, 2 * step):
            for d in range(base, base + step, 16):
                a, b = load_f32(x + d * 4), load_f32(x + (d + step) * 4)
                store_f32(x + d * 4, add(a, b))
                store_f32(x + (d + step) * 4, sub(a, b))
        step *= 2


@jit
def mix(x: int, signs: int, dims: int) -> None:
    """x becomes H (signs * x) / sqrt(dims)."""
    for d in range(0, dims, 16):
        store_f32(x + d * 4, mul(load_f32(x + d * 4), load_f32(signs + d * 4)))
    transform(x, dims, 1.0 / dims**0.5)


@jit
def unmix(x: int, signs: int, dims: int) -> None:
    """Undo `mix`."""
    transform(x, dims, 1.0 / dims**0.5)
    for d in range(0, dims, 16):
        store_f32(x + d * 4, mul(load_f32(x + d * 4), load_f32(signs + d * 4)))
