"""`f32`: IEEE binary32, as computed. 4 bytes; the reference for all others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvist.cache.codec.base import Codec


def _same(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(numbers, np.float32)


CODEC = Codec(name="f32", dtype=np.dtype(np.float32), encode=_same, decode=_same)
