"""Any number of query rows over the packed blocks of a tile: K's side gives scores, V's side weighs values.

Each side has one of three kinds of micro-kernels: whole numbers for evenly spaced codes (`packed_dot`), floats unpacked
on the way for other grids (`packed_tile`), and those of plain floats (`attention_rows`). Rows pass by in portions of
four; each has chains of its own, so portions change no bits.
"""

from __future__ import annotations

from typing import Any

from kvist.cache.codec.base import AnyCodec, Packed
from kvist.kernels.cpu.attention_rows import make_score_rows, make_weigh_rows
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.packed_dot import LARGEST, make_dot_scores, make_dot_weigh, split_bytes
from kvist.kernels.cpu.packed_tile import make_packed_scores, make_packed_weigh
from kvist.kernels.cpu.scalar import prefetch, put_f32
from kvist.kernels.cpu.vector import absolute, fma, maximum, mul, reduce_add, reduce_max, round_even, splat
from kvist.kernels.cpu.vector_memory import load, load_f32, store_f32

load_f16 = load["f16"]
PORTION = 4  # rows that pass by packed numbers together
WEIGHT_BYTES = 192  # of a row's rounded weights in a tile: 64 high bytes, 64 low ones, step and sum
SMALLEST = 1e-30  # what is smaller counts as 0, so that its inverse is finite


def part_bytes(codec: AnyCodec, *, keys: bool) -> tuple[Any, Any]:
    """Functions of the head size: bytes of K, or V, in a block; and in a head's header."""
    if not isinstance(codec, Packed):
        itemsize = codec.itemsize
        return jit(lambda dims: 16 * dims * itemsize), jit(lambda dims: 0)
    cell, group = codec.cell_bytes, codec.group
    scales = 0 if keys and codec.channels else codec.parameters * 32
    channel = codec.parameters * 2 if keys and codec.channels else 0

    @jit
    def block(dims: int) -> int:
        return dims // 16 * cell + dims // group_of(dims, group) * scales

    @jit
    def header(dims: int) -> int:
        return dims * channel

    return block, header


@jit
def group_of(dims: int, group: int) -> int:
    """Dims that share a scale."""
    return group if dims % group == 0 else dims


@jit
def widen(source: int, count: int, out: int) -> None:
    """Put float16 numbers, a multiple of sixteen, as float32."""
    for i in range(0, count, 16):
        store_f32(out + i * 4, load_f16(source + i * 2))


@jit
def query_bytes(dims: int) -> int:
    """Of a row's rounded query: high bytes, low ones, step and sum of each group."""
    return 2 * dims + dims // 16 * 8


def make_prepare(codec: AnyCodec) -> Any:
    """``prepare(q, rows, dims, header, out)``: round queries to what K's side multiplies.

    By channels they are multiplied by the header's scales before, so that each page has factors of its own.
    """
    if not isinstance(codec, Packed) or codec.grid != "even":
        return jit(lambda q, rows, dims, header, out: None)
    group, channels = codec.group, codec.channels

    @jit
    def prepare(q: int, rows: int, dims: int, header: int, out: int) -> None:
        step = dims if channels else group_of(dims, group)
        for r in range(rows):
            source, row = q + r * dims * 4, out + r * query_bytes(dims)
            for first in range(0, dims, step):
                top, total = splat(0.0), splat(0.0)
                for d in range(first, first + step, 16):
                    x = load_f32(source + d * 4)
                    if channels:
                        total = fma(x, load_f16(header + (dims + d) * 2), total)
                        x = mul(x, load_f16(header + d * 2))
                    else:
                        total = fma(x, splat(1.0), total)
                    top = maximum(top, absolute(x))
                largest = reduce_max(top)
                inverse = splat(LARGEST / largest if largest > SMALLEST else 0.0)
                for d in range(first, first + step, 16):
                    x = load_f32(source + d * 4)
                    if channels:
                        x = mul(x, load_f16(header + d * 2))
                    split_bytes(round_even(mul(x, inverse)), row + d, row + dims + d)
                beside = row + 2 * dims + first // step * 8
                put_f32(beside, largest / LARGEST if largest > SMALLEST else 0.0)
                put_f32(beside + 4, reduce_add(total))

    return prepare


