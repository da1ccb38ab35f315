"""V's side of attention over packed pages: the weighted sum of a tile's values, added to rows (see `packed_rows`)."""

from __future__ import annotations

from typing import Any

from kvist.cache.codec.base import AnyCodec, Packed
from kvist.kernels.cpu.attention_rows import make_weigh_rows
from kvist.kernels.cpu.attention_tile import together
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.packed_dot import make_dot_weigh, weigh_width
from kvist.kernels.cpu.packed_factors import pack_tile, split_tile
from kvist.kernels.cpu.packed_products import LARGEST, LARGEST_WEIGHT, in_pairs
from kvist.kernels.cpu.packed_rows import (
    PORTION,
    SMALLEST,
    WEIGHT_BYTES,
    ask_for,
    group_of,
    load_f16,
    part_bytes,
)
from kvist.kernels.cpu.packed_tile import make_packed_weigh
from kvist.kernels.cpu.scalar import prefetch, put_f32
from kvist.kernels.cpu.vector import add, fma, maximum, mul, reduce_add, reduce_max, round_even, splat
from kvist.kernels.cpu.vector_memory import load_f32, store_f32


def make_weigh_side(codec: AnyCodec) -> Any:
    """``weigh(p, rows, low, high, v0..v3, acc, dims, scratch, n0..n3)``: add the values of the blocks low..high-1.

    scratch: room for a portion's weights, rounded or scaled; n: blocks that are read next.
    """
    if not isinstance(codec, Packed):
        rows_of_floats = make_weigh_rows(codec.name, True)

        @jit
        def one_block(p: int, rows: int, v: int, acc: int, dims: int, scratch: int, following: int) -> None:
            rows_of_floats(p, rows, v, 16, acc, dims, following)

    elif codec.grid == "e4m3":
        one_block = _make_weigh_grid(codec)
    else:
        return _make_weigh_dot(codec)

    @jit
    def weigh(
        p: int, rows: int, low: int, high: int, v0: int, v1: int, v2: int, v3: int, acc: int, dims: int, scratch: int,
        n0: int, n1: int, n2: int, n3: int,
    ) -> None:  # fmt: skip
        if low <= 0 < high:
            one_block(p, rows, v0, acc, dims, scratch, n0)
        if low <= 1 < high:
            one_block(p + 64, rows, v1, acc, dims, scratch, n1)
        if low <= 2 < high:
            one_block(p + 128, rows, v2, acc, dims, scratch, n2)
        if low <= 3 < high:
            one_block(p + 192, rows, v3, acc, dims, scratch, n3)

    return weigh


