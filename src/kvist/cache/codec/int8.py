"""`int8`: 256 even steps from the smallest to the largest number of a position and head. 8.5 bits at head size 64."""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="int8", bits=8)
