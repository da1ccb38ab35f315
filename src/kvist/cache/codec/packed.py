"""Packed numbers, in plain NumPy: the definition that the kernels follow.

Codes lie in *cells* of 16 vectors of 16 lanes; in K a vector is a dim and its lanes are slots, in V a vector is a slot
and its lanes are dims. Four vectors are a *quad*: a word (uint32) in each lane, a code in each byte, as instructions
that multiply bytes four at a time want them. So a kernel unpacks whole quads, whatever the number of bits::

    8 bits    quads 0, 1, 2, 3, one word a lane each                                (e4m3: 16 vectors of 16 bytes)
    4 bits    two words a lane: quads 0 (low nibbles) and 1 (high nibbles), then quads 2 and 3
    2 bits    one word a lane: quad i at bits 2i, 2i+1 of each byte
    1 bit     a half word (uint16) a lane: of vector k of quad i, bit 4k + i

6, 5 and 3 bits are 4 + 2, 4 + 1 and 2 + 1; the highest bits come last. V's codes of 8 bits are kept with a sign, 128
less, for that is how they are multiplied (see `factors`).

A block (16 slots of a head) is K's cells, K's scales, V's cells, V's scales; scales are float16, for each group of dims
16 of them, one a slot, then the offsets. K by channels (KIVI) has its scales in the head's header instead: one for each
dim, then the offsets.

Every number is ``grid(code) * scale + offset``, rounded to float32 once.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvist.cache.codec.base import CELL, Packed

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]

BELL = {
    4: (0.263407, 4.71566e-5, 3.08714e-5),
    3: (0.490606, 4.81046e-3, 4.35256e-4),
}
"""Of the bell grid: x (a + x^2 (b + x^2 c)), x = code - half of the largest code.

Within 0.014 of the steps that are best for a normal distribution (Max 1960, Lloyd 1982)."""

STEEPEST = 63
"""A bell's steps are whole numbers from -63 to 63, so that they can be multiplied as bytes: within 0.022 of those."""

FAIR = {4: 1.009618, 3: 1.035780}
"""How much larger than the root mean square the unit of a bell's steps is.

A nearest step is nearer to 0 than its numbers are on average (they say 1% and 3.5% too little), and that adds up where
many numbers do. So much larger, and what is read is as long, along what was written, as that was.
"""

E4M3_LARGEST = np.float32(448.0)
LARGEST = np.float32(65504.0)


def signs(head_dim: int) -> Floats:
    """The signs of the rotation: 1 or -1 for each dim, the same for every model."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"kvist signs").digest(-(-head_dim // 8)), np.uint8))
    return np.where(bits[:head_dim] == 1, np.float32(1), np.float32(-1))


def grid(codec: Packed) -> Floats:
    """The number of each code before scale and offset."""
    codes = np.arange(1 << codec.bits)
    if codec.grid == "e4m3":  # the bits of a float16 of 1/256, but for the sign's place
        halves = ((codes & 0x80) << 8 | (codes & 0x7F) << 7).astype(np.uint16).view(np.float16)
        return halves.astype(np.float32)
    if codec.grid == "bell":
        steps = _bell(codec.bits)
        return np.asarray(np.rint(steps * (STEEPEST / steps[-1])), np.float32)
    return np.asarray(codes, np.float32)


def bell_scale(bits: int) -> float:
    """A bell's scale over the root mean square of what is stored."""
    return float(FAIR[bits] * _bell(bits)[-1] / STEEPEST)


def borders(codec: Packed) -> Floats:
    """Of a bell, over the scale: between which numbers the code changes, those for which steps are the nearest."""
    values = grid(codec)
    return np.asarray((values[1:] + values[:-1]) / np.float32(2 * FAIR[codec.bits]), np.float32)


