"""Sizes of the memory that kernels work in; free of numba, so that a warm start does not import it."""

from __future__ import annotations

from kvist.kernels.cpu.abi import TILE, TILE_ROWS

FMA_CHAINS = 16  # independent sums of the peak loop, enough to hide the latency of a multiply-add
PANEL_ROWS = 4  # weight rows of a panel (see `tile`)
PANEL_COLUMNS = 768  # and its numbers a row, at most; a multiple of every type's block
PANEL_BYTES = 4 * PANEL_ROWS * PANEL_COLUMNS
SUMS_BYTES = 64 * PANEL_ROWS  # of one activation row that passes by a panel
ASKED_BYTES = 4  # of each number of a query as packed keys want it, at most: floats, or bytes with a few numbers beside
WIDE = 6  # activation rows of the largest panel tile
X_BYTES = 400 << 10  # of a matmul piece's activation rows: they stay in the second-level cache


def scratch_bytes(group: int, head_dim: int) -> int:
    """Bytes a thread needs: for the largest item (see `attention`), or for a panel and its sums (see `matmul`)."""
    rows = max(TILE_ROWS, group)
    copies = max(2 * 4 * TILE * head_dim, rows * ((4 + ASKED_BYTES) * head_dim + 256 + 4) + 1024)
    item = 4 * rows * (3 * head_dim + 64 + 4) + copies
    return max(item, PANEL_BYTES + SUMS_BYTES * (X_BYTES // (4 * PANEL_COLUMNS) + WIDE)) + 2048


def choosing_bytes(group: int, head_dim: int, pages: int) -> int:
    """Bytes a thread needs to choose from so many pages (see `best_pages`), and to sketch one."""
    weights = 4 * (pages + 32)  # in whole vectors
    return max(weights + weighing_bytes(head_dim) + heights_bytes(group, pages), 68 * head_dim)


def weighing_bytes(head_dim: int) -> int:
    """Bytes in which a thread weighs pages (see `sketch_weights`): records, units, room for a query, of four heads."""
    return 4 * (5 * head_dim + 288) + 20 * head_dim + 64


def heights_bytes(group: int, pages: int) -> int:
    """Bytes of what a query head each makes of so many pages, in whole vectors, and of a count before them."""
    return 64 + group * ((pages + 15) // 16 * 64)


def partial_bytes(head_dim: int) -> int:
    """Bytes of one query row's partial result: acc, max, sum."""
    return 4 * (head_dim + 2)
