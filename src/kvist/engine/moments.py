"""Mean and covariance of a prompt's queries, however its rows were cut into steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvist.kernels.program import Floats

TILE = 64
"""Rows that are added at once: from the first row on, so the order of the sum is always the same."""

Array = npt.NDArray[np.float64]


class Moments:
    """Sums over rows of a layer; like: an array of rows, (rows, heads, head size)."""

    def __init__(self, like: Floats) -> None:
        _, heads, dims = like.shape
        self._sum, self._square, self._count = np.zeros((heads, dims)), np.zeros((heads, dims, dims)), 0
        self._waiting = np.zeros((TILE, heads, dims))

    def add(self, rows: Floats) -> None:
        """Take the next rows."""
        while len(rows):
            at = self._count % TILE
            taken = rows[: TILE - at]
            self._waiting[at : at + len(taken)] = taken
            self._count, rows = self._count + len(taken), rows[len(taken) :]
            if self._count % TILE == 0:
                self._fold()

    def result(self) -> tuple[Array, Array]:
        """Mean (heads, head size) and covariance (heads, head size, head size) of all rows. Called once, at the end."""
        if self._count % TILE:
            self._waiting[self._count % TILE :] = 0
            self._fold()
        mean = self._sum / self._count
        return mean, self._square / self._count - mean[:, :, None] * mean[:, None, :]

    def _fold(self) -> None:
        tile = np.ascontiguousarray(self._waiting.transpose(1, 0, 2))  # always of one shape: a product has its bits
        self._sum += tile.sum(1)
        self._square += tile.transpose(0, 2, 1) @ tile
