"""Sizes of the memory that kernels work in; free of numba, so that a warm start does not import it."""

from __future__ import annotations

from kvist.kernels.cpu.abi import TILE, TILE_ROWS

FMA_CHAINS = 16  # independent sums of the peak loop, enough to hide the latency of a multiply-add
PANEL_ROWS = 4  # weight rows of a panel (see `tile`)
PANEL_COLUMNS = 768  # and its numbers a row, at most; a multiple of every type's block
PANEL_BYTES = 4 * PANEL_ROWS * PANEL_COLUMNS
SUMS_BYTES = 64 * PANEL_ROWS  # of one activation row that passes by a panel
WIDE = 6  # activation rows of the largest panel tile
X_BYTES = 400 << 10  # of a matmul piece's activation rows: they stay in the second-level cache


def scratch_bytes(group: int, head_dim: int) -> int:
    """Bytes a thread needs: for the largest item (see `attention`), or for a panel and its sums (see `matmul`)."""
    rows = max(TILE_ROWS, group)
    copies = max(2 * 4 * TILE * head_dim, rows * (7 * head_dim + 256) + 1024)
    item = 4 * rows * (3 * head_dim + 64 + 4) + copies
    return max(item, PANEL_BYTES + SUMS_BYTES * (X_BYTES // (4 * PANEL_COLUMNS) + WIDE)) + 2048


def choosing_bytes(head_dim: int, pages: int) -> int:
    """Bytes a thread needs to choose from so many pages (see `best_pages`), and to sketch one."""
    heads, row = 4, 4 * (pages + 16)  # heads that are weighed together; a float32 for each page, in whole vectors
    records, sums = heads * (head_dim + 160), 1024 * heads + 64
    return max(records + 4 * head_dim + sums + (heads + 1) * row + 64, 68 * head_dim)


def partial_bytes(head_dim: int) -> int:
    """Bytes of one query row's partial result: acc, max, sum."""
    return 4 * (head_dim + 2)
