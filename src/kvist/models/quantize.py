"""Float weights to blocks of 8-bit integers: for float checkpoints that shall run in half their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvist.kernels.program import BLOCK_TYPES

ROWS_A_TURN = 4096  # rows quantised at a time: bounds the memory in between


def quantize_q8_0(matrix: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A float32 matrix (rows, columns) as ggml's q8_0: uint8 (rows, bytes a row).

    Every 32 numbers of a row share a float16 scale d, the largest magnitude / 127; a number is round(x / d), at most
    127 either way. d is rounded first, so that what is divided by is what is multiplied with later.
    """
    numbers, size = BLOCK_TYPES["q8_0"]
    rows, columns = matrix.shape
    out = np.empty((rows, columns // numbers, size), np.uint8)
    for start in range(0, rows, ROWS_A_TURN):
        blocks = matrix[start : start + ROWS_A_TURN].astype(np.float32).reshape(-1, columns // numbers, numbers)
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number, or too large, is seen in the scale
            scale = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16)
            divisor = np.where(scale == 0, np.float16(1), scale).astype(np.float32)
            quants = np.clip(np.rint(blocks / divisor), -127, 127).astype(np.int8)
        quants[np.broadcast_to(scale == 0, quants.shape)] = 0
        here = out[start : start + ROWS_A_TURN]
        here[..., :2], here[..., 2:] = scale.view(np.uint8).reshape(*scale.shape[:2], 2), quants.view(np.uint8)
    return out.reshape(rows, -1)
