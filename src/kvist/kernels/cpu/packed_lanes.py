"""Packed numbers as vectors of sixteen lanes: what `cache.codec.packed` defines, in instructions.

A code of up to seven bits becomes a float without a conversion: its bits are the highest of a mantissa, under the
exponent of 1, which makes 1 + code / 2**bits; scale and offset were made for that. ::

    word of a 4-bit cell     7777 6666 5555 4444 3333 2222 1111 0000       vector 5 of the cell
                                  <------- shifted, masked ------->
    float                    0 01111111 5555 0000000000000000000           1 + code / 16
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from kvist.cache.codec.base import Packed
from kvist.cache.codec.packed import BELL
from kvist.kernels.cpu.vector import F32, I8, I64, LANES, V16F, V16H, V16I, V16S, emit_fma, emit_splat, pointer

V16B = ir.VectorType(I8, LANES)
ONE = 0x3F80_0000
PER_WORD = {4: 8, 2: 16}


def _all(kind: Any, value: int | float) -> Any:
    return ir.Constant(kind, [value] * LANES)


def _shifted(builder: Any, words: Any, left: int) -> Any:
    """The words, `left` bits to the left; to the right if that is negative."""
    if left == 0:
        return words
    kind = words.type
    return builder.shl(words, _all(kind, left)) if left > 0 else builder.lshr(words, _all(kind, -left))


class Cell:
    """A cell at an address: its words are loaded when they are first asked for, once."""

    def __init__(self, codec: Packed, builder: Any, address: Any) -> None:
        self._codec, self._builder, self._address = codec, builder, address
        self._words: dict[int, Any] = {}

    def grid(self, i: int) -> Any:
        """The grid's numbers of vector i: sixteen lanes, before scale and offset."""
        codec, builder = self._codec, self._builder
        if codec.bits == 8:
            codes = builder.load(pointer(builder, self._address, V16B, I64(16 * i)), align=1)
            if codec.grid == "even":
                return builder.sitofp(builder.zext(codes, V16I), V16F)
            wide = builder.zext(codes, V16S)
            sign = builder.and_(_shifted(builder, wide, 8), _all(V16S, 0x8000))
            rest = builder.and_(_shifted(builder, wide, 7), _all(V16S, 0x3F80))
            return builder.fpext(builder.bitcast(builder.or_(sign, rest), V16H), V16F)
        number = builder.bitcast(builder.or_(self._mantissa(i), _all(V16I, ONE)), V16F)
        return number if codec.grid == "even" else self._bell(number)

    def _mantissa(self, i: int) -> Any:
        """The code of vector i as the highest bits of a mantissa."""
        builder, bits = self._builder, self._codec.bits
        main = bits - bits % 2  # bits that lie together; an odd one lies apart
        per_word, low = PER_WORD[main], 23 - bits
        word = self._word(i // per_word, 64 * (i // per_word), V16I)
        mask = _all(V16I, ((1 << main) - 1) << low)
        mantissa = builder.and_(_shifted(builder, word, low - i % per_word * main), mask)
        if bits == main:
            return mantissa
        high = self._word(-1, 32 * main, V16S)
        return builder.or_(mantissa, builder.and_(_shifted(builder, high, 22 - i), _all(V16I, 1 << 22)))

    def _word(self, key: int, offset: int, kind: Any) -> Any:
        if key not in self._words:
            builder = self._builder
            loaded = builder.load(pointer(builder, self._address, kind, I64(offset)), align=2)
            self._words[key] = loaded if kind is V16I else builder.zext(loaded, V16I)
        return self._words[key]

    def _bell(self, number: Any) -> Any:
        """From 1 + code / 2**bits to the code's place in the bell grid."""
        builder, bits = self._builder, self._codec.bits
        a, b, c = BELL[bits]
        steps = float(1 << bits)
        x = emit_fma(builder, number, _all(V16F, steps), _all(V16F, -steps - (steps - 1) / 2))
        square = builder.fmul(x, x)
        inner = emit_fma(builder, square, _all(V16F, c), _all(V16F, b))
        return builder.fmul(x, emit_fma(builder, square, inner, _all(V16F, a)))


def emit_scaled(builder: Any, number: Any, scale: Any, offset: Any | None) -> Any:
    """Grid numbers with their scale and offset."""
    return builder.fmul(number, scale) if offset is None else emit_fma(builder, number, scale, offset)


def emit_splat_at(builder: Any, address: Any, offset: int) -> Any:
    """The float32 at address + offset in all lanes."""
    return emit_splat(builder, builder.load(pointer(builder, address, F32, I64(offset)), align=4))


