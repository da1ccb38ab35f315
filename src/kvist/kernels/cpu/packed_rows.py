"""Any number of query rows over packed blocks: their micro-kernels, group by group of dims; copies of whole blocks."""

from __future__ import annotations

from typing import Any

from kvist.cache.codec.base import AnyCodec, Packed
from kvist.kernels.cpu.attention_rows import make_score_rows, make_weigh_rows
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.packed_tile import make_copy_cell, make_packed_scores, make_packed_weigh
from kvist.kernels.cpu.scalar import prefetch
from kvist.kernels.cpu.vector_memory import ITEMSIZE, load, store_f32

load_f16 = load["f16"]
MOST_FEW = 4  # rows that pass by packed numbers together


def part_bytes(codec: AnyCodec, *, keys: bool) -> Any:
    """A function of the head size: bytes of K, or V, in a block; and one for the header."""
    if not isinstance(codec, Packed):
        itemsize = codec.itemsize
        return jit(lambda dims: 16 * dims * itemsize), jit(lambda dims: 0)
    cell, group = codec.cell_bytes, codec.group
    scales = 0 if keys and codec.channels else codec.parameters * 32
    channel = codec.parameters * 2 if keys and codec.channels else 0

    @jit
    def block(dims: int) -> int:
        groups = dims // group if dims % group == 0 else 1
        return dims // 16 * cell + groups * scales

    @jit
    def header(dims: int) -> int:
        return dims * channel

    return block, header


@jit
def widen(source: int, count: int, out: int) -> None:
    """Put float16 numbers, a multiple of sixteen, as float32."""
    for i in range(0, count, 16):
        store_f32(out + i * 4, load_f16(source + i * 2))


def make_packed_score_rows(codec: AnyCodec) -> Any:
    """Scores of few query rows over a tile: of one to four at once, p rows 256 bytes apart.

    header: of the page; scratch: room for a header as float32.
    """
    if not isinstance(codec, Packed):
        rows_of_floats = make_score_rows(codec.name, True)

        @jit
        def score_floats(
            q: int, rows: int, dims: int, k0: int, k1: int, k2: int, k3: int, p: int, header: int, scratch: int,
            n0: int, n1: int, n2: int, n3: int,
        ) -> None:  # fmt: skip
            rows_of_floats(q, rows, dims, k0, k1, k2, k3, p, n0, n1, n2, n3)

        return score_floats
    scores1, scores2, scores3, scores4 = (make_packed_scores(codec, rows) for rows in (1, 2, 3, 4))
    size, scales, group = codec.cell_bytes, codec.parameters * 32, codec.group
    channels, parameters = codec.channels, codec.parameters

    @jit
    def score_rows(
        q: int, rows: int, dims: int, k0: int, k1: int, k2: int, k3: int, p: int, header: int, scratch: int,
        n0: int, n1: int, n2: int, n3: int,
    ) -> None:  # fmt: skip
        step = group if dims % group == 0 else dims
        if channels:
            step = dims
            widen(header, dims * parameters, scratch)
        for first in range(0, dims, step):
            at, cells = first // 16 * size, step // 16
            beside = dims // 16 * size + first // step * scales
            s0, s1, s2, s3 = k0 + beside, k1 + beside, k2 + beside, k3 + beside
            if channels:
                s0, s1, s2, s3 = scratch, scratch + dims * 4, scratch, scratch
            for r in range(0, rows, MOST_FEW):
                n, qr, pr = min(MOST_FEW, rows - r), q + (r * dims + first) * 4, p + r * 256
                a, b, c, d = k0 + at, k1 + at, k2 + at, k3 + at
                if n == 1:
                    scores1(qr, dims * 4, a, b, c, d, s0, s1, s2, s3, cells, pr, first, n0 + at, n1 + at, n2 + at, n3 + at)
                elif n == 2:
                    scores2(qr, dims * 4, a, b, c, d, s0, s1, s2, s3, cells, pr, first, n0 + at, n1 + at, n2 + at, n3 + at)
                elif n == 3:
                    scores3(qr, dims * 4, a, b, c, d, s0, s1, s2, s3, cells, pr, first, n0 + at, n1 + at, n2 + at, n3 + at)
                else:
                    scores4(qr, dims * 4, a, b, c, d, s0, s1, s2, s3, cells, pr, first, n0 + at, n1 + at, n2 + at, n3 + at)

    return score_rows


def make_packed_weigh_rows(codec: AnyCodec) -> Any:
    """The weighted sum of the sixteen values of a block, added to few rows; scratch: room for its scales."""
    if not isinstance(codec, Packed):
        rows_of_floats = make_weigh_rows(codec.name, True)

        @jit
        def weigh_floats(p: int, rows: int, v: int, acc: int, dims: int, scratch: int, following: int) -> None:
            rows_of_floats(p, rows, v, 16, acc, dims, following)

        return weigh_floats
    width = min(4, codec.group // 16)
    wide1, wide2, wide3, wide4 = (make_packed_weigh(codec, rows, width) for rows in (1, 2, 3, 4))
    narrow1 = make_packed_weigh(codec, 1, 1)
    size, scales, group, parameters = codec.cell_bytes, codec.parameters * 32, codec.group, codec.parameters

    @jit
    def weigh_rows(p: int, rows: int, v: int, acc: int, dims: int, scratch: int, following: int) -> None:
        step, stride = group if dims % group == 0 else dims, dims * 4
        for first in range(0, dims, step):
            beside = dims // 16 * size + first // step * scales
            prefetch(following + beside)
            widen(v + beside, 16 * parameters, scratch)
            d = first
            while d < first + step:
                cell, n_cell = v + d // 16 * size, following + d // 16 * size
                whole = d + 16 * width <= first + step
                for r in range(0, rows, MOST_FEW):
                    n, pr, ar = min(MOST_FEW, rows - r), p + r * 256, acc + r * stride + d * 4
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

    return weigh_rows


def make_copy_part(codec: AnyCodec, *, keys: bool) -> Any:
    """``copy(part, header, dims, out, scratch)``: K, or V, of a block as float32.

    K goes to [dim][16], V to [slot][dims]. scratch: room for scales.
    """
    if not isinstance(codec, Packed):
        get, itemsize = load[codec.name], ITEMSIZE[codec.name]

        @jit
        def copy_floats(part: int, header: int, dims: int, out: int, scratch: int) -> None:
            for i in range(dims):
                store_f32(out + i * 64, get(part + i * 16 * itemsize))

        return copy_floats
    by_lane = keys and not codec.channels
    copy_cell = make_copy_cell(codec, by_lane=by_lane)
    size, scales, group, parameters = codec.cell_bytes, codec.parameters * 32, codec.group, codec.parameters
    channels = keys and codec.channels

    @jit
    def copy_part(part: int, header: int, dims: int, out: int, scratch: int) -> None:
        step = group if dims % group == 0 else dims
        if channels:
            step = dims
            widen(header, dims * parameters, scratch)
        for first in range(0, dims, step):
            beside = part + dims // 16 * size + first // step * scales
            if not keys:
                widen(beside, 16 * parameters, scratch)
            for d in range(first, first + step, 16):
                cell = part + d // 16 * size
                if channels:
                    copy_cell(cell, scratch + d * 4, scratch + (dims + d) * 4, out + d * 64, 64)
                elif keys:
                    copy_cell(cell, beside, beside, out + d * 64, 64)
                else:
                    copy_cell(cell, scratch, scratch + 64, out + d * 4, dims * 4)

    return copy_part
