"""K's side of attention over packed pages: scores of any number of query rows over a tile (see `packed_rows`)."""

from __future__ import annotations

from typing import Any

from kvist.cache.codec.base import AnyCodec, Packed
from kvist.kernels.cpu.attention_rows import make_score_rows
from kvist.kernels.cpu.math import apart, jit
from kvist.kernels.cpu.packed_dot import make_dot_scores
from kvist.kernels.cpu.packed_rows import PORTION, group_of, query_bytes
from kvist.kernels.cpu.packed_tile import make_packed_scores
from kvist.kernels.cpu.scalar import slot


def make_score_side(codec: AnyCodec, share: int) -> Any:
    """``score(q, qb, rows, dims, blocks, p)``: scores over four K blocks, p rows 256 bytes apart.

    q: float32, qb: as `make_prepare` rounded them; blocks: see `packed_rows.put_blocks`; share: see `even_share`.
    """
    if not isinstance(codec, Packed):
        rows_of_floats = make_score_rows(codec.name, 4)

        @jit
        def score_floats(q: int, qb: int, rows: int, dims: int, blocks: int, p: int) -> None:
            k0, k1, k2, k3 = slot(blocks, 0), slot(blocks, 1), slot(blocks, 2), slot(blocks, 3)
            n0, n1, n2, n3 = slot(blocks, 4), slot(blocks, 5), slot(blocks, 6), slot(blocks, 7)
            rows_of_floats(q, rows, dims, k0, k1, k2, k3, p, n0, n1, n2, n3)

        return score_floats
    if codec.grid == "e4m3":
        return _make_score_grid(codec)
    dot1, dot2, dot3, dot4 = (make_dot_scores(codec, rows, share) for rows in (1, 2, 3, 4))
    size, scales, group, channels = codec.cell_bytes, codec.parameters * 32, codec.group, codec.channels

    @apart
    def score(q: int, qb: int, rows: int, dims: int, blocks: int, p: int) -> None:
        step, stride = dims if channels else group_of(dims, group), query_bytes(dims)
        for first in range(0, dims, step):
            at, cells, beside = first // 16 * size, step // 16, dims // 16 * size + first // step * scales
            asked = slot(blocks, 4) + (first >> 2) * share
            for r in range(0, rows, PORTION):
                n, row, out = min(PORTION, rows - r), qb + r * stride, p + r * 256
                x, f = row + first, row + dims + first // step * 8
                if n == 1:
                    dot1(x, stride, f, blocks, at, beside, cells, out, first, asked)
                elif n == 2:
                    dot2(x, stride, f, blocks, at, beside, cells, out, first, asked)
                elif n == 3:
                    dot3(x, stride, f, blocks, at, beside, cells, out, first, asked)
                else:
                    dot4(x, stride, f, blocks, at, beside, cells, out, first, asked)

    return score


def _make_score_grid(codec: Packed) -> Any:
    """`make_score_side` for small floats."""
    scores1, scores2, scores3, scores4 = (make_packed_scores(codec, rows) for rows in (1, 2, 3, 4))
    size, group = codec.cell_bytes, codec.group

    @apart
    def score(q: int, qb: int, rows: int, dims: int, blocks: int, p: int) -> None:
        step, stride = group_of(dims, group), dims * 4
        for first in range(0, dims, step):
            at, beside, cells = first // 16 * size, dims // 16 * size + first // step * 32, step // 16
            k0, k1, k2, k3 = slot(blocks, 0), slot(blocks, 1), slot(blocks, 2), slot(blocks, 3)
            n0, n1, n2, n3 = slot(blocks, 4) + at, slot(blocks, 5) + at, slot(blocks, 6) + at, slot(blocks, 7) + at
            a, b, c, d = k0 + at, k1 + at, k2 + at, k3 + at
            s0, s1, s2, s3 = k0 + beside, k1 + beside, k2 + beside, k3 + beside
            for r in range(0, rows, PORTION):
                n, x, out = min(PORTION, rows - r), qb + (r * dims + first) * 4, p + r * 256
                if n == 1:
                    scores1(x, stride, a, b, c, d, s0, s1, s2, s3, cells, out, first, n0, n1, n2, n3)
                elif n == 2:
                    scores2(x, stride, a, b, c, d, s0, s1, s2, s3, cells, out, first, n0, n1, n2, n3)
                elif n == 3:
                    scores3(x, stride, a, b, c, d, s0, s1, s2, s3, cells, out, first, n0, n1, n2, n3)
                else:
                    scores4(x, stride, a, b, c, d, s0, s1, s2, s3, cells, out, first, n0, n1, n2, n3)

    return score
