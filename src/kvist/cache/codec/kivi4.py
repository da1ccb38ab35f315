"""`kivi4`: K by channel over a page, V by groups of 32 numbers of a position (KIVI, Liu et al. 2024).

4 bits and scales."""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="kivi4", bits=4, group=32, channels=True)
