"""One op of the table that the compiled loop reads, before dependencies are known."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvist.kernels.program import Op


@dataclass
class Row:
    """One op of the table, with the names of what it reads and writes."""

    code: int
    arguments: list[int]
    reads: set[str]
    writes: set[str]
    unit: str | None = None
    ops: tuple[Op, ...] = ()  # the program's ops that it stands for


def bits(number: float) -> int:
    """A float32's bits as an integer slot."""
    return int(struct.unpack("<i", struct.pack("<f", number))[0])
