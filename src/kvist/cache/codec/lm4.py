"""`lm4`: 16 steps that fit a normal distribution, after a rotation (Lloyd-Max; TurboQuant, Zandieh et al. 2025).

4.25 bits at head size 64."""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="lm4", bits=4, grid="bell", offset=False, rotated=True)
