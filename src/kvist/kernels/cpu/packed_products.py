"""How codes meet factors: a *way* for what a processor is good at. All give the same whole numbers, exactly.

::

    way      factors of a quad          sums           a quad times its factors
    Quads    bytes; or high, low ones   one for each   four products at a time: vpdpbusd, or what it means in plain IR
    Pairs    16 bits: (0, 2), (1, 3)    one            two at a time (vpmaddwd), even codes and odd ones apart
    Bytes    bytes                      one            two at a time (vpmaddubsw), in 16 bits, widened every few quads

Factors lie as one word or two for each quad. Bytes of a query are signed, and of codes not; of weights it is the other
way round (a bell's steps have signs there). Without AVX-512 there are half as many registers, each half as wide: there
one block, or sixteen dims, of all rows pass by at once, whose sums just fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvist.cache.codec.base import Packed
from kvist.cache.codec.factors import LARGEST_QUERY, LARGEST_WEIGHT
from kvist.cache.codec.packed import STEEPEST
from kvist.kernels.cpu.packed_lanes import Cell, emit_splat_word, shifted, words
from kvist.kernels.cpu.vector import I64, V16F, V16I, external, has
from kvist.kernels.cpu.vector_bytes import V32H, emit_byte_pairs, emit_pairs, halves

LARGEST = 127 * 128.0  # of a factor of two bytes: -127..127 and -64..63

State = list[Any]
"""A way's sums of one row and block: LLVM values, `sums` of them, and what else it keeps within a cell."""


class Quads:
    """Four products at a time; factors of two bytes are two factors."""

    def __init__(self, parts: int, keys: bool) -> None:
        self.parts = self.sums = parts
        self.blocks = self.width = 4 // parts
        self._unsigned = parts == 1 and not keys

    def place(self, part: int, quad: int) -> int:
        """Where a query's factors lie in those of its cell."""
        return 16 * part + 4 * quad

    def tile_place(self, part: int, quad: int) -> int:
        """Where a tile's weights of its first block lie."""
        return 64 * part + 16 * quad

    def tile_block(self, builder: Any, block: Any) -> Any:
        """How much further those of another block lie."""
        return builder.mul(block, I64(4))

    def codes(self, builder: Any, quad: Any) -> list[Any]:
        """A quad as its factors' parts meet it."""
        return [quad] * self.parts

    def add(self, builder: Any, state: State, part: int, quad: int, codes: Any, factors: Any) -> None:
        """Add products to the sums."""
        codes, factors = (factors, codes) if self._unsigned else (codes, factors)
        state[part] = emit_dot(builder, state[part], codes, factors)

    def whole(self, builder: Any, state: State) -> Any:
        """The sum, 128 high + low where there are two, as floats."""
        if self.parts == 1:
            return builder.sitofp(state[0], V16F)
        return builder.sitofp(builder.add(builder.shl(state[0], words(7)), state[1]), V16F)


class Pairs:
    """Two products at a time, of 16 bits each."""

    parts, sums = 2, 1
    blocks = width = 1

    def place(self, part: int, quad: int) -> int:
        """Where a query's factors lie in those of its cell."""
        return 8 * quad + 4 * part

    def tile_place(self, part: int, quad: int) -> int:
        """Where a tile's weights of its first block lie."""
        return 8 * quad + 4 * part

    def tile_block(self, builder: Any, block: Any) -> Any:
        """How much further those of another block lie."""
        return builder.mul(block, I64(32))

    def codes(self, builder: Any, quad: Any) -> list[Any]:
        """The even codes, the odd ones."""
        odd = builder.lshr(builder.bitcast(quad, V32H), halves(8))
        return [builder.and_(quad, words(0x00FF_00FF)), builder.bitcast(odd, V16I)]

    def add(self, builder: Any, state: State, part: int, quad: int, codes: Any, factors: Any) -> None:
        """Add products to the sums."""
        state[0] = builder.add(state[0], emit_pairs(builder, codes, factors))

    def whole(self, builder: Any, state: State) -> Any:
        """The sum as floats."""
        return builder.sitofp(state[0], V16F)


