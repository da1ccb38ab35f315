"""What a codec is: how the numbers of K and V are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to store numbers.

    `encode` takes float32 of any shape and gives `dtype` of the same shape; `decode` goes back, without any loss.
    `exact` says that each number is rounded on its own, once, when it is made: then what a reader sees does not depend
    on the numbers around it, and the exactness contract holds without further rules.
    """

    name: str
    dtype: np.dtype[Any]
    exact: bool
    encode: Callable[[NDArray[np.float32]], NDArray[Any]]
    decode: Callable[[NDArray[Any]], NDArray[np.float32]]

    @property
    def itemsize(self) -> int:
        """Bytes of one stored number."""
        return self.dtype.itemsize
