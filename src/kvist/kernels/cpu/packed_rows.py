"""What both sides of attention over packed pages share: sizes, and queries rounded for whole-number products.

K's side gives scores (`packed_scores`), V's side weighs values (`packed_weigh`). Each has one of three kinds of
micro-kernels: whole numbers (`packed_dot`), small floats unpacked on the way (`packed_tile`), and those of plain floats
(`attention_rows`). Rows pass by in portions of four; each has chains of its own, so portions change no bits.
"""

from __future__ import annotations

from typing import Any

from kvist.cache.codec.base import AnyCodec, Packed
from kvist.cache.codec.factors import LARGEST_QUERY, pairs_together, sum_limit
from kvist.kernels.cpu.math import apart, jit
from kvist.kernels.cpu.packed_factors import put_bytes, sum_pairs, swap
from kvist.kernels.cpu.packed_tile import lift
from kvist.kernels.cpu.places import block_at
from kvist.kernels.cpu.scalar import put_f32, put_i64
from kvist.kernels.cpu.sizes import ASKED_BYTES
from kvist.kernels.cpu.vector import absolute, add, fma, maximum, mul, reduce_add, reduce_max, round_even, splat
from kvist.kernels.cpu.vector_memory import load, load_f32, store_f32

load_f16 = load["f16"]
PORTION = 4  # rows that pass by packed numbers together
WEIGHT_BYTES = 128  # of a row's rounded weights in a tile: 64 bytes, behind them their step and sum
WEIGH_SCRATCH = PORTION * WEIGHT_BYTES + 512  # of a portion; behind them a tile's scales and offsets
BLOCKS_BYTES = 64  # of the eight addresses that `put_blocks` leaves
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


def even_share(k: AnyCodec, v: AnyCodec) -> int:
    """Bytes of a block that is read next that K's side, and V's, ask for with each cell; 0: each asks for its own part.

    Few lines can be under way, so they are asked for evenly, and in the order they lie in memory::

        work        K's side    softmax, row by row    rounding weights, row by row    V's side
        asks for    block 0     block 1                block 2                         block 3

    A side goes through 16 slots x 16 dims at a time, so four times dims / 16 of them for a tile. Scales are left over.
    """
    cells = [codec.cell_bytes for codec in (k, v) if isinstance(codec, Packed) and codec.grid != "e4m3"]
    return sum(cells) // 4 if len(cells) == 2 else 0


@jit
def group_of(dims: int, group: int) -> int:
    """Dims that share a scale."""
    return group if dims & (group - 1) == 0 else dims


@apart
def put_blocks(
    out: int, pages: int, begin: int, low: int, high: int, page_size: int, strides: int, head: int, size: int
) -> None:  # fmt: skip
    """Write down where a tile's blocks low..high-1 lie; the first of them stands for the others, which may not exist.

    Kernels take eight addresses: a tile's four blocks, then those of the next tile, which they ask memory for.
    """
    first = block_at(pages, begin + low * 16, page_size, strides, head, size)
    for b in range(4):
        there = low < b < high
        put_i64(out + b * 8, block_at(pages, begin + b * 16, page_size, strides, head, size) if there else first)


@jit
def query_bytes(dims: int) -> int:
    """Of a row's query as packed keys want it: floats, or a byte of each number, step and sum of each group."""
    return dims * ASKED_BYTES


def _make_lift() -> Any:
    """`make_prepare` for small floats: queries times `packed_tile.lift`."""
    factor = lift()

    @jit
    def prepare(q: int, rows: int, dims: int, header: int, out: int) -> None:
        for at in range(0, rows * dims * 4, 64):
            store_f32(out + at, mul(load_f32(q + at), splat(factor)))

    return prepare


def make_prepare(codec: AnyCodec) -> Any:
    """``prepare(q, rows, dims, header, out)``: round queries to what K's side multiplies.

    A score is the rounded query's. By channels it is multiplied by the header's scales before, so that each page has
    factors of its own; what rounding takes from them is made good for the middle of the codes, and only what a code is
    away from that misses it.
    """
    if not isinstance(codec, Packed):
        return jit(lambda q, rows, dims, header, out: None)
    if codec.grid == "e4m3":
        return _make_lift()
    group, channels, middle = codec.group, codec.channels, codec.middle
    most, all_together = float(LARGEST_QUERY), pairs_together(codec, keys=True) == 0
    limit = sum_limit(codec, 0, keys=True)

    @jit
    def prepare(q: int, rows: int, dims: int, header: int, out: int) -> None:
        step = dims if channels else group_of(dims, group)
        share = splat(most / (limit - step // 4 if all_together else limit))
        for r in range(rows):
            source, row = q + r * dims * 4, out + r * query_bytes(dims)
            for first in range(0, dims, step):
                top, sums, offsets, factors, codes = splat(0.0), splat(0.0), splat(0.0), splat(0.0), splat(0.0)
                for d in range(first, first + step, 16):
                    x = load_f32(source + d * 4)
                    if channels:
                        offsets = fma(x, load_f16(header + (dims + d) * 2), offsets)
                        x = mul(x, load_f16(header + d * 2))
                        factors = add(factors, x)
                    x = absolute(x)
                    top = maximum(top, x)
                    sums = add(sums, x) if all_together else maximum(sums, add(x, swap(x)))
                longest = reduce_max(maximum(top, mul(sum_pairs(sums) if all_together else sums, share)))
                inverse = splat(most / longest if longest > SMALLEST else 0.0)
                for d in range(first, first + step, 16):
                    x = load_f32(source + d * 4)
                    if channels:
                        x = mul(x, load_f16(header + d * 2))
                    code = round_even(mul(x, inverse))
                    codes = add(codes, code)
                    put_bytes(row + d, code)
                beside, unit = row + dims + first // step * 8, longest / most if longest > SMALLEST else 0.0
                total = reduce_add(codes) * unit
                put_f32(beside, unit)
                if channels:
                    total = reduce_add(offsets) + middle * (reduce_add(factors) - total)
                put_f32(beside + 4, total)

    return prepare
