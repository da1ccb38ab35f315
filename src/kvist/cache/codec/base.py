"""What a codec is: how the numbers of K and V are stored.

::

    Codec     a float type: each number is rounded on its own, once, when it is made       f32 f16 bf16
    Packed    a few bits a number, with scales: a page is packed once, when it is full     fp8 int8 int5 int4 ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvist.errors import UsageError

CELL = 16
"""Vectors in a cell, and lanes in a vector: packed numbers lie in squares of 16 x 16."""

SCALE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to store numbers one by one.

    `encode` takes float32 of any shape and gives `dtype` of the same shape; `decode` goes back, without any loss. What
    a reader sees does not depend on the numbers around it, and the exactness contract holds without further rules.
    """

    name: str
    dtype: np.dtype[Any]
    encode: Callable[[NDArray[np.float32]], NDArray[Any]]
    decode: Callable[[NDArray[Any]], NDArray[np.float32]]

    @property
    def itemsize(self) -> int:
        """Bytes of one stored number."""
        return self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Packed:
    """Numbers as codes of a few bits: number = scale * grid(code), + offset where there is one; both float16.

    grid: "even", codes that are evenly apart; "e4m3", 8-bit floats; "bell", closer where a normal distribution has
    more numbers (see `packed`). A position's numbers of one head have a scale for each `group` of them where that
    divides the head size, else one. channels: the scales of K are each dim's over the whole page instead (KIVI).
    rotated: heads are turned by a fixed random rotation before they are stored, exact pages as well; see `turns`.
    """

    name: str
    bits: int
    grid: Literal["even", "e4m3", "bell"] = "even"
    offset: bool = True
    group: int = 64
    channels: bool = False
    rotated: bool = False

    @property
    def cell_bytes(self) -> int:
        """Bytes of a square of 16 x 16 codes."""
        return CELL * CELL * self.bits // 8

    @property
    def middle(self) -> float:
        """The middle of codes that are evenly apart, in scales above the offset."""
        return ((1 << self.bits) - 1) / 2

    @property
    def below(self) -> int:
        """How much less than its code V's bytes are: codes of 8 bits lie there with a sign, as they are multiplied."""
        return 128 if self.bits == 8 and self.grid == "even" else 0

    @property
    def parameters(self) -> int:
        """Numbers beside a group of codes: a scale, perhaps an offset."""
        return 2 if self.offset else 1

    def groups(self, head_dim: int) -> int:
        """Groups of a position's numbers of one head that have scales of their own."""
        return head_dim // self.group if head_dim % self.group == 0 else 1

    def block_bytes(self, head_dim: int, *, keys: bool) -> int:
        """Size of K, or V, of one head in 16 slots."""
        scales = 0 if keys and self.channels else self.groups(head_dim) * self.parameters * CELL * SCALE_BYTES
        return head_dim // CELL * self.cell_bytes + scales

    def header_bytes(self, head_dim: int, *, keys: bool) -> int:
        """Size of what one head's K, or V, of a whole page have in common."""
        return head_dim * self.parameters * SCALE_BYTES if keys and self.channels else 0

    def turns(self, head_dim: int) -> bool:
        """Whether it rotates heads of that size, which must be a power of two."""
        return self.rotated and head_dim & (head_dim - 1) == 0

    def check(self, page_size: int, head_dim: int) -> None:
        """Refuse pages and head sizes that it does not work with: `UsageError`."""
        if self.rotated and self.bits < 8 and not self.turns(head_dim):  # 8 bits are enough without
            raise UsageError(
                f"codec {self.name} rotates heads, whose size must be a power of two, and this model's are stored as "
                f"{head_dim} numbers: choose int8 or fp8"
            )
        if self.below and self.groups(head_dim) == 1 and head_dim > 1024:  # more products than a sum has room for
            raise UsageError(
                f"codec {self.name} wants heads of at most 1024 numbers, or a multiple of {self.group}, and this "
                f"model's are stored as {head_dim}: choose fp8"
            )
        if self.channels and page_size < 64:
            raise UsageError(
                f"codec {self.name} keeps a scale of each channel in every page, too many for pages of {page_size}: "
                "give page_size=64 or 128"
            )


AnyCodec = Codec | Packed
