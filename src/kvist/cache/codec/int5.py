"""`int5`: 32 even steps between the smallest and the largest number of a group, after a rotation. 5.5 bits."""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="int5", bits=5, rotated=True)
