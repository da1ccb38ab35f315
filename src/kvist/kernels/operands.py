"""What operations work on besides weights: buffers, and tables of angles."""

from __future__ import annotations

from dataclasses import dataclass

from kvist.kernels.weight import Floats


@dataclass(frozen=True, slots=True)
class Buffer:
    """A named float32 array of (rows of the step, width); `sampled` buffers have a row per sampled row instead."""

    name: str
    width: int
    sampled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """Tables of rotary angles, float32 (positions, half): pairs are (i, i + half) of a head."""

    cos: Floats
    sin: Floats

    @property
    def half(self) -> int:
        """Pairs that are rotated."""
        return int(self.cos.shape[1])
