"""Sizes of the memory that attention works in; free of numba, so that a warm start does not import it."""

from __future__ import annotations

from kvist.kernels.cpu.abi import TILE, TILE_ROWS

FMA_CHAINS = 16  # independent sums of the peak loop, enough to hide the latency of a multiply-add


def scratch_bytes(group: int, head_dim: int, columns: int) -> int:
    """Bytes a thread needs: for the largest item (see `attention`), or for a panel of weights (see `tile`)."""
    rows = max(TILE_ROWS, group)
    return max(4 * rows * (3 * head_dim + 64 + 4) + 2 * 4 * TILE * head_dim, 4 * 4 * columns) + 2048


def partial_bytes(head_dim: int) -> int:
    """Bytes of one query row's partial result: acc, max, sum."""
    return 4 * (head_dim + 2)
