"""`fp8`: e4m3 (4 bits of exponent, 3 of precision), scaled so that the largest number of a position and head is 448.

Nothing is ever clamped, since every position has a scale of its own. 8.25 bits at head size 64."""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="fp8", bits=8, grid="e4m3", offset=False)