def make_score_side(codec: AnyCodec) -> Any:
    """``score(q, qb, rows, dims, k0..k3, p, n0..n3)``: scores over the four K blocks, p rows 256 bytes apart.

    q: float32, qb: as `make_prepare` rounded them; n: blocks that are read next.
    """
    if not isinstance(codec, Packed):
        rows_of_floats = make_score_rows(codec.name, True)

        @jit
        def score_floats(
            q: int, qb: int, rows: int, dims: int, k0: int, k1: int, k2: int, k3: int, p: int, n0: int, n1: int,
            n2: int, n3: int,
        ) -> None:  # fmt: skip
            rows_of_floats(q, rows, dims, k0, k1, k2, k3, p, n0, n1, n2, n3)

        return score_floats
    if codec.grid != "even":
        return _make_score_grid(codec)
    dot1, dot2, dot3, dot4 = (make_dot_scores(codec, rows) for rows in (1, 2, 3, 4))
    size, scales, group, channels = codec.cell_bytes, codec.parameters * 32, codec.group, codec.channels

    @jit
    def score_pair(
        qb: int, rows: int, dims: int, first: int, step: int, k0: int, k1: int, p: int, n0: int, n1: int
    ) -> None:
        """Two blocks over the group of dims that begins at `first`."""
        at, beside = first // 16 * size, dims // 16 * size + first // step * scales
        stride, cells, s0, s1 = query_bytes(dims), step // 16, k0 + beside, k1 + beside
        for r in range(0, rows, PORTION):
            n, row, out = min(PORTION, rows - r), qb + r * stride, p + r * 256
            q, f = row + first, row + 2 * dims + first // step * 8
            if n == 1:
                dot1(q, stride, dims, f, k0 + at, k1 + at, s0, s1, cells, out, first, n0 + at, n1 + at)
            elif n == 2:
                dot2(q, stride, dims, f, k0 + at, k1 + at, s0, s1, cells, out, first, n0 + at, n1 + at)
            elif n == 3:
                dot3(q, stride, dims, f, k0 + at, k1 + at, s0, s1, cells, out, first, n0 + at, n1 + at)
            else:
                dot4(q, stride, dims, f, k0 + at, k1 + at, s0, s1, cells, out, first, n0 + at, n1 + at)

    @jit
    def score(
        q: int, qb: int, rows: int, dims: int, k0: int, k1: int, k2: int, k3: int, p: int, n0: int, n1: int, n2: int,
        n3: int,
    ) -> None:  # fmt: skip
        step = dims if channels else group_of(dims, group)
        for first in range(0, dims, step):
            score_pair(qb, rows, dims, first, step, k0, k1, p, n0, n1)
            score_pair(qb, rows, dims, first, step, k2, k3, p + 128, n2, n3)

    return score


def _make_score_grid(codec: Packed) -> Any:
    """`make_score_side` for codes that are not evenly spaced."""
    scores1, scores2, scores3, scores4 = (make_packed_scores(codec, rows) for rows in (1, 2, 3, 4))
    size, group = codec.cell_bytes, codec.group

    @jit
    def score(
        q: int, qb: int, rows: int, dims: int, k0: int, k1: int, k2: int, k3: int, p: int, n0: int, n1: int, n2: int,
        n3: int,
    ) -> None:  # fmt: skip
        step = group_of(dims, group)
        for first in range(0, dims, step):
            at, cells, stride = first // 16 * size, step // 16, dims * 4
            beside = dims // 16 * size + first // step * 32
            a, b, c, d, na, nb, nc, nd = k0 + at, k1 + at, k2 + at, k3 + at, n0 + at, n1 + at, n2 + at, n3 + at
            s0, s1, s2, s3 = k0 + beside, k1 + beside, k2 + beside, k3 + beside
            for r in range(0, rows, PORTION):
                n, x, out = min(PORTION, rows - r), q + (r * dims + first) * 4, p + r * 256
                if n == 1:
                    scores1(x, stride, a, b, c, d, s0, s1, s2, s3, cells, out, first, na, nb, nc, nd)
                elif n == 2:
                    scores2(x, stride, a, b, c, d, s0, s1, s2, s3, cells, out, first, na, nb, nc, nd)
                elif n == 3:
                    scores3(x, stride, a, b, c, d, s0, s1, s2, s3, cells, out, first, na, nb, nc, nd)
                else:
                    scores4(x, stride, a, b, c, d, s0, s1, s2, s3, cells, out, first, na, nb, nc, nd)

    return score


