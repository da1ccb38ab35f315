"""Find the largest of many numbers without sorting them all.

A row of n numbers is read as 64 lines of n // 64, and a *block* is a column of that::

    i        0      1      2    ...  W-1          W = n // 64
             W     W+1    W+2   ... 2W-1          block b = { b, b + W, b + 2W, ... }; what is left over is the tail
            ...

so that a maximum or a sum of all blocks is one pass over lines, sixteen columns at a time, and a number above a
threshold lies in a block whose maximum (or sum, of numbers from 0) is above it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kvist.errors import InternalError
from kvist.kernels.program import Floats

LINES = 64
Ids = npt.NDArray[np.int64]
FEW = 8  # while at most one of so many blocks is to be looked into, single blocks are gathered


def check_finite(largest_logit: float) -> None:
    """Refuse a row by its largest logit, which is NaN if one of them is."""
    if not math.isfinite(largest_logit):
        raise InternalError(
            "a logit is NaN or infinite: the numbers left float32's range; try a float32 cache and weights"
        )


def body(row: Floats) -> Floats:
    """The row's blocks, (64, W): a view."""
    width = len(row) // LINES
    return row[: LINES * width].reshape(LINES, width)


def block_sums(row: Floats) -> Floats:
    """Sum of each block, float32 (W + 1,); the last is the tail's."""
    width = len(row) // LINES
    sums = np.empty(width + 1, np.float32)
    np.add.reduce(body(row), axis=0, out=sums[:-1])
    sums[-1] = np.add.reduce(row[LINES * width :]) if len(row) > LINES * width else 0.0
    return sums


def block_slice(block: int, size: int) -> slice:
    """Where a block lies in a row of `size`; the block after the last is the tail."""
    width = size // LINES
    return slice(LINES * width, size, 1) if block == width else slice(block, LINES * width, width)


def at_least(row: Floats, threshold: float, tops: Floats | None = None) -> Ids:
    """Where a row reaches a threshold, in no order.

    tops: of each block (W,) or (W + 1,) a bound that none of its numbers exceeds, if known.
    """
    width = len(row) // LINES
    if tops is not None:
        wanted = (tops[:width] >= threshold).nonzero()[0]
        if len(wanted) * FEW < width:
            places = (body(row).take(wanted, axis=1) >= threshold).ravel().nonzero()[0]
            lines, columns = np.divmod(places, max(len(wanted), 1))
            first = LINES * width
            ids: Ids = lines * width + wanted[columns]
            return ids if first == len(row) else np.concatenate([ids, first + (row[first:] >= threshold).nonzero()[0]])
    return (row >= threshold).nonzero()[0]


def ranked(row: Floats, ids: Ids) -> Ids:
    """`ids` by the size of their numbers, largest first; of equals the lower id first."""
    bits = (row[ids] + np.float32(0)).view(np.int32)  # adding 0 makes -0.0 equal to 0.0
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)  # ordered as the floats are
    keys = (-keys << 32) | ids
    keys.sort()
    ordered: Ids = keys & 0xFFFFFFFF
    return ordered


def largest(row: Floats, count: int) -> Ids:
    """Where the `count` largest numbers are, largest first; of equals the lower id first."""
    size = len(row)
    if count >= size:
        return ranked(row, np.arange(size))
    width = size // LINES
    if count * FEW < width:
        # so many blocks have a maximum of at least the count-th largest maximum: so many numbers reach it
        tops = body(row).max(axis=0)
        threshold = np.partition(tops, width - count)[width - count]
        return ranked(row, at_least(row, threshold, tops))[:count]
    threshold = np.partition(row, size - count)[size - count]
    return ranked(row, (row >= threshold).nonzero()[0])[:count]
