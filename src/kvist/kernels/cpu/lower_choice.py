"""Lowering of layers in which tokens choose the pages they read (see `best_pages`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvist.cache.codec.packed import signs
from kvist.cache.policy import Choice
from kvist.cache.pool import PagePool, floats_of, read_of, sealed_of
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.row import Row, bits
from kvist.kernels.cpu.sizes import heights_bytes
from kvist.kernels.program import Attend, Limits, Op, Program, Sketch


@dataclass(frozen=True)
class Choosing:
    """Memory of choosing.

    tables: the pages that each row reads, int32 [row][KV head][as floats, as they were packed][most]; heights: what
    threads make of a row's pages together, uint8 [row and KV head][bytes].
    """

    tables: npt.NDArray[np.int32]
    heights: npt.NDArray[np.uint8]


def choice_of(ops: Sequence[Op]) -> Choice | None:
    """How many pages tokens choose, in whichever layers they do: one number for all, since they share a plan."""
    found = {op.choice for op in ops if isinstance(op, Attend) and op.choice is not None}
    assert len(found) <= 1
    return next(iter(found), None)


def tables_shape(program: Program, pools: Sequence[PagePool], limits: Limits) -> tuple[int, int, int, int]:
    """The shape of the tables for steps up to the limits."""
    choice, pages = choice_of(program.ops), most_pages(pools, limits)
    chosen = [op.layer for op in program.ops if isinstance(op, Attend) and op.choice is not None]
    sides = 2 if any(sealed_of(pools, layer) for layer in chosen) else 1
    return limits.rows, program.num_kv_heads, sides, choice.count(pages) if choice else 0


def heights_shape(program: Program, pools: Sequence[PagePool], limits: Limits, threads: int) -> tuple[int, int]:
    """The shape of the heights for steps up to the limits."""
    if choice_of(program.ops) is None:
        return 0, 0
    few = min(limits.rows * program.num_kv_heads, abi.FEW_CHOOSERS * threads)
    return few, heights_bytes(program.num_heads // program.num_kv_heads, most_pages(pools, limits))


def most_pages(pools: Sequence[PagePool], limits: Limits) -> int:
    """Pages of the longest sequence."""
    held = max(pool.num_pages for pool in pools)
    return held if limits.positions is None else min(held, pools[0].layout.pages_for(limits.positions))


def plan_rows(ops: Sequence[Op], tables: npt.NDArray[np.int32]) -> list[Row]:
    """The plans of the attention in `ops`."""
    attends, choice = [op for op in ops if isinstance(op, Attend)], choice_of(ops)
    rows = [Row(abi.PLAN, [], set(), {"items"})] if any(op.choice is None for op in attends) else []
    if choice is not None:
        arguments = [abi.CHOSEN, choice.share, choice.least, tables.ctypes.data, tables.shape[2] * tables.shape[3]]
        rows.append(Row(abi.PLAN, arguments, set(), {"chosen items"}))
    return rows


def sketch_row(op: Sketch, program: Program, pools: Sequence[PagePool], address: Callable[[Any], int]) -> Row:
    """Sketching full pages. address: of an array, which is kept."""
    (group, pool), (into, target), name = floats_of(pools, op.layer), read_of(pools, op.layer), f"pages {op.layer}"
    arguments = [
        *places_of(pool, op.layer), group, program.num_kv_heads, program.head_dim, *_sketches(target, op.layer),
        address(signs(program.head_dim)), into,
    ]  # fmt: skip
    return Row(abi.SKETCH, arguments, {name}, {name}, f"best_{pool.layout.codec.name}")


def best_row(
    op: Attend, choice: Choice, q: tuple[int, int], program: Program, pools: Sequence[PagePool],
    choosing: Choosing, address: Callable[[Any], int],
) -> Row:  # fmt: skip
    """Choosing, before the attention that reads what was chosen. q: its address and stride."""
    (exact, floats), (group, pool) = floats_of(pools, op.layer), read_of(pools, op.layer)
    tables, heights = choosing.tables, choosing.heights
    arguments = [
        *q, program.head_dim, *_sketches(pool, op.layer), group, choice.share, choice.least,
        tables.ctypes.data, tables.shape[3], address(signs(program.head_dim)), bits(op.scale), tables.shape[2], exact,
        heights.ctypes.data, heights.strides[0],
    ]  # fmt: skip
    reads = {op.q.name, f"pages {op.layer}"}
    return Row(abi.BEST, arguments, reads, {"chosen pages"}, f"best_{floats.layout.codec.name}")


def places_of(pool: PagePool, layer: int) -> tuple[int, int, int]:
    """Address of a layer in page 0, bytes of a head from page to page, and from extent to extent."""
    layout = pool.layout
    return pool.address + layout.place(0, layer, 0), layout.head_bytes(layer), layout.extent_bytes


def _sketches(pool: PagePool, layer: int) -> tuple[int, int]:
    """Where a layer's sketches begin, and from one KV head's to the next one's."""
    layout, pages = pool.layout, pool.num_pages
    return pool.address + layout.sketch_offset(layer, pages), pages * layout.sketch_bytes(layer)