def make_weigh_side(codec: AnyCodec) -> Any:
    """``weigh(p, rows, low, high, v0..v3, acc, dims, scratch, n0..n3)``: add the values of the blocks low..high-1.

    scratch: room for a portion's rounded weights, or a block's scales; n: blocks that are read next.
    """
    if not isinstance(codec, Packed):
        rows_of_floats = make_weigh_rows(codec.name, True)

        @jit
        def one_block(p: int, rows: int, v: int, acc: int, dims: int, scratch: int, following: int) -> None:
            rows_of_floats(p, rows, v, 16, acc, dims, following)

    elif codec.grid != "even":
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
    """One block of codes that are not evenly spaced."""
    width = min(4, codec.group // 16)
    wide1, wide2, wide3, wide4 = (make_packed_weigh(codec, rows, width) for rows in (1, 2, 3, 4))
    narrow1 = make_packed_weigh(codec, 1, 1)
    size, group = codec.cell_bytes, codec.group

    @jit
    def one_block(p: int, rows: int, v: int, acc: int, dims: int, scratch: int, following: int) -> None:
        step, stride = group_of(dims, group), dims * 4
        for first in range(0, dims, step):
            beside = dims // 16 * size + first // step * 32
            prefetch(following + beside)
            widen(v + beside, 16, scratch)
            d = first
            while d < first + step:
                cell, n_cell = v + d // 16 * size, following + d // 16 * size
                whole = d + 16 * width <= first + step
                for r in range(0, rows, PORTION):
                    n, pr, ar = min(PORTION, rows - r), p + r * 256, acc + r * stride + d * 4
                    if not whole:
                        for i in range(n):
                            narrow1(pr + i * 256, cell, scratch, ar + i * stride, stride, n_cell)
                    elif n == 1:
                        wide1(pr, cell, scratch, ar, stride, n_cell)
                    elif n == 2:
                        wide2(pr, cell, scratch, ar, stride, n_cell)
                    elif n == 3:
                        wide3(pr, cell, scratch, ar, stride, n_cell)
                    else:
                        wide4(pr, cell, scratch, ar, stride, n_cell)
                d += 16 * width if whole else 16

    return one_block


def _make_weigh_dot(codec: Packed) -> Any:
    """`make_weigh_side` for evenly spaced codes: weights are rounded for the whole tile."""
    wide1, wide2, wide3, wide4 = (make_dot_weigh(codec, rows, 2) for rows in (1, 2, 3, 4))
    thin1, thin2, thin3, thin4 = (make_dot_weigh(codec, rows, 1) for rows in (1, 2, 3, 4))
    size, scales, group = codec.cell_bytes, codec.parameters * 32, codec.group

    @jit
    def round_weights(
        p: int, low: int, high: int, s0: int, s1: int, s2: int, s3: int, out: int
    ) -> None:
        """A row's weights times the scales of the blocks low..high-1; those of other blocks are 0."""
        zero = splat(0.0)
        w0 = mul(load_f32(p), load_f16(s0)) if low <= 0 < high else zero
        w1 = mul(load_f32(p + 64), load_f16(s1)) if low <= 1 < high else zero
        w2 = mul(load_f32(p + 128), load_f16(s2)) if low <= 2 < high else zero
        w3 = mul(load_f32(p + 192), load_f16(s3)) if low <= 3 < high else zero
        total = zero
        if low <= 0 < high:
            total = fma(load_f32(p), load_f16(s0 + 32), total)
        if low <= 1 < high:
            total = fma(load_f32(p + 64), load_f16(s1 + 32), total)
        if low <= 2 < high:
            total = fma(load_f32(p + 128), load_f16(s2 + 32), total)
        if low <= 3 < high:
            total = fma(load_f32(p + 192), load_f16(s3 + 32), total)
        largest = reduce_max(maximum(maximum(w0, w1), maximum(w2, w3)))
        inverse = splat(LARGEST / largest if largest > SMALLEST else 0.0)
        split_bytes(round_even(mul(w0, inverse)), out, out + 64)
        split_bytes(round_even(mul(w1, inverse)), out + 16, out + 80)
        split_bytes(round_even(mul(w2, inverse)), out + 32, out + 96)
        split_bytes(round_even(mul(w3, inverse)), out + 48, out + 112)
        put_f32(out + 128, largest / LARGEST if largest > SMALLEST else 0.0)
        put_f32(out + 132, reduce_add(total))

    @jit
    def weigh(
        p: int, rows: int, low: int, high: int, v0: int, v1: int, v2: int, v3: int, acc: int, dims: int, scratch: int,
        n0: int, n1: int, n2: int, n3: int,
    ) -> None:  # fmt: skip
        step, stride, f = group_of(dims, group), dims * 4, scratch + 128
        for first in range(0, dims, step):
            at = dims // 16 * size + first // step * scales
            prefetch(n0 + at)
            prefetch(n1 + at)
            prefetch(n2 + at)
            prefetch(n3 + at)
            for r in range(0, rows, PORTION):
                n = min(PORTION, rows - r)
                for i in range(n):
                    place = p + (r + i) * 256
                    round_weights(place, low, high, v0 + at, v1 + at, v2 + at, v3 + at, scratch + i * WEIGHT_BYTES)
                for d in range(first, first + step, 32):
                    c, out = d // 16 * size, acc + r * stride + d * 4
                    a0, a1, a2, a3 = v0 + c, v1 + c, v2 + c, v3 + c
                    b0, b1, b2, b3 = n0 + c, n1 + c, n2 + c, n3 + c
                    if d + 32 > first + step:
                        if n == 1:
                            thin1(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, b0, b1, b2, b3)
                        elif n == 2:
                            thin2(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, b0, b1, b2, b3)
                        elif n == 3:
                            thin3(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, b0, b1, b2, b3)
                        else:
                            thin4(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, b0, b1, b2, b3)
                    elif n == 1:
                        wide1(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, b0, b1, b2, b3)
                    elif n == 2:
                        wide2(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, b0, b1, b2, b3)
                    elif n == 3:
                        wide3(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, b0, b1, b2, b3)
                    else:
                        wide4(scratch, WEIGHT_BYTES, f, a0, a1, a2, a3, out, stride, b0, b1, b2, b3)

    return weigh
