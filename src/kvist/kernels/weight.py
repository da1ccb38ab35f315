"""A matrix of weights, in the type that its file has it in or in another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatType = Literal["f32", "f16", "bf16"]
BlockType = Literal["q8_0", "q4_0", "q4_1", "q4_k", "q6_k"]
WeightType = FloatType | BlockType
Floats = npt.NDArray[np.float32]

BLOCK_TYPES: dict[str, tuple[int, int]] = {
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q4_k": (256, 144),
    "q6_k": (256, 210),
}
"""Block-quantised types: numbers in a block, bytes of a block. A row is a whole number of blocks."""


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A matrix as rows of outputs, C-contiguous.

    data: (rows, columns) of a float type (bf16 is held as uint16), or uint8 (rows, bytes a row) of a block-quantised
    one, as its file has it.
    """

    data: npt.NDArray[np.generic]
    dtype: WeightType

    @property
    def rows(self) -> int:
        """Outputs."""
        return int(self.data.shape[0])

    @property
    def columns(self) -> int:
        """Inputs, a multiple of 16."""
        if self.dtype not in BLOCK_TYPES:
            return int(self.data.shape[1])
        numbers, size = BLOCK_TYPES[self.dtype]
        return int(self.data.shape[1]) // size * numbers

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return int(self.data.strides[0])