def pack(codec: Packed, numbers: Floats, *, keys: bool) -> tuple[Bytes, Bytes]:
    """Pack K or V, (slots, head_dim), of one head in a page: its header, and its part of each block (blocks, bytes)."""
    slots, dims = numbers.shape
    if keys and codec.channels:
        scale, offset = _fit(codec, numbers.T[:, None, :])  # (dims, 1, 1)
        codes = _codes(codec, numbers.T[:, None, :], scale, offset)[:, 0].T
        header = np.concatenate([scale[:, 0, 0], offset[:, 0, 0]]).view(np.uint8)
        return header, _cells(codec, _squares(codes, keys=keys))
    groups = codec.groups(dims)
    parts = numbers.reshape(slots, groups, dims // groups)
    scale, offset = _fit(codec, parts)
    codes = _codes(codec, parts, scale, offset).reshape(slots, dims)
    codes ^= np.uint8(0 if keys else codec.below)
    held = np.stack([scale, offset][: codec.parameters], axis=1)[..., 0]  # (slots, parameters, groups)
    slotwise = held.reshape(-1, CELL, codec.parameters, groups).transpose(0, 3, 2, 1)
    scales = np.ascontiguousarray(slotwise).reshape(len(slotwise), -1).view(np.uint8)
    return np.empty(0, np.uint8), np.concatenate([_cells(codec, _squares(codes, keys=keys)), scales], axis=1)


def unpack(codec: Packed, header: Bytes, blocks: Bytes, head_dim: int, *, keys: bool) -> Floats:
    """Turn what `pack` gave into numbers again, (slots, head_dim)."""
    cells = head_dim // CELL * codec.cell_bytes
    codes = _codes_of(codec, blocks[:, :cells].reshape(len(blocks), -1, codec.cell_bytes))
    codes = codes.transpose(0, 3, 1, 2) if keys else codes.transpose(0, 2, 1, 3) ^ codec.below
    numbers = grid(codec)[codes.reshape(-1, head_dim)].astype(np.float64)
    if keys and codec.channels:
        scale, offset = np.ascontiguousarray(header).view(np.float16).astype(np.float64).reshape(2, head_dim)
        return np.asarray(numbers * scale + offset, np.float32)
    wide = scales_of(codec, blocks, head_dim).repeat(head_dim // codec.groups(head_dim), axis=2)
    return np.asarray(numbers * wide[0] + (wide[1] if codec.offset else 0.0), np.float32)


def scales_of(codec: Packed, blocks: Bytes, head_dim: int) -> NDArray[np.float64]:
    """The scales, and the offsets, that blocks have: (parameters, slots, groups)."""
    groups = codec.groups(head_dim)
    held = np.ascontiguousarray(blocks[:, head_dim // CELL * codec.cell_bytes :]).view(np.float16).astype(np.float64)
    return held.reshape(-1, groups, codec.parameters, CELL).transpose(2, 0, 3, 1).reshape(codec.parameters, -1, groups)


def _fit(codec: Packed, parts: Floats) -> tuple[Halves, Halves]:
    """Scale and offset of each group (the last axis)."""
    if codec.grid == "e4m3":
        scale = np.abs(parts).max(-1, keepdims=True) / E4M3_LARGEST * np.float32(256)
        return _half(scale), np.zeros_like(scale, np.float16)
    if codec.grid == "bell":
        scale = np.sqrt(np.square(parts).sum(-1, dtype=np.float32, keepdims=True) / np.float32(parts.shape[-1]))
        return _half(scale * np.float32(bell_scale(codec.bits))), np.zeros_like(scale, np.float16)
    low, high = parts.min(-1, keepdims=True), parts.max(-1, keepdims=True)
    return _half((high - low) / np.float32((1 << codec.bits) - 1)), _half(low)


def _bell(bits: int) -> NDArray[np.float64]:
    """A bell's steps, for numbers whose mean square is 1."""
    a, b, c = BELL[bits]
    x = np.arange(1 << bits) - ((1 << bits) - 1) / 2
    return np.asarray(x * (a + x * x * (b + x * x * c)), np.float64)


def _half(numbers: Floats) -> Halves:
    return np.clip(numbers, -LARGEST, LARGEST).astype(np.float16)


def _codes(codec: Packed, parts: Floats, scale: Halves, offset: Halves) -> Bytes:
    """The nearest code of each number, in float32 as kernels compute it; of what is no number that of 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        wanted: Floats = np.asarray((parts - offset.astype(np.float32)) / scale.astype(np.float32), np.float32)
    wanted[np.broadcast_to(scale == 0, wanted.shape) | np.isnan(wanted)] = 0
    if codec.grid == "even":
        return np.clip(np.rint(wanted), 0, (1 << codec.bits) - 1).astype(np.uint8)
    if codec.grid == "bell":
        return np.searchsorted(borders(codec), wanted).astype(np.uint8)
    halves: NDArray[np.uint16] = _half(wanted).view(np.uint16)  # 7 of its 10 bits are rounded away
    size = halves & np.uint16(0x7FFF)
    rounded = np.minimum((size + ((size >> 7) & 1) + 63) >> 7, 0x7E)
    return np.asarray((halves >> 8 & 0x80) | rounded, np.uint8)


def _squares(codes: Bytes, *, keys: bool) -> Bytes:
    """(slots, dims) as (blocks, cells, vector, lane)."""
    squares = codes.reshape(-1, CELL, codes.shape[1] // CELL, CELL)  # block, slot, cell, dim
    return squares.transpose(0, 2, 3, 1) if keys else squares.transpose(0, 2, 1, 3)


def _cells(codec: Packed, squares: Bytes) -> Bytes:
    """(blocks, cells, vector, lane) as the bytes of all cells of each block."""
    if codec.grid == "e4m3":
        return np.ascontiguousarray(squares).reshape(len(squares), -1)
    quads = squares.reshape(*squares.shape[:2], 4, 4, CELL).astype(np.uint32)  # block, cell, quad, vector, lane
    parts = []
    for bits, first, kind in _planes(codec.bits):
        plane = quads >> first & (1 << bits) - 1
        words = np.bitwise_or.reduce(plane << _places(bits), axis=3)  # block, cell, quad, lane
        together = words.reshape(*squares.shape[:2], -1, _quads_a_word(bits), CELL)
        joined = np.ascontiguousarray(np.bitwise_or.reduce(together, axis=3).astype(kind))
        parts.append(joined.reshape(*squares.shape[:2], -1).view(np.uint8))
    return np.ascontiguousarray(np.concatenate(parts, axis=2)).reshape(len(squares), -1)


def _codes_of(codec: Packed, cells: Bytes) -> NDArray[np.intp]:
    """The codes (blocks, cells, vector, lane) of cells (blocks, cells, bytes)."""
    if codec.grid == "e4m3":
        return cells.reshape(*cells.shape[:2], CELL, CELL).astype(np.intp)
    codes, at = np.zeros((*cells.shape[:2], 4, 4, CELL), np.intp), 0
    for bits, first, kind in _planes(codec.bits):
        words = np.ascontiguousarray(cells[..., at : at + 32 * bits]).view(kind).astype(np.uint32)
        words = words.reshape(*cells.shape[:2], -1, 1, CELL).repeat(_quads_a_word(bits), axis=2)
        codes |= ((words >> _places(bits)) & (1 << bits) - 1).astype(np.intp) << first
        at += 32 * bits
    return codes.reshape(*cells.shape[:2], CELL, CELL)


def _planes(bits: int) -> list[tuple[int, int, type[np.unsignedinteger[Any]]]]:
    """How many bits of a code lie together, from which on, and in what."""
    high: dict[int, list[tuple[int, int, type[np.unsignedinteger[Any]]]]] = {
        6: [(2, 4, np.uint32)], 5: [(1, 4, np.uint16)], 3: [(1, 2, np.uint16)],
    }  # fmt: skip
    main = 8 if bits == 8 else 4 if bits >= 4 else 2
    return [(main, 0, np.uint32), *high.get(bits, [])]


def _quads_a_word(bits: int) -> int:
    return 1 if bits == 8 else 2 if bits == 4 else 4


def _places(bits: int) -> NDArray[np.uint32]:
    """Where in its word a code's bits begin, (quad, vector, 1)."""
    quad, vector = np.arange(4, dtype=np.uint32)[:, None], np.arange(4, dtype=np.uint32)[None]
    within = quad % np.uint32(_quads_a_word(bits)) * np.uint32(bits)
    return (4 * vector + quad if bits == 1 else 8 * vector + within)[..., None]
