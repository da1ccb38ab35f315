"""`int6`: 64 even steps between the smallest and the largest number of a group, after a rotation. 6.5 bits."""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="int6", bits=6, rotated=True)
