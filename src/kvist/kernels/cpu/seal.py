"""Packing pages that a step has filled: codes, scales and offsets as `cache.codec.packed` defines them.

One piece is one KV head of one page, from its exact page to its sealed one; nothing is read that another piece writes.
A block of K or V is 16 slots; what shares a scale is

* a slot's numbers of a group of dims. In K these are a lane of the group's vectors, so sixteen slots are fitted at
  once; V's vectors are dims, so each slot's smallest and largest are folded over lanes.
* by channels (KIVI): a dim's numbers in all slots of the page.

Scratch of a thread, float32: numbers of a block [16 vectors of d]; widened scales and offsets.
"""

from __future__ import annotations

from typing import Any

from kvist.cache.codec import any_codec, codec
from kvist.cache.codec.base import AnyCodec, Packed
from kvist.cache.codec.packed import bell_scale
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.packed_rows import group_of, part_bytes
from kvist.kernels.cpu.places import place_of
from kvist.kernels.cpu.scalar import arg, get_i32, put_f32, slot
from kvist.kernels.cpu.seal_codes import make_put_cell
from kvist.kernels.cpu.vector import div, fma, maximum, minimum, mul, reduce_add, reduce_max, splat, sqrt, sub
from kvist.kernels.cpu.vector_memory import ITEMSIZE, load, load_f32, store, store_f32


def make_seal_part(exact: str, packed: AnyCodec, *, keys: bool) -> Any:
    """``seal(source, apart, header, target, apart_target, blocks, dims, scratch)``: K, or V, of one head of a page.

    source, target: the first block's part, and how far the next one's is; header: where a page's own scales go.
    """
    get = load[exact]
    itemsize = ITEMSIZE[exact]
    if not isinstance(packed, Packed):
        put, size = store[packed.name], ITEMSIZE[packed.name]

        @jit
        def convert(
            source: int, apart: int, header: int, target: int, apart_target: int, blocks: int, dims: int, scratch: int
        ) -> None:
            for b in range(blocks):
                for i in range(dims):
                    numbers = get(source + b * apart + i * 16 * itemsize)
                    put(target + b * apart_target + i * 16 * size, numbers)

        return convert
    if keys and packed.channels:
        return _make_seal_channels(exact, packed)
    cell_bytes, group, parameters = packed.cell_bytes, packed.group, packed.parameters
    put_cell, fit = make_put_cell(packed, keys=keys), _make_fit(packed)
    spread = _make_spread(packed, keys=keys)

    @jit
    def seal(
        source: int, apart: int, header: int, target: int, apart_target: int, blocks: int, dims: int, scratch: int
    ) -> None:
        step = group_of(dims, group)
        low, high, scales = scratch + dims * 64, scratch + dims * 64 + 64, scratch + dims * 64 + 128
        for b in range(blocks):
            for i in range(dims):  # K [dim][16] or V [16][dims]
                store_f32(scratch + i * 64, get(source + b * apart + i * 16 * itemsize))
            block = target + b * apart_target
            for first in range(0, dims, step):
                beside = block + dims // 16 * cell_bytes + first // step * parameters * 32
                spread(scratch, first, step, dims, low, high)
                fit(low, high, 16, beside, beside + 32, scales)
                for d in range(first, first + step, 16):
                    cell = block + d // 16 * cell_bytes
                    if keys:
                        put_cell(scratch + d * 64, 64, scales, scales + 64, cell)
                    else:
                        put_cell(scratch + d * 4, dims * 4, scales, scales + 64, cell)

    return seal


def _make_seal_channels(exact: str, packed: Packed) -> Any:
    """K by channels: a scale for each dim, over all slots of the page."""
    get, itemsize, cell_bytes = load[exact], ITEMSIZE[exact], packed.cell_bytes
    put_cell, fit = make_put_cell(packed, keys=True), _make_fit(packed)

    @jit
    def seal(
        source: int, apart: int, header: int, target: int, apart_target: int, blocks: int, dims: int, scratch: int
    ) -> None:
        low, high = scratch + dims * 64, scratch + dims * 68
        scales = scratch + dims * 72
        for d in range(dims):
            least = most = get(source + d * 16 * itemsize)
            for b in range(1, blocks):
                numbers = get(source + b * apart + d * 16 * itemsize)
                least, most = minimum(least, numbers), maximum(most, numbers)
            put_f32(low + d * 4, -reduce_max(sub(splat(0.0), least)))
            put_f32(high + d * 4, reduce_max(most))
        fit(low, high, dims, header, header + dims * 2, scales)
        for b in range(blocks):
            for i in range(dims):
                store_f32(scratch + i * 64, get(source + b * apart + i * 16 * itemsize))
            for d in range(0, dims, 16):
                cell = target + b * apart_target + d // 16 * cell_bytes
                put_cell(scratch + d * 64, 64, scales + d * 4, scales + (dims + d) * 4, cell)

    return seal


