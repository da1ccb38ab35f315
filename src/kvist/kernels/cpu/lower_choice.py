"""Lowering of layers in which tokens choose the pages they read (see `best_pages`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvist.cache.policy import Choice
from kvist.cache.pool import PagePool, floats_of
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.row import Row
from kvist.kernels.program import Attend, Bound, Limits, Op, Program

Tables = npt.NDArray[np.int32]
"""The pages that each row reads, of each KV head: [row][KV head][most]."""


def choice_of(ops: Sequence[Op]) -> Choice | None:
    """How many pages tokens choose, in whichever layers they do: one number for all, since they share a plan."""
    found = {op.choice for op in ops if isinstance(op, Attend) and op.choice is not None}
    assert len(found) <= 1
    return next(iter(found), None)


def tables_shape(program: Program, pools: Sequence[PagePool], limits: Limits) -> tuple[int, int, int]:
    """The shape of the tables for steps up to the limits."""
    choice, pages = choice_of(program.ops), most_pages(pools, limits)
    return limits.rows, program.num_kv_heads, choice.count(pages) if choice else 0


def most_pages(pools: Sequence[PagePool], limits: Limits) -> int:
    """Pages of the longest sequence."""
    held = max(pool.num_pages for pool in pools)
    return held if limits.positions is None else min(held, pools[0].layout.pages_for(limits.positions))


def plan_rows(ops: Sequence[Op], tables: Tables) -> list[Row]:
    """The plans of the attention in `ops`."""
    attends, choice = [op for op in ops if isinstance(op, Attend)], choice_of(ops)
    rows = [Row(abi.PLAN, [], set(), {"items"})] if any(op.choice is None for op in attends) else []
    if choice is not None:
        arguments = [abi.CHOSEN, choice.share, choice.least, tables.ctypes.data, tables.shape[2]]
        rows.append(Row(abi.PLAN, arguments, set(), {"chosen items"}))
    return rows


def bound_row(op: Bound, program: Program, pools: Sequence[PagePool]) -> Row:
    """Keeping the bounds of full pages."""
    group, pool = floats_of(pools, op.layer)
    layout, name = pool.layout, f"pages {op.layer}"
    start = pool.address + layout.layer_offset(op.layer)
    arguments = [
        start, layout.page_bytes, group, program.num_kv_heads, program.head_dim, layout.bounds_offset(op.layer)
    ]  # fmt: skip
    return Row(abi.BOUND, arguments, {name}, {name}, f"best_{layout.codec.name}")


def best_row(
    op: Attend, choice: Choice, q: tuple[int, int], program: Program, pools: Sequence[PagePool], tables: Tables
) -> Row:
    """Choosing, before the attention that reads what was chosen. q: its address and stride."""
    group, pool = floats_of(pools, op.layer)
    layout = pool.layout
    bounds = pool.address + layout.layer_offset(op.layer) + layout.bounds_offset(op.layer)
    arguments = [
        *q, program.head_dim, bounds, layout.page_bytes, group, choice.share, choice.least, tables.ctypes.data,
        tables.shape[2],
    ]  # fmt: skip
    reads = {op.q.name, f"pages {op.layer}"}
    return Row(abi.BEST, arguments, reads, {"chosen pages"}, f"best_{layout.codec.name}")
