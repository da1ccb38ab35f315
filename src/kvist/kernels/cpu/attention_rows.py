"""The micro-kernels of attention for any number of query rows, and the copy of a tile that many rows share."""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu.attention_tile import BLOCKS, make_scores, make_weigh
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.vector_memory import ITEMSIZE, load, store_f32


def make_score_rows(dtype: str, ahead: int, count: int = BLOCKS) -> Any:
    """Scores of any number of query rows over a tile, p rows 256 bytes apart. ahead, count: see `make_scores`."""
    scores6, scores4, scores3, scores2, scores1 = (make_scores(dtype, rows, ahead, count) for rows in (6, 4, 3, 2, 1))

    @jit
    def score_rows(
        q: int, rows: int, dims: int, k0: int, k1: int, k2: int, k3: int, p: int, n0: int, n1: int, n2: int, n3: int
    ) -> None:
        stride = dims * 4
        while rows > 0:
            if rows >= 6:
                scores6(q, stride, k0, k1, k2, k3, dims, p, n0, n1, n2, n3)
                n = 6
            elif rows >= 4:
                scores4(q, stride, k0, k1, k2, k3, dims, p, n0, n1, n2, n3)
                n = 4
            elif rows == 3:
                scores3(q, stride, k0, k1, k2, k3, dims, p, n0, n1, n2, n3)
                n = 3
            elif rows == 2:
                scores2(q, stride, k0, k1, k2, k3, dims, p, n0, n1, n2, n3)
                n = 2
            else:
                scores1(q, stride, k0, k1, k2, k3, dims, p, n0, n1, n2, n3)
                n = 1
            rows -= n
            q += n * stride
            p += n * 256

    return score_rows


def make_weigh_rows(dtype: str, ahead: bool) -> Any:
    """The weighted sum of the values of `slots` slots, added to any number of rows."""
    itemsize = ITEMSIZE[dtype]
    wide6, wide4, wide3, wide2, wide1 = (make_weigh(dtype, rows, 4, ahead) for rows in (6, 4, 3, 2, 1))
    narrow6, narrow1 = make_weigh(dtype, 6, 1, False), make_weigh(dtype, 1, 1, False)

    @jit
    def weigh_rows(p: int, rows: int, v: int, slots: int, acc: int, dims: int, following: int) -> None:
        stride, v_stride = dims * 4, dims * itemsize
        while rows > 0:
            n = 6 if rows >= 6 else 4 if rows >= 4 else rows
            d = 0
            while d + 64 <= dims:
                vd, ad, fd = v + d * itemsize, acc + d * 4, following + d * itemsize
                if n == 6:
                    wide6(p, vd, v_stride, slots, ad, stride, fd)
                elif n == 4:
                    wide4(p, vd, v_stride, slots, ad, stride, fd)
                elif n == 3:
                    wide3(p, vd, v_stride, slots, ad, stride, fd)
                elif n == 2:
                    wide2(p, vd, v_stride, slots, ad, stride, fd)
                else:
                    wide1(p, vd, v_stride, slots, ad, stride, fd)
                d += 64
            while d < dims:
                vd, ad, fd = v + d * itemsize, acc + d * 4, following + d * itemsize
                if n == 6:
                    narrow6(p, vd, v_stride, slots, ad, stride, fd)
                else:
                    for r in range(n):
                        narrow1(p + r * 256, vd, v_stride, slots, ad + r * stride, stride, fd)
                d += 16
            rows -= n
            p += n * 256
            acc += n * stride

    return weigh_rows


def make_copy_tile(dtype: str) -> Any:
    """Copy the four blocks of a tile as float32: K blocks one after the other to k, V blocks to v (64 slots on end)."""
    itemsize, get = ITEMSIZE[dtype], load[dtype]

    @jit
    def copy_block(block: int, dims: int, k: int, v: int) -> None:
        for i in range(dims):
            store_f32(k + i * 64, get(block + i * 16 * itemsize))
        for i in range(dims, 2 * dims):
            store_f32(v + (i - dims) * 64, get(block + i * 16 * itemsize))

    @jit
    def copy_tile(b0: int, b1: int, b2: int, b3: int, dims: int, k: int, v: int) -> None:
        size = dims * 64
        copy_block(b0, dims, k, v)
        copy_block(b1, dims, k + size, v + size)
        copy_block(b2, dims, k + 2 * size, v + 2 * size)
        copy_block(b3, dims, k + 3 * size, v + 3 * size)

    return copy_tile