class Bytes(Pairs):
    """Two products at a time, of a byte each; the sums of a few quads fit in 16 bits."""

    parts = 1

    def __init__(self, largest: int, keys: bool) -> None:
        """largest: of the codes, or of a bell's steps."""
        most = 2 * int(LARGEST_QUERY if keys else LARGEST_WEIGHT) * largest
        self._unsigned = not keys
        self._together = max(n for n in (1, 2, 4) if n * most < 1 << 15)
        assert most < 1 << 15, largest

    def place(self, part: int, quad: int) -> int:
        """Where a query's factors lie in those of its cell."""
        return 4 * quad

    def tile_place(self, part: int, quad: int) -> int:
        """Where a tile's weights of its first block lie: as instructions that pack bytes leave them."""
        return 16 * (quad % 2) + 4 * (quad // 2)

    def tile_block(self, builder: Any, block: Any) -> Any:
        """How much further those of another block lie: the second and fourth are beside the one before them."""
        pair, other = builder.lshr(block, I64(1)), builder.and_(block, I64(1))
        return builder.add(builder.mul(pair, I64(32)), builder.mul(other, I64(8)))

    def codes(self, builder: Any, quad: Any) -> list[Any]:
        """As they are."""
        return [quad]

    def add(self, builder: Any, state: State, part: int, quad: int, codes: Any, factors: Any) -> None:
        """Add products to the sums, once they are as many as fit."""
        found = emit_byte_pairs(builder, *((factors, codes) if self._unsigned else (codes, factors)))
        if len(state) == 2:
            found = builder.add(state.pop(), found)
        if (quad + 1) % self._together == 0:
            state[0] = builder.add(state[0], emit_pairs(builder, builder.bitcast(found, V16I), words(0x0001_0001)))
        else:
            state.append(found)


Way = Quads | Pairs
PAIRS = Pairs()


def in_pairs() -> bool:
    """Whether the processor that code is being made for multiplies two at a time rather than four."""
    return has("avx2") and not has("avx512vnni")


def way_of(codec: Packed, *, keys: bool) -> Way:
    """How the codes of K, or V, meet their factors on the processor that code is being made for."""
    parts = codec.factor_bytes
    if not in_pairs():
        return Quads(parts, keys)
    if parts == 2:
        return PAIRS
    steps = STEEPEST if codec.grid == "bell" else None
    largest = (1 << codec.bits) - 1 if steps is None else 2 * steps if keys else steps
    return Bytes(largest, keys)


def emit_cells(
    builder: Any, way: Way, sums: list[list[State]], cells: Sequence[Cell], place: Callable[[int, int, int], Any]
) -> None:  # fmt: skip
    """Add the products of cells, a vector of quads each, to sums [row][cell]. place: address of a row, part, quad."""
    for quad in range(4):
        codes = [way.codes(builder, cell.quad(quad)) for cell in cells]
        for r, row in enumerate(sums):
            for part in range(way.parts):
                factors = emit_splat_word(builder, place(r, part, quad))
                for state, parts in zip(row, codes, strict=True):
                    way.add(builder, state, part, quad, parts[part], factors)


def emit_dot(builder: Any, total: Any, codes: Any, factors: Any) -> Any:
    """Words plus the sum of four products each: unsigned bytes of `codes` times signed ones of `factors`."""
    if has("avx512vnni"):
        function = external(builder, "llvm.x86.avx512.vpdpbusd.512", V16I, [V16I] * 3)
        return builder.call(function, [total, codes, factors])
    if in_pairs():
        bytes_of = builder.bitcast(factors, V32H)
        wide = [builder.ashr(part, halves(8)) for part in (builder.shl(bytes_of, halves(8)), bytes_of)]
        for part, factor in zip(PAIRS.codes(builder, codes), wide, strict=True):
            total = builder.add(total, emit_pairs(builder, part, factor))
        return total
    for k in range(4):
        code = builder.and_(shifted(builder, codes, 8 * k), words(0xFF))
        factor = builder.ashr(shifted(builder, factors, 8 * k - 24), words(24))
        total = builder.add(total, builder.mul(code, factor))
    return total
