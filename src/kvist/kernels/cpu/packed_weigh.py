"""V's side of attention over packed pages: the weighted sum of a tile's values, added to rows (see `packed_rows`).

Rows without any weight in a tile are left out, where the others lie evenly.
"""

from __future__ import annotations

from typing import Any

from kvist.cache.codec.base import AnyCodec, Packed
from kvist.cache.codec.factors import LARGEST_WEIGHT, pairs_limited, pairs_together, sum_limit
from kvist.kernels.cpu.abi import TILE
from kvist.kernels.cpu.attention_extras import ask_for, share_of
from kvist.kernels.cpu.attention_rows import make_weigh_rows
from kvist.kernels.cpu.attention_tile import together
from kvist.kernels.cpu.math import apart, jit
from kvist.kernels.cpu.packed_dot import make_dot_weigh, weigh_width
from kvist.kernels.cpu.packed_factors import pack_tile, sum_pairs, sum_two_pairs, swap
from kvist.kernels.cpu.packed_rows import (
    PORTION,
    SMALLEST,
    WEIGHT_BYTES,
    group_of,
    load_f16,
)
from kvist.kernels.cpu.packed_tile import lift, make_packed_weigh
from kvist.kernels.cpu.scalar import prefetch, put_f32, slot
from kvist.kernels.cpu.vector import add, fma, maximum, mul, reduce_add, reduce_max, round_even, splat
from kvist.kernels.cpu.vector_memory import load_f32, store_f32


@jit
def _weighs(p: int) -> bool:
    """Whether a row has any weight in a tile."""
    w01, w23 = maximum(load_f32(p), load_f32(p + 64)), maximum(load_f32(p + 128), load_f32(p + 192))
    return bool(reduce_max(maximum(w01, w23)) > 0)


@jit
def _rows_that_weigh(p: int, rows: int) -> tuple[int, int, int]:
    """The rows of a portion that have any weight: the first, how far apart they lie, how many there are.

    All rows, where they do not lie evenly.
    """
    first, gap, last, count = 0, 1, 0, 0
    for r in range(rows):
        if _weighs(p + r * 256):
            first = r if count == 0 else first
            gap = r - first if count == 1 else gap
            last, count = r, count + 1
    if last - first == (count - 1) * gap or count == 0:
        return first, gap, count
    return 0, 1, rows


def make_weigh_side(codec: AnyCodec, share: int) -> Any:
    """``weigh(p, rows, low, high, blocks, split, size, acc, dims, scratch)``: add the values of the blocks low..high-1.

    blocks: see `packed_rows.put_blocks`, each of `size` bytes; split: where in them V begins; scratch: `WEIGH_SCRATCH`
    bytes; share: see `even_share`.
    """
    if not isinstance(codec, Packed):
        rows_of_floats = make_weigh_rows(codec.name, True)

        @jit
        def one_block(p: int, rows: int, v: int, acc: int, dims: int, scratch: int, following: int) -> None:
            rows_of_floats(p, rows, v, 16, acc, dims, following)

    elif codec.grid == "e4m3":
        one_block = _make_weigh_grid(codec)
    else:
        return _make_weigh_dot(codec, share)

    @jit
    def weigh(
        p: int, rows: int, low: int, high: int, blocks: int, split: int, size: int, acc: int, dims: int, scratch: int
    ) -> None:  # fmt: skip
        for b in range(low, high if _rows_that_weigh(p, rows)[2] > 0 else low):
            one_block(p + b * 64, rows, slot(blocks, b) + split, acc, dims, scratch, slot(blocks, 4 + b) + split)

    return weigh


