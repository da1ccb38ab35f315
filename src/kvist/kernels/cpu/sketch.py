"""Sketching the keys of pages that a step has filled, as `cache.sketch` defines it.

One piece is one KV head of one page. K's vectors are dims and their lanes are slots, so sixteen keys are turned at
once, whole vectors meeting each other.

Scratch of a thread, float32: a block's keys [dims][16], the mean [dims].
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.cache import sketch as definition
from kvist.cache.sketch import LARGEST, LENGTHS_BYTES, LONGEST, SPAN, STEP_BYTES
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.mix import transform
from kvist.kernels.cpu.packed_factors import put_bytes
from kvist.kernels.cpu.packed_lanes import words
from kvist.kernels.cpu.places import place_of
from kvist.kernels.cpu.scalar import arg, get_f32, get_i32, put_f32, put_i64, slot
from kvist.kernels.cpu.vector import (
    I64,
    V16F,
    V16I,
    absolute,
    add,
    div,
    maximum,
    minimum,
    mul,
    pointer,
    reduce_add,
    reduce_max,
    round_even,
    splat,
    sub,
    where_less,
)
from kvist.kernels.cpu.vector_memory import ITEMSIZE, load, load_f32, store, store_f32

SMALLEST, INFINITY = 1e-30, float("inf")


@intrinsic
def put_signs(typingctx: Any, x: Any, half: Any, out: Any) -> Any:
    """Signs of sixteen dims, vectors of slots, as nibbles: low ones alone, or high ones to what is there."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, half, out = args
        zero, found = ir.Constant(V16F, [0.0] * 16), words(0)
        for dim in range(16):
            number = builder.load(pointer(builder, x, V16F, I64(dim * 64)), align=4)
            mark = words(1 << 8 * (dim // 4) + dim % 4)
            found = builder.or_(found, builder.select(builder.fcmp_ordered(">=", number, zero), mark, words(0)))
        place, high = pointer(builder, out, V16I), builder.icmp_signed("!=", half, I64(0))
        both = builder.or_(builder.load(place, align=2), builder.shl(found, words(4)))
        builder.store(builder.select(high, both, found), place, align=2)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 3), codegen


mean_bytes, block_bytes = jit(definition.mean_bytes), jit(definition.block_bytes)


@jit
def turn(x: int, signs: int, dims: int) -> None:
    """A head's numbers in place, as `cache.sketch.turned` has it."""
    width = dims & -dims
    for d in range(0, dims, 16):
        store_f32(x + d * 4, mul(load_f32(x + d * 4), load_f32(signs + d * 4)))
    for first in range(0, dims, width):
        transform(x + first * 4, width, 1.0)


@jit
def turn_slots(x: int, signs: int, dims: int) -> None:
    """Sixteen keys in place, dims being vectors."""
    for d in range(dims):
        store_f32(x + d * 64, mul(load_f32(x + d * 64), splat(get_f32(signs + d * 4))))
    step, width = 1, dims & -dims
    while step < width:
        for base in range(0, dims, 2 * step):
            for d in range(base, base + step):
                a, b = load_f32(x + d * 64), load_f32(x + (d + step) * 64)
                store_f32(x + d * 64, add(a, b))
                store_f32(x + (d + step) * 64, sub(a, b))
        step *= 2


@jit
def round_bytes(x: int, dims: int) -> float:
    """Round numbers in place to whole ones from -127 to 127; the step between them, 0 where all became 0."""
    top = total = splat(0.0)
    for d in range(0, dims, 16):
        size = absolute(load_f32(x + d * 4))
        top, total = maximum(size, top), add(total, size)
    largest = reduce_max(top)
    fits = largest > SMALLEST and reduce_add(total) < INFINITY  # not where there is no number
    inverse = splat(LARGEST / largest if fits else 0.0)
    for d in range(0, dims, 16):
        code = round_even(mul(load_f32(x + d * 4), inverse))
        store_f32(x + d * 4, code if fits else splat(0.0))
    return largest / LARGEST if fits else 0.0


def make_sketch(dtype: str) -> Any:
    """One KV head of a page that this step has filled.

    Arguments: where the layer's floats lie in page 0, bytes from page to page, from extent to extent, their group, KV
    heads, head size, where its sketches begin, from one KV head's to the next one's, signs, the group of the pages that
    have them.
    """
    get, put_half, itemsize = load[dtype], store["f16"], ITEMSIZE[dtype]

    @jit
    def sketch_block(keys: int, x: int, mean: int, step: float, signs: int, dims: int, out: int) -> None:
        for d in range(dims):
            store_f32(x + d * 64, get(keys + d * 16 * itemsize))
        turn_slots(x, signs, dims)
        squares = sizes = splat(0.0)
        for d in range(dims):
            away = sub(load_f32(x + d * 64), mul(splat(get_f32(mean + d * 4)), splat(step)))
            squares, sizes = add(squares, mul(away, away)), add(sizes, absolute(away))
            store_f32(x + d * 64, away)
        for d in range(0, dims, 16):
            put_signs(x + d * 64, d // 16 % 2, out + d // SPAN * 64)
        length = minimum(div(squares, sizes), splat(LONGEST))
        put_half(out + block_bytes(dims) - LENGTHS_BYTES, where_less(splat(0.0), sizes, length, splat(0.0)))

    @jit
    def sketch(ctx: int, op: int, piece: int, tid: int) -> None:
        kv_heads, dims, page_size = arg(op, 4), arg(op, 5), slot(ctx, abi.PAGE_SIZE)
        number, head, signs = piece // kv_heads, piece % kv_heads, arg(op, 8)
        ids, count, apart = slot(ctx, abi.FULL_PAGES), slot(ctx, abi.FULL), 2 * 16 * dims * itemsize
        keys = place_of(op, 0, get_i32(ids + (arg(op, 3) * count + number) * 4), head, page_size)
        top, size = mean_bytes(dims) + STEP_BYTES, block_bytes(dims)
        page = get_i32(ids + (arg(op, 9) * count + number) * 4)
        out = arg(op, 6) + head * arg(op, 7) + page * (top + page_size // 16 * size)
        x = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        mean = x + dims * 64
        for d in range(dims):
            total = get(keys + d * 16 * itemsize)
            for b in range(1, page_size // 16):
                total = add(total, get(keys + b * apart + d * 16 * itemsize))
            put_f32(mean + d * 4, reduce_add(total) * (1.0 / page_size))
        turn(mean, signs, dims)
        step = round_bytes(mean, dims)
        for i in range(0, top, 8):
            put_i64(out + i, 0)
        for d in range(0, dims, 16):
            put_bytes(out + d, add(load_f32(mean + d * 4), splat(128.0)))
        put_f32(out + top - STEP_BYTES, step)
        for b in range(page_size // 16):
            sketch_block(keys + b * apart, x, mean, step, signs, dims, out + top + b * size)

    return sketch
