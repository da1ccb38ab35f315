"""Packed codes as vectors of sixteen lanes: what `cache.codec.packed` defines, in instructions.

Codes that are evenly apart stay whole numbers, and those of a bell become its steps, which are whole numbers too: a
quad (four of them in the bytes of each word) is multiplied by four signed bytes and added up, exactly, in any order
(see `packed_products`). Small floats become what they stand for, vector by vector.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from kvist.cache.codec.base import Packed
from kvist.cache.codec.packed import STEEPEST, grid
from kvist.kernels.cpu.vector import (
    F32,
    I8,
    I32,
    I64,
    LANES,
    V16F,
    V16H,
    V16I,
    V16S,
    emit_splat,
    has,
    in_halves,
    pointer,
    shuffle,
)
from kvist.kernels.cpu.vector_bytes import V64B, emit_shuffle_bytes, join_halves

V16B = ir.VectorType(I8, LANES)


def words(value: int, lanes: int = LANES) -> Any:
    """A constant in all lanes."""
    return ir.Constant(ir.VectorType(I32, lanes), [value] * lanes)


def shifted(builder: Any, value: Any, right: int) -> Any:
    """Words, `right` bits to the right; to the left if that is negative."""
    if right == 0:
        return value
    return builder.lshr(value, words(right)) if right > 0 else builder.shl(value, words(-right))


def smaller() -> float:
    """How much smaller small floats become than what they stand for.

    AVX2 converts halves eight at a time, and some processors slowly, so there they become float32 by moving bits alone,
    which leaves the exponent's bias out.
    """
    return 2.0**-112 if in_halves() else 1.0  # 2**(15 - 127): the biases of halves and floats


class Cell:
    """A cell at an address: its words are loaded when they are first asked for, once.

    signed: a bell's codes are multiplied as their steps, else as how far these lie above the lowest one.
    """

    def __init__(self, codec: Packed, builder: Any, address: Any, signed: bool = False) -> None:
        self._codec, self._builder, self._address = codec, builder, address
        self._above = 0 if signed else STEEPEST
        self._words: dict[int, Any] = {}

    def quad(self, i: int) -> Any:
        """What the codes of vectors 4i to 4i + 3 are multiplied as, in the bytes of each word."""
        return self._risen(self._codes(i)) if self._codec.grid == "bell" else self._codes(i)

    def _codes(self, i: int) -> Any:
        builder, bits = self._builder, self._codec.bits
        if bits == 8:
            return self._word(64 * i)
        if bits < 4:
            low = builder.and_(shifted(builder, self._word(0), 2 * i), words(0x0303_0303))
        else:
            low = builder.and_(shifted(builder, self._word(64 * (i // 2)), 4 * (i % 2)), words(0x0F0F_0F0F))
        if bits == 6:
            high = builder.and_(shifted(builder, self._word(128), 2 * i - 4), words(0x3030_3030))
            return builder.or_(low, high)
        if bits in (5, 3):
            high = shifted(builder, self._spread(32 * (bits - 1)), i - bits + 1)
            return builder.or_(low, builder.and_(high, words(0x0101_0101 << bits - 1)))
        return low

    def number(self, i: int) -> Any:
        """What the e4m3 codes of vector i stand for, before the scale, times `smaller`: sixteen floats."""
        builder = self._builder
        codes = builder.load(pointer(builder, self._address, V16B, I64(16 * i)), align=1)
        if in_halves():
            return self._from_words(codes)
        wide = builder.shl(builder.sext(codes, V16S), _halves(7))  # the sign comes twice
        return builder.fpext(builder.bitcast(builder.and_(wide, _halves(0xBF80)), V16H), V16F)

    def _from_words(self, codes: Any) -> Any:
        """A code's sign, exponent and three digits as those of a float32, subnormal where the code is."""
        builder = self._builder
        twice, found = shuffle(builder, codes, codes, 2 * list(range(LANES))), []
        for half in (0, 8):
            top = [half + 4 * (lane // 16) + lane % 16 // 4 if lane % 4 == 3 else 128 for lane in range(32)]
            found.append(emit_shuffle_bytes(builder, twice, ir.Constant(ir.VectorType(I8, 32), top)))
        wide = builder.ashr(builder.bitcast(join_halves(builder, *found), V16I), words(4))  # the sign comes five times
        return builder.bitcast(builder.and_(wide, words(-(1 << 31) | 0x07F0_0000)), V16F)

    def _word(self, offset: int) -> Any:
        if offset not in self._words:
            loaded = self._builder.load(pointer(self._builder, self._address, V16I, I64(offset)), align=2)
            self._words[offset] = loaded
        return self._words[offset]

    def _spread(self, offset: int) -> Any:
        """Half words whose nibbles become bytes: bit i of byte k is that of vector k of quad i."""
        if offset not in self._words:
            builder = self._builder
            half = builder.zext(builder.load(pointer(builder, self._address, V16S, I64(offset)), align=2), V16I)
            half = builder.and_(builder.or_(half, builder.shl(half, words(8))), words(0x00FF_00FF))
            self._words[offset] = builder.and_(builder.or_(half, builder.shl(half, words(4))), words(0x0F0F_0F0F))
        return self._words[offset]

    def _risen(self, codes: Any) -> Any:
        """Bytes: the steps of codes."""
        builder, above = self._builder, [int(step) + self._above for step in grid(self._codec)]
        places = builder.bitcast(codes, V64B)
        if has("avx2"):
            table = ir.Constant(V64B, [above[lane % 16 % len(above)] for lane in range(4 * LANES)])
            return builder.bitcast(emit_shuffle_bytes(builder, table, places), V16I)
        found = ir.Constant(V64B, [0] * 4 * LANES)
        for code, step in enumerate(above):
            here = builder.icmp_unsigned("==", places, ir.Constant(V64B, [code] * 4 * LANES))
            found = builder.select(here, ir.Constant(V64B, [step] * 4 * LANES), found)
        return builder.bitcast(found, V16I)


def _halves(value: int) -> Any:
    return ir.Constant(V16S, [value] * LANES)


def emit_splat_word(builder: Any, address: Any) -> Any:
    """The word at an address in all lanes."""
    word = builder.load(pointer(builder, address, I32), align=4)
    vector = builder.insert_element(ir.Constant(V16I, ir.Undefined), word, I32(0))
    return builder.shuffle_vector(vector, ir.Constant(V16I, ir.Undefined), ir.Constant(V16I, [0] * LANES))


def emit_splat_at(builder: Any, address: Any, offset: int) -> Any:
    """The float32 at address + offset in all lanes."""
    return emit_splat(builder, builder.load(pointer(builder, address, F32, I64(offset)), align=4))