def _make_weigh_grid(codec: Packed) -> Any:
    """One block of small floats."""
    width = min(together(PORTION), codec.group // 16)
    wide1, wide2, wide3, wide4 = (make_packed_weigh(codec, rows, width) for rows in (1, 2, 3, 4))
    narrow1 = make_packed_weigh(codec, 1, 1)
    size, group = codec.cell_bytes, codec.group

    @jit
    def one_block(p: int, rows: int, v: int, acc: int, dims: int, scratch: int, following: int) -> None:
        step, stride = group_of(dims, group), dims * 4
        for first in range(0, dims, step):
            beside = dims // 16 * size + first // step * 32
            prefetch(following + beside)
            scale = load_f16(v + beside)
            for r in range(0, rows, PORTION):
                n = min(PORTION, rows - r)
                for i in range(n):
                    store_f32(scratch + i * 64, mul(load_f32(p + (r + i) * 256), scale))
                d = first
                while d < first + step:
                    cell, n_cell = v + d // 16 * size, following + d // 16 * size
                    whole = d + 16 * width <= first + step
                    row = acc + r * stride + d * 4
                    if not whole:
                        for i in range(n):
                            narrow1(scratch + i * 64, cell, row + i * stride, stride, n_cell)
                    elif n == 1:
                        wide1(scratch, cell, row, stride, n_cell)
                    elif n == 2:
                        wide2(scratch, cell, row, stride, n_cell)
                    elif n == 3:
                        wide3(scratch, cell, row, stride, n_cell)
                    else:
                        wide4(scratch, cell, row, stride, n_cell)
                    d += 16 * width if whole else 16

    return one_block


@jit
def cell_of_four(cell: int, cells: int, size: int, n0: int, n1: int, n2: int, n3: int) -> int:
    """Address of a cell of four blocks of so many cells, counted through."""
    if cell < cells:
        return n0 + cell * size
    if cell < 2 * cells:
        return n1 + (cell - cells) * size
    if cell < 3 * cells:
        return n2 + (cell - 2 * cells) * size
    return n3 + (cell - 3 * cells) * size


def _make_round(codec: Packed) -> Any:
    """``round_weights(p, scales, out)``: a row's weights of a tile, times its scales, for `make_dot_weigh`.

    scales: those of four blocks, then their offsets, float32.
    """
    offset, wide = codec.offset, codec.factor_bytes == 2
    most, middle = LARGEST if wide else LARGEST_WEIGHT, ((1 << codec.bits) - 1) / 2

    @jit
    def round_weights(p: int, scales: int, out: int) -> None:
        w0, w1 = mul(load_f32(p), load_f32(scales)), mul(load_f32(p + 64), load_f32(scales + 64))
        w2, w3 = mul(load_f32(p + 128), load_f32(scales + 128)), mul(load_f32(p + 192), load_f32(scales + 192))
        largest = reduce_max(maximum(maximum(w0, w1), maximum(w2, w3)))
        inverse = splat(most / largest if largest > SMALLEST else 0.0)
        unit = largest / most if largest > SMALLEST else 0.0
        n0, n1, n2, n3 = mul(w0, inverse), mul(w1, inverse), mul(w2, inverse), mul(w3, inverse)
        n0, n1, n2, n3 = round_even(n0), round_even(n1), round_even(n2), round_even(n3)
        total = splat(0.0)
        if offset:
            total = fma(load_f32(p), load_f32(scales + 256), total)
            total = fma(load_f32(p + 64), load_f32(scales + 320), total)
            total = fma(load_f32(p + 128), load_f32(scales + 384), total)
            total = fma(load_f32(p + 192), load_f32(scales + 448), total)
        if wide:
            split_tile(n0, n1, n2, n3, out)
        else:
            pack_tile(n0, n1, n2, n3, out)
            if offset:
                lost = fma(add(add(n0, n1), add(n2, n3)), splat(-unit), add(add(w0, w1), add(w2, w3)))
                total = fma(lost, splat(middle), total)
        put_f32(out + 128, unit)
        put_f32(out + 132, reduce_add(total))

    return round_weights


def _make_weigh_dot(codec: Packed) -> Any:
    """`make_weigh_side` for whole numbers: weights are rounded for the whole tile."""
    width, round_weights = weigh_width(codec), _make_round(codec)
    wide1, wide2, wide3, wide4 = (make_dot_weigh(codec, rows, width) for rows in (1, 2, 3, 4))
    thin1 = make_dot_weigh(codec, 1, 1)
    size, scales, group, offset = codec.cell_bytes, codec.parameters * 32, codec.group, codec.offset
    block, _ = part_bytes(codec, keys=False)
    spread = in_pairs()

    @jit
    def widen(live: bool, source: int, out: int) -> None:
        """A block's scales and offsets as float32, once for all rows; 0 where no row weighs it."""
        store_f32(out, load_f16(source) if live else splat(0.0))
        if offset:
            store_f32(out + 256, load_f16(source + 32) if live else splat(0.0))

    @jit
    def weigh(
        p: int, rows: int, low: int, high: int, v0: int, v1: int, v2: int, v3: int, acc: int, dims: int, scratch: int,
        n0: int, n1: int, n2: int, n3: int,
    ) -> None:  # fmt: skip
        step, stride, f = group_of(dims, group), dims * 4, scratch + 128
        floats = scratch + PORTION * WEIGHT_BYTES
        if not spread:
            ask_for(n0, block(dims))
            ask_for(n1, block(dims))
        for first in range(0, dims, step):
            at = dims // 16 * size + first // step * scales
            if spread:
                prefetch(n0 + at)
                prefetch(n1 + at)
            prefetch(n2 + at)
            prefetch(n3 + at)
            widen(low <= 0 < high, v0 + at, floats)
            widen(low <= 1 < high, v1 + at, floats + 64)
            widen(low <= 2 < high, v2 + at, floats + 128)
            widen(low <= 3 < high, v3 + at, floats + 192)
            for r in range(0, rows, PORTION):
                n = min(PORTION, rows - r)
                for i in range(n):
                    round_weights(p + (r + i) * 256, floats, scratch + i * WEIGHT_BYTES)
                for d in range(first, first + step, 16 * width):
                    c, out = d // 16 * size, acc + r * stride + d * 4
                    a0, a1, a2, a3 = v0 + c, v1 + c, v2 + c, v3 + c
                    m0, m1 = n2 + c, n3 + c
                    if spread:  # block after block, four cells at a time
                        m0 = cell_of_four(d >> 2, dims >> 4, size, n0, n1, n2, n3)
                    if d + 16 * width > first + step:
                        for i in range(n):
                            beside, row = i * WEIGHT_BYTES, out + i * stride
                            thin1(scratch + beside, 0, f + beside, a0, a1, a2, a3, row, 0, m0, m1)
                    elif n == 1:
                        wide1(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, m0, m1)
                    elif n == 2:
                        wide2(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, m0, m1)
                    elif n == 3:
                        wide3(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, m0, m1)
                    else:
                        wide4(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, m0, m1)

    return weigh
