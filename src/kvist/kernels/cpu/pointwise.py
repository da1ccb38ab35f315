"""Operations that see one row at a time.

Norms, rotary embedding with the store to the pages, activations.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.logits import AHEAD
from kvist.kernels.cpu.math import activate, jit, tanh
from kvist.kernels.cpu.matmul import sampled_row
from kvist.kernels.cpu.mix import mix
from kvist.kernels.cpu.places import head_at, page_at
from kvist.kernels.cpu.scalar import arg, arg_address, arg_f32, get_f32, get_i32, prefetch, put_f32, put_i64, slot
from kvist.kernels.cpu.vector import (
    add,
    div,
    fma,
    keep_first,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    splat,
    sqrt,
    sub,
)
from kvist.kernels.cpu.vector_memory import ITEMSIZE, load_f32, scatter, store, store_f32

LOWEST = -3.4028234663852886e38  # float32's
LIKELIEST_BLOCK = 256  # numbers looked at before their largest is compared


@jit
def row_pieces(rows: int) -> int:
    """Pieces of a row-by-row op."""
    return (rows + abi.ROWS_A_PIECE - 1) // abi.ROWS_A_PIECE


@jit
def rms_norm(ctx: int, op: int, row: int, place: int) -> None:
    """out[place] = x[row] / sqrt(mean(x^2) + eps) * weight (+ residual[row]), for each of the row's groups.

    Arguments: x, stride, out, stride, weight, bias, width of a group, its true width, eps, sampled, private (see
    `interpreter`), groups, residual (0: none), its stride.
    """
    source = sampled_row(ctx, row) if arg(op, 9) else row
    x, out = arg(op, 0) + source * arg(op, 1), arg(op, 2) + place * arg(op, 3)
    weight, width, count, eps = arg(op, 4), arg(op, 6), arg(op, 7), arg_f32(op, 8)
    residual = arg(op, 12)
    if residual != 0:
        residual += source * arg(op, 13)
    for start in range(0, arg(op, 11) * width * 4, width * 4):
        total = splat(0.0)
        for d in range(0, width, 16):
            v = load_f32(x + start + d * 4)
            total = fma(v, v, total)
        mean = div(splat(reduce_add(total)), splat(count))
        factor = div(splat(1.0), sqrt(add(mean, splat(eps))))
        if residual != 0:
            for d in range(0, width, 16):
                v = mul(mul(load_f32(x + start + d * 4), factor), load_f32(weight + d * 4))
                store_f32(out + start + d * 4, add(load_f32(residual + start + d * 4), v))
        else:
            for d in range(0, width, 16):
                v = mul(mul(load_f32(x + start + d * 4), factor), load_f32(weight + d * 4))
                store_f32(out + start + d * 4, v)


@jit
def layer_norm(ctx: int, op: int, row: int, place: int) -> None:
    """out[place] = (x[row] - mean) / sqrt(var + eps) * weight + bias; arguments as rms_norm, one group, no residual.

    Lanes past the true width are left out of var.
    """
    source = sampled_row(ctx, row) if arg(op, 9) else row
    x, out = arg(op, 0) + source * arg(op, 1), arg(op, 2) + place * arg(op, 3)
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
    cosine table (f32 [position][half]), sine table, where the layer lies in page 0, the pages' type, bytes from page to
    page, from extent to extent, the layer's group, signs that q and k are mixed with (0: they are not), signs for v,
    what is taken from k before (float32 [KV head][head size]; 0: nothing).
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
        if arg(op, 19) != 0:
            for d in range(0, kv_heads * dims, 16):
                store_f32(k + d * 4, sub(load_f32(k + d * 4), load_f32(arg(op, 19) + d * 4)))
        if arg(op, 17) != 0:
            for h in range(heads):
                mix(q + h * dims * 4, arg(op, 17), dims)
            for h in range(kv_heads):
                mix(k + h * dims * 4, arg(op, 17), dims)
        if arg(op, 18) != 0:
            for h in range(kv_heads):
                mix(v + h * dims * 4, arg(op, 18), dims)
        page_size = slot(ctx, abi.PAGE_SIZE)
        page = get_i32(slot(ctx, abi.ROW_PAGES) + (arg(op, 16) * slot(ctx, abi.ROWS) + row) * 4)
        place = get_i32(slot(ctx, abi.SLOTS) + row * 4) % page_size
        v_offset = 16 * dims * itemsize
        strides = arg_address(op, 14)
        base = page_at(page, page_size, strides, arg(op, 12)) + place // 16 * 2 * v_offset
        lane = place % 16
        for h in range(kv_heads):
            at = head_at(base, h, page_size, strides)
            for d in range(0, dims, 16):
                scattered(at + (d * 16 + lane) * itemsize, 16 * itemsize, load_f32(k + (h * dims + d) * 4))
                put(at + v_offset + (lane * dims + d) * itemsize, load_f32(v + (h * dims + d) * 4))

    return rotary_store


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


@jit
def cap(op: int, row: int) -> None:
    """out = cap * tanh(x / cap). Arguments: x, stride, out, stride, width, cap."""
    x, out, limit = arg(op, 0) + row * arg(op, 1), arg(op, 2) + row * arg(op, 3), splat(arg_f32(op, 5))
    for d in range(0, arg(op, 4), 16):
        store_f32(out + d * 4, mul(limit, tanh(div(load_f32(x + d * 4), limit))))


@jit
def copy_row(op: int, row: int) -> None:
    """A row as it is. Arguments: x, stride, out, stride, width."""
    for d in range(0, arg(op, 4) * 4, 64):
        store_f32(arg(op, 2) + row * arg(op, 3) + d, load_f32(arg(op, 0) + row * arg(op, 1) + d))


@jit
def likeliest(op: int, row: int) -> None:
    """The index of a row's largest number, the first of equals; -1 if one of them is not finite.

    Arguments: rows, stride, width, out (int64 a row).
    """
    x, width = arg(op, 0) + row * arg(op, 1), arg(op, 2)
    zero = splat(0.0)
    total, best, block = zero, LOWEST, -1
    for start in range(0, width, LIKELIEST_BLOCK):
        count = min(LIKELIEST_BLOCK, width - start)
        top = splat(LOWEST)
        for d in range(0, count, 16):
            prefetch(x + (start + d) * 4 + AHEAD)
            v = keep_first(load_f32(x + (start + d) * 4), count - d, splat(LOWEST))
            top = maximum(top, v)
            total = fma(v, zero, total)  # what is not finite makes it NaN
        largest = reduce_max(top)
        if largest > best:
            best, block = largest, start
    found = -1
    if block >= 0 and reduce_add(total) == 0.0:
        found = block
        while get_f32(x + found * 4) != best:
            found += 1
    put_i64(arg(op, 3) + row * 8, found)