def _make_weigh_grid(codec: Packed) -> Any:
    """One block of small floats."""
    width = min(together(PORTION), codec.group // 16)
    wide1, wide2, wide3, wide4 = (make_packed_weigh(codec, rows, width) for rows in (1, 2, 3, 4))
    narrow1 = make_packed_weigh(codec, 1, 1)
    size, group, factor = codec.cell_bytes, codec.group, lift()

    @jit
    def one_block(p: int, rows: int, v: int, acc: int, dims: int, scratch: int, following: int) -> None:
        step, stride = group_of(dims, group), dims * 4
        for first in range(0, dims, step):
            beside = dims // 16 * size + first // step * 32
            prefetch(following + beside)
            scale = mul(load_f16(v + beside), splat(factor))
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


def _make_round(codec: Packed) -> Any:
    """``round_weights(p, scales, out)``: a row's weights of a tile, times its scales, for `make_dot_weigh`.

    scales: those of four blocks, then their offsets, float32.
    """
    offset, middle, below = codec.offset, codec.middle, float(codec.below)
    most, all_together = float(LARGEST_WEIGHT), pairs_together(codec, keys=False) == 0
    share, limited = most / sum_limit(codec, TILE, keys=False), pairs_limited(codec, keys=False)
    binds = share * (TILE // 2 if all_together else 2 * limited) > 1  # else even the largest weights amount to less

    @jit
    def round_weights(p: int, scales: int, out: int) -> None:
        w0, w1 = mul(load_f32(p), load_f32(scales)), mul(load_f32(p + 64), load_f32(scales + 64))
        w2, w3 = mul(load_f32(p + 128), load_f32(scales + 128)), mul(load_f32(p + 192), load_f32(scales + 192))
        top = maximum(maximum(w0, w1), maximum(w2, w3))
        if binds:
            if all_together:
                sums = sum_pairs(add(add(w0, w1), add(w2, w3)))
            else:
                sums = sum_two_pairs(top) if limited == 2 else add(top, swap(top))
            top = maximum(top, mul(sums, splat(share)))
        heaviest = reduce_max(top)
        inverse = splat(most / heaviest if heaviest > SMALLEST else 0.0)
        unit = heaviest / most if heaviest > SMALLEST else 0.0
        n0, n1, n2, n3 = mul(w0, inverse), mul(w1, inverse), mul(w2, inverse), mul(w3, inverse)
        n0, n1, n2, n3 = round_even(n0), round_even(n1), round_even(n2), round_even(n3)
        total = splat(0.0)
        if offset:
            total = fma(load_f32(p), load_f32(scales + 256), total)
            total = fma(load_f32(p + 64), load_f32(scales + 320), total)
            total = fma(load_f32(p + 128), load_f32(scales + 384), total)
            total = fma(load_f32(p + 192), load_f32(scales + 448), total)
            kept = add(add(n0, n1), add(n2, n3))
            lost = fma(kept, splat(-unit), add(add(w0, w1), add(w2, w3)))
            total = fma(lost, splat(middle), total)
            if below > 0:
                total = fma(kept, splat(below * unit), total)
        pack_tile(n0, n1, n2, n3, out)
        put_f32(out + 64, unit)
        put_f32(out + 68, reduce_add(total))

    return round_weights


def _make_weigh_dot(codec: Packed, share: int) -> Any:
    """`make_weigh_side` for whole numbers: weights are rounded for the whole tile."""
    width, round_weights = weigh_width(codec), _make_round(codec)
    wide1, wide2, wide3, wide4 = (make_dot_weigh(codec, rows, width, share) for rows in (1, 2, 3, 4))
    thin1 = make_dot_weigh(codec, 1, 1, share)
    cell, scales, group, offset = codec.cell_bytes, codec.parameters * 32, codec.group, codec.offset

    @jit
    def widen(live: bool, source: int, out: int) -> None:
        """A block's scales and offsets of a group as float32, for a portion or all; 0 where no row weighs it."""
        store_f32(out, load_f16(source) if live else splat(0.0))
        if offset:
            store_f32(out + 256, load_f16(source + 32) if live else splat(0.0))

    @jit
    def weigh_cells(
        rows: int, thin: bool, w: int, blocks: int, at: int, asked: int, out: int, stride: int
    ) -> None:  # fmt: skip
        """Rounded weights over `width` cells, or one where there are no more."""
        f = w + 64
        if thin:
            for i in range(rows):
                thin1(w + i * WEIGHT_BYTES, 0, f + i * WEIGHT_BYTES, blocks, at, asked, out + i * stride, 0)
        elif rows == 1:
            wide1(w, WEIGHT_BYTES, f, blocks, at, asked, out, stride)
        elif rows == 2:
            wide2(w, WEIGHT_BYTES, f, blocks, at, asked, out, stride)
        elif rows == 3:
            wide3(w, WEIGHT_BYTES, f, blocks, at, asked, out, stride)
        else:
            wide4(w, WEIGHT_BYTES, f, blocks, at, asked, out, stride)

    @apart
    def weigh(
        p: int, rows: int, low: int, high: int, blocks: int, split: int, size: int, acc: int, dims: int, scratch: int
    ) -> None:  # fmt: skip
        step, stride = group_of(dims, group), dims * 4
        floats = scratch + PORTION * WEIGHT_BYTES
        following, of_row = slot(blocks, 6), share_of(size, rows) if share > 0 else 0
        ready = -1  # the group whose scales are there
        for r in range(0, rows, PORTION):
            at, gap, live = _rows_that_weigh(p + r * 256, min(PORTION, rows - r))
            own, own_stride = acc + (r + at) * stride, gap * stride
            for first in range(0, dims if live > 0 else 0, step):
                beside = split + dims // 16 * cell + first // step * scales
                for b in range(4 if ready != first else 0):
                    widen(low <= b < high, slot(blocks, b) + beside, floats + b * 64)
                    if share == 0:
                        prefetch(slot(blocks, 4 + b) + beside)
                ready = first
                for i in range(live):
                    if first == 0:
                        ask_for(following, of_row)
                        following += of_row
                    round_weights(p + (r + at + i * gap) * 256, floats, scratch + i * WEIGHT_BYTES)
                for d in range(first, first + step, 16 * width):
                    cells, asked = split + d // 16 * cell, slot(blocks, 7) + (d >> 2) * share
                    thin = d + 16 * width > first + step
                    weigh_cells(live, thin, scratch, blocks, cells, asked, own + d * 4, own_stride)

    return weigh
