"""`bf16`: the upper half of a binary32, rounded to nearest even, held as uint16. 2 bytes; 8 bits of precision.

NumPy has no such type, so the arithmetic is on bits. Adding 0x7FFF, and 1 more if the lower half's neighbour is odd,
carries into the upper half exactly when nearest-even rounds up; a carry into the exponent is right as well (up to
infinity, as IEEE rounding has it). A NaN would carry into the sign: it keeps its upper half, made quiet, instead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvist.cache.codec.base import Codec

QUIET = np.uint32(0x0040_0000)


def _encode(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    numbers = np.ascontiguousarray(numbers, np.float32)
    bits = numbers.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.where(np.isnan(numbers), bits | QUIET, bits + (np.uint32(0x7FFF) + odd))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _decode(stored: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)


CODEC = Codec(name="bf16", dtype=np.dtype(np.uint16), encode=_encode, decode=_decode)
