"""Operations that see one row at a time.

Embedding, norms, rotary embedding with the store to the pages, activations.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.math import gelu, gelu_tanh, jit, silu
from kvist.kernels.cpu.matmul import sampled_row
from kvist.kernels.cpu.scalar import arg, arg_f32, get_f32, get_i32, put_f32, slot
from kvist.kernels.cpu.tile import ITEMSIZE
from kvist.kernels.cpu.vector import add, div, fma, keep_first, mul, reduce_add, splat, sqrt, sub
from kvist.kernels.cpu.vector_memory import load, load_f32, scatter, store, store_f32

ROWS_A_PIECE = 4


@jit
def row_pieces(rows: int) -> int:
    """Pieces of a row-by-row op."""
    return (rows + ROWS_A_PIECE - 1) // ROWS_A_PIECE


def make_embed(dtype: str) -> Any:
    """out[row] = table[token] * scale (+ positions[position]).

    Arguments: table, width, scale, positions table or 0, out, stride.
    """
    get, itemsize = load[dtype], ITEMSIZE[dtype]

    @jit
    def embed(ctx: int, op: int, row: int) -> None:
        table, width, scale = arg(op, 0), arg(op, 1), splat(arg_f32(op, 2))
        learned, out = arg(op, 3), arg(op, 4) + row * arg(op, 5)
        source = table + get_i32(slot(ctx, abi.TOKENS) + row * 4) * width * itemsize
        for d in range(0, width, 16):
            store_f32(out + d * 4, mul(get(source + d * itemsize), scale))
        if learned != 0:
            place = learned + get_i32(slot(ctx, abi.POSITIONS) + row * 4) * width * itemsize
            for d in range(0, width, 16):
                store_f32(out + d * 4, add(load_f32(out + d * 4), get(place + d * itemsize)))

    return embed


@jit
def rms_norm(ctx: int, op: int, row: int) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight.

    Arguments: x, stride, out, stride, weight, bias, width, true width, eps, sampled.
    """
    source = sampled_row(ctx, row) if arg(op, 9) else row
    x, out = arg(op, 0) + source * arg(op, 1), arg(op, 2) + row * arg(op, 3)
    weight, width, count, eps = arg(op, 4), arg(op, 6), arg(op, 7), arg_f32(op, 8)
    total = splat(0.0)
    for d in range(0, width, 16):
        v = load_f32(x + d * 4)
        total = fma(v, v, total)
    mean = div(splat(reduce_add(total)), splat(count))
    factor = div(splat(1.0), sqrt(add(mean, splat(eps))))
    for d in range(0, width, 16):
        store_f32(out + d * 4, mul(mul(load_f32(x + d * 4), factor), load_f32(weight + d * 4)))


@jit
def layer_norm(ctx: int, op: int, row: int) -> None:
    """out = (x - mean) / sqrt(var + eps) * weight + bias; arguments as rms_norm.

    Lanes past the true width are left out of var.
    """
    source = sampled_row(ctx, row) if arg(op, 9) else row
    x, out = arg(op, 0) + source * arg(op, 1), arg(op, 2) + row * arg(op, 3)
    weight, bias, width = arg(op, 4), arg(op, 5), arg(op, 6)
    count, eps = arg(op, 7), arg_f32(op, 8)
    total, zero = splat(0.0), splat(0.0)
    for d in range(0, width, 16):
        total = add(total, load_f32(x + d * 4))
    mean = div(splat(reduce_add(total)), splat(count))
    spread = zero
    for d in range(0, width, 16):
        v = keep_first(sub(load_f32(x + d * 4), mean), count - d, zero)
        spread = fma(v, v, spread)
    factor = div(splat(1.0), sqrt(add(div(splat(reduce_add(spread)), splat(count)), splat(eps))))
    for d in range(0, width, 16):
        v = mul(sub(load_f32(x + d * 4), mean), factor)
        store_f32(out + d * 4, add(mul(v, load_f32(weight + d * 4)), load_f32(bias + d * 4)))


