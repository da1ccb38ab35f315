"""`int3`: 8 even steps between the smallest and the largest number of a group, after a rotation. 3.5 bits.

For V: K of so few bits ruins a model."""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="int3", bits=3, rotated=True)
