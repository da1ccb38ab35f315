"""How codes meet factors: a *way* for what a processor is good at. Both give the same whole numbers, exactly.

::

    way      a quad times its factors
    Quads    four products at a time: vpdpbusd, or what it means in plain IR
    Bytes    two products at a time (vpmaddubsw), added up in 16 bits as far as factors were made to fit, then beyond

Factors are bytes and lie as a word for each quad. Those of a query are signed, and codes not; of weights it is the
other way round (a bell's steps have signs there). Without AVX-512 there are half as many registers, each half as wide:
there one block, or sixteen dims, of all rows pass by at once, whose sums just fit; and where each sum takes two
registers, half of that, the first eight lanes and then the others (a way's *parts*).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from kvist.cache.codec.base import Packed
from kvist.cache.codec.factors import pairs_together
from kvist.kernels.cpu.packed_lanes import Cell, emit_splat_word, shifted, words
from kvist.kernels.cpu.vector import I32, I64, LANES, V16I, external, has
from kvist.kernels.cpu.vector_bytes import V32H, emit_byte_pairs, emit_pairs, half_of, halves, join_halves

State = list[Any]
"""A way's sum of one row and block, of one part, and what else it keeps within a cell: LLVM values."""


class Quads:
    """Four products at a time."""

    blocks = width = 4
    parts = 1

    def __init__(self, keys: bool) -> None:
        self._unsigned = not keys

    def tile_place(self, quad: int) -> int:
        """Where a tile's weights of its first block lie."""
        return 16 * quad

    def tile_block(self, builder: Any, block: Any) -> Any:
        """How much further those of another block lie."""
        return builder.mul(block, I64(4))

    def begin(self) -> State:
        """No sum as yet."""
        return [words(0)]

    def add(self, builder: Any, state: State, quad: int, codes: Any, factors: Any) -> None:
        """Add products to the sum."""
        codes, factors = (factors, codes) if self._unsigned else (codes, factors)
        state[0] = emit_dot(builder, state[0], codes, factors)

    def total(self, builder: Any, parts: Sequence[State]) -> Any:
        """The sum, as words."""
        return parts[0][0]


class Bytes:
    """Two products at a time, added up in 16 bits as far as these go.

    Where they do not go all the way sums are kept twice, modulo 2**16 and by their high bytes alone: these miss less
    than 256 of each number added, and so leave no doubt which sum it was. Adding and shifting is less work than the
    multiplication that would make words of each sum of a few, or can be done beside it.
    """

    blocks = width = 1

    def __init__(self, together: int, keys: bool, twice: bool) -> None:
        """together: see `factors.pairs_together`; twice: keep sums twice rather than make them words."""
        self._unsigned, self._together, self._twice = not keys, together, twice
        self.parts = 2 if twice and not has("avx512bw") else 1

    def tile_place(self, quad: int) -> int:
        """Where a tile's weights of its first block lie: as instructions that pack bytes leave them."""
        return 16 * (quad % 2) + 4 * (quad // 2)

    def tile_block(self, builder: Any, block: Any) -> Any:
        """How much further those of another block lie: the second and fourth are beside the one before them."""
        pair, other = builder.lshr(block, I64(1)), builder.and_(block, I64(1))
        return builder.add(builder.mul(pair, I64(32)), builder.mul(other, I64(8)))

    def begin(self) -> State:
        """No sum as yet: all of it in halves or in words, or modulo 2**16 and of high bytes."""
        zero = halves(0, 2 * LANES // self.parts)
        return [zero, zero] if self._twice else [words(0) if self._together else zero]

    def add(self, builder: Any, state: State, quad: int, codes: Any, factors: Any) -> None:
        """Add products to the sum, once they are as many as fit in 16 bits."""
        found = emit_byte_pairs(builder, *((factors, codes) if self._unsigned else (codes, factors)))
        if self._together == 0:
            state[0] = builder.add(state[0], found)
            return
        if quad % self._together:
            found = builder.add(state.pop(), found)
        if (quad + 1) % self._together:
            state.append(found)
        elif self._twice:
            state[0] = builder.add(state[0], found)
            state[1] = builder.add(state[1], builder.ashr(found, halves(8, found.type.count)))
        else:
            state[0] = builder.add(state[0], _widened(builder, found, 1))

    def total(self, builder: Any, parts: Sequence[State]) -> Any:
        """The sum, as words."""
        made = [self._words(builder, *state) for state in parts]
        return made[0] if len(made) == 1 else join_halves(builder, *made)

    def _words(self, builder: Any, low: Any, high: Any = None) -> Any:
        """Sums of two neighbours each. Of up to 256 numbers what high bytes miss fits in 16 bits without a sign."""
        if high is None:
            return low if self._together else _widened(builder, low, 1)
        lanes = low.type.count
        missed = builder.sub(low, builder.shl(high, halves(8, lanes)))
        missed = builder.bitcast(missed, ir.VectorType(I32, lanes // 2))
        even = builder.and_(missed, words(0xFFFF, lanes // 2))
        missed = builder.add(even, builder.lshr(missed, words(16, lanes // 2)))
        return builder.add(_widened(builder, high, 256), missed)


Way = Quads | Bytes


def _widened(builder: Any, pairs: Any, times: int) -> Any:
    """Sums in 16 bits, times so much, added up in words."""
    return emit_pairs(builder, pairs, halves(times, pairs.type.count))


def in_pairs() -> bool:
    """Whether the processor that code is being made for multiplies two at a time rather than four."""
    return has("avx2") and not has("avx512vnni")


def way_of(codec: Packed, *, keys: bool) -> Way:
    """How the codes of K, or V, meet their factors on the processor that code is being made for."""
    return Bytes(pairs_together(codec, keys=keys), keys, codec.bits == 8) if in_pairs() else Quads(keys)


def emit_cells(
    builder: Any, way: Way, sums: list[list[State]], cells: Sequence[Cell], place: Callable[[int, int], Any], part: int
) -> None:  # fmt: skip
    """Add the products of cells, a vector of quads each, to one part's sums [row][cell].

    place: address of a row and quad.
    """

    def own(vector: Any) -> Any:
        return vector if way.parts == 1 else half_of(builder, vector, part)

    for quad in range(4):
        codes = [own(cell.quad(quad)) for cell in cells]
        for r, row in enumerate(sums):
            factors = own(emit_splat_word(builder, place(r, quad)))
            for state, code in zip(row, codes, strict=True):
                way.add(builder, state, quad, code, factors)


def emit_dot(builder: Any, total: Any, codes: Any, factors: Any) -> Any:
    """Words plus the sum of four products each: unsigned bytes of `codes` times signed ones of `factors`."""
    if has("avx512vnni"):
        function = external(builder, "llvm.x86.avx512.vpdpbusd.512", V16I, [V16I] * 3)
        return builder.call(function, [total, codes, factors])
    if in_pairs():
        codes, factors = builder.bitcast(codes, V32H), builder.bitcast(factors, V32H)
        for bits in (8, 0):  # the even ones, the odd ones
            code, factor = (builder.shl(pair, halves(bits)) for pair in (codes, factors))
            code, factor = builder.lshr(code, halves(8)), builder.ashr(factor, halves(8))
            total = builder.add(total, emit_pairs(builder, code, factor))
        return total
    for k in range(4):
        code = builder.and_(shifted(builder, codes, 8 * k), words(0xFF))
        factor = builder.ashr(shifted(builder, factors, 8 * k - 24), words(24))
        total = builder.add(total, builder.mul(code, factor))
    return total
