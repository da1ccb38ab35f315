"""`int4`: 16 even steps between the smallest and the largest number of a group, after a rotation. 4.5 bits."""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="int4", bits=4, rotated=True)