@jit
def rotate(x: int, cos: int, sin: int, half: int) -> None:
    """Rotate the pairs (x[i], x[i + half]) of one head by the angles of its position, in place.

    Where half is no multiple of 16 the last pairs are taken one by one: a vector would reach into the other half, or
    the next head.
    """
    whole = half - half % 16
    for d in range(0, whole, 16):
        a, b = load_f32(x + d * 4), load_f32(x + (half + d) * 4)
        c, s = load_f32(cos + d * 4), load_f32(sin + d * 4)
        store_f32(x + d * 4, sub(mul(a, c), mul(b, s)))
        store_f32(x + (half + d) * 4, add(mul(b, c), mul(a, s)))
    for d in range(whole, half):
        e, f = get_f32(x + d * 4), get_f32(x + (half + d) * 4)
        g, t = get_f32(cos + d * 4), get_f32(sin + d * 4)
        put_f32(x + d * 4, e * g - f * t)
        put_f32(x + (half + d) * 4, f * g + e * t)


def make_rotary_store(dtype: str) -> Any:
    """Rotate q and k in place; round k and v to the codec's `dtype` and write them to their slot of the page.

    Arguments: q, k, v, q stride, k stride, v stride, heads, KV heads, head size, half of the rotary size (0: none),
    cosine table (f32 [position][half]), sine table, layer's offset in a page.
    """
    put, scattered, itemsize = store[dtype], scatter[dtype], ITEMSIZE[dtype]

    @jit
    def rotary_store(ctx: int, op: int, row: int) -> None:
        q, k, v = (
            arg(op, 0) + row * arg(op, 3),
            arg(op, 1) + row * arg(op, 4),
            arg(op, 2) + row * arg(op, 5),
        )
        heads, kv_heads, dims, half = arg(op, 6), arg(op, 7), arg(op, 8), arg(op, 9)
        position = get_i32(slot(ctx, abi.POSITIONS) + row * 4)
        if half > 0:
            cos, sin = arg(op, 10) + position * half * 4, arg(op, 11) + position * half * 4
            for h in range(heads):
                rotate(q + h * dims * 4, cos, sin, half)
            for h in range(kv_heads):
                rotate(k + h * dims * 4, cos, sin, half)
        page_size = slot(ctx, abi.PAGE_SIZE)
        page = get_i32(slot(ctx, abi.ROW_PAGES) + row * 4)
        place = position % page_size
        v_offset = 16 * dims * itemsize
        base = slot(ctx, abi.POOL) + page * slot(ctx, abi.PAGE_BYTES) + arg(op, 12)
        base += place // 16 * 2 * v_offset
        lane = place % 16
        for h in range(kv_heads):
            at = base + h * page_size * dims * 2 * itemsize
            for d in range(0, dims, 16):
                scattered(at + (d * 16 + lane) * itemsize, 16 * itemsize, load_f32(k + (h * dims + d) * 4))
                put(at + v_offset + (lane * dims + d) * itemsize, load_f32(v + (h * dims + d) * 4))

    return rotary_store


@jit
def activate(kind: int, x: Any) -> Any:
    """The activation numbered as in abi.ACTIVATIONS."""
    if kind == 0:
        return silu(x)
    if kind == 1:
        return gelu_tanh(x)
    return gelu(x)


@jit
def gate(ctx: int, op: int, row: int) -> None:
    """out = activation(gate) * up; without up (address 0) just the activation.

    Arguments: gate, up, out, stride, width, activation.
    """
    stride, width, kind = arg(op, 3), arg(op, 4), arg(op, 5)
    a, b, out = arg(op, 0) + row * stride, arg(op, 1), arg(op, 2) + row * stride
    if b != 0:
        b += row * stride
        for d in range(0, width, 16):
            store_f32(out + d * 4, mul(activate(kind, load_f32(a + d * 4)), load_f32(b + d * 4)))
    else:
        for d in range(0, width, 16):
            store_f32(out + d * 4, activate(kind, load_f32(a + d * 4)))
