"""`kivi2`: as `kivi4`, 2 bits and scales."""

from __future__ import annotations

from kvist.cache.codec.base import Packed

CODEC = Packed(name="kivi2", bits=2, group=32, channels=True)
