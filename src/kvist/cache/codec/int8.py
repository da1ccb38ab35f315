"""`int8`: 256 even steps from the smallest to the largest number of a position and head, after a rotation. 8.5 bits.

Heads whose size is no power of two stay as they are.
"""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="int8", bits=8, rotated=True)
