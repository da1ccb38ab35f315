"""K's side of attention over packed pages: scores of any number of query rows over a tile (see `packed_rows`)."""

from __future__ import annotations

from typing import Any

from kvist.cache.codec.base import AnyCodec, Packed
from kvist.kernels.cpu.attention_rows import make_score_rows
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.packed_dot import make_dot_scores
from kvist.kernels.cpu.packed_products import in_pairs
from kvist.kernels.cpu.packed_rows import PORTION, ask_for, group_of, part_bytes, query_bytes
from kvist.kernels.cpu.packed_tile import make_packed_scores


def asks_for_two(codec: AnyCodec) -> bool:
    """Whether K's side asks for n0 and n1 alone: the other two have their turns later, for few lines can be under way.

    Where registers hold eight lanes a tile takes so long that what follows can be asked for evenly.
    """
    return in_pairs() and isinstance(codec, Packed) and codec.grid != "e4m3"


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
    if codec.grid == "e4m3":
        return _make_score_grid(codec)
    dot1, dot2, dot3, dot4 = (make_dot_scores(codec, rows) for rows in (1, 2, 3, 4))
    size, scales, group, channels = codec.cell_bytes, codec.parameters * 32, codec.group, codec.channels
    spread = asks_for_two(codec)
    (block, _), parts = part_bytes(codec, keys=True), codec.factor_bytes

    @jit
    def score(
        q: int, qb: int, rows: int, dims: int, k0: int, k1: int, k2: int, k3: int, p: int, n0: int, n1: int, n2: int,
        n3: int,
    ) -> None:  # fmt: skip
        step, stride = dims if channels else group_of(dims, group), query_bytes(dims)
        for first in range(0, dims, step):
            at, cells, beside = first // 16 * size, step // 16, dims // 16 * size + first // step * scales
            a, b, c, d, na, nb = k0 + at, k1 + at, k2 + at, k3 + at, n0 + at, n1 + at
            s0, s1, s2, s3 = k0 + beside, k1 + beside, k2 + beside, k3 + beside
            for r in range(0, rows, PORTION):
                n, row, out = min(PORTION, rows - r), qb + r * stride, p + r * 256
                x, f = row + first * parts, row + 2 * dims + first // step * 8
                if n == 1:
                    dot1(x, stride, f, a, b, c, d, s0, s1, s2, s3, cells, out, first, na, nb)
                elif n == 2:
                    dot2(x, stride, f, a, b, c, d, s0, s1, s2, s3, cells, out, first, na, nb)
                elif n == 3:
                    dot3(x, stride, f, a, b, c, d, s0, s1, s2, s3, cells, out, first, na, nb)
                else:
                    dot4(x, stride, f, a, b, c, d, s0, s1, s2, s3, cells, out, first, na, nb)
        if not spread:
            ask_for(n2, block(dims))
            ask_for(n3, block(dims))

    return score


def _make_score_grid(codec: Packed) -> Any:
    """`make_score_side` for small floats."""
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