def _make_spread(packed: Packed, *, keys: bool) -> Any:
    """What scales are made of, for each of the sixteen slots of a block: smallest and largest, or the mean square."""
    bell, e4m3 = packed.grid == "bell", packed.grid == "e4m3"

    @jit
    def spread(numbers: int, first: int, step: int, dims: int, low: int, high: int) -> None:
        if keys:
            least = most = load_f32(numbers + first * 64)
            total = splat(0.0)
            for d in range(first, first + step):
                x = load_f32(numbers + d * 64)
                least, most, total = minimum(least, x), maximum(most, x), fma(x, x, total)
            if e4m3:
                most = maximum(most, sub(splat(0.0), least))
            store_f32(low, least)
            store_f32(high, div(total, splat(step)) if bell else most)
            return
        for s in range(16):
            at = numbers + (s * dims + first) * 4
            least = most = load_f32(at)
            total = splat(0.0)
            for d in range(0, step, 16):
                x = load_f32(at + d * 4)
                least, most, total = minimum(least, x), maximum(most, x), fma(x, x, total)
            if e4m3:
                most = maximum(most, sub(splat(0.0), least))
            put_f32(low + s * 4, -reduce_max(sub(splat(0.0), least)))
            put_f32(high + s * 4, reduce_add(total) / step if bell else reduce_max(most))

    return spread


def _make_fit(packed: Packed) -> Any:
    """``fit(low, high, count, scales, offsets, out)``: float16 where they are kept, the same as float32 in `out`.

    count: a multiple of sixteen; out: the scales, then the offsets.
    """
    put, get = store["f16"], load["f16"]
    bits, kind = packed.bits, packed.grid
    steps, unit = float((1 << bits) - 1), bell_scale(bits) if kind == "bell" else 1.0

    @jit
    def fit(low: int, high: int, count: int, scales: int, offsets: int, out: int) -> None:
        for i in range(0, count, 16):
            least, most = load_f32(low + i * 4), load_f32(high + i * 4)
            if kind == "bell":
                scale = mul(sqrt(most), splat(unit))
            elif kind == "e4m3":
                scale = mul(most, splat(256.0 / 448.0))
            else:
                scale = div(sub(most, least), splat(steps))
            put(scales + i * 2, scale)
            scale = get(scales + i * 2)
            store_f32(out + i * 4, scale)
            if kind == "even":
                put(offsets + i * 2, least)
                store_f32(out + (count + i) * 4, get(offsets + i * 2))
            else:
                store_f32(out + (count + i) * 4, splat(0.0))

    return fit


def make_unit(name: str) -> Any:
    """The entry of the unit: one KV head of one page. name: the type of exact pages, then K's codec and V's.

    Arguments: where the layer lies in exact page 0, bytes from page to page, from extent to extent, their group, the
    same four of sealed pages, KV heads, head size, page ids int32 [groups][n], n (set by the context).
    """
    exact, k, v = name.split("_")
    itemsize = codec(exact).itemsize
    k_codec, v_codec = any_codec(k), any_codec(v)
    (k_bytes, k_header), (v_bytes, v_header) = part_bytes(k_codec, keys=True), part_bytes(v_codec, keys=False)
    seal_k, seal_v = make_seal_part(exact, k_codec, keys=True), make_seal_part(exact, v_codec, keys=False)

    def entry(ctx: int, op: int, piece: int, tid: int) -> int:
        kv_heads, dims, page_size = arg(op, 8), arg(op, 9), slot(ctx, abi.PAGE_SIZE)
        number, head, count = piece // kv_heads, piece % kv_heads, slot(ctx, abi.FULL)
        ids = slot(ctx, abi.FULL_PAGES)
        source = place_of(op, 0, get_i32(ids + (arg(op, 3) * count + number) * 4), head, page_size)
        target = place_of(op, 4, get_i32(ids + (arg(op, 7) * count + number) * 4), head, page_size)
        blocks, plain = page_size // 16, 16 * dims * itemsize
        split, top = k_bytes(dims), k_header(dims) + v_header(dims)
        size = split + v_bytes(dims)
        scratch = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        seal_k(source, 2 * plain, target, target + top, size, blocks, dims, scratch)
        seal_v(source + plain, 2 * plain, target, target + top + split, size, blocks, dims, scratch)
        return 0

    return entry
