"""`lm3`: as `lm4` with 8 steps. 3.25 bits at head size 64."""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="lm3", bits=3, grid="bell", offset=False, rotated=True)
