"""`f16`: IEEE binary16, rounded to nearest even. 2 bytes; 11 bits of precision.

A finite number beyond ±65504 is stored as ±65504: an infinity would turn a whole row of scores into NaN, for a
number that merely was large. Infinities and NaN stay what they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvist.cache.codec.base import Codec

LARGEST = np.float32(65504.0)


def _encode(numbers: NDArray[np.float32]) -> NDArray[np.float16]:
    numbers = np.asarray(numbers, np.float32)
    return np.where(np.isinf(numbers), numbers, np.clip(numbers, -LARGEST, LARGEST)).astype(np.float16)


def _decode(stored: NDArray[np.float16]) -> NDArray[np.float32]:
    return stored.astype(np.float32)


CODEC = Codec(name="f16", dtype=np.dtype(np.float16), encode=_encode, decode=_decode)
