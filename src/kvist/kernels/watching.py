"""A program that also tells what a step's rows look at: the same operations, and one more in each layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kvist.kernels.program import Attend, Buffer, Copy, Floats, Observe, Op, Program, RotaryStore

TILE = 64
LANES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Watching:
    """A program that writes what it sees to `into`, an array for each layer.

    sum, max: (KV heads, positions or more) of attention, see `Observe`; whoever runs it sets them to zero first.
    queries: (rows, heads * head size), those of the last step before rotation. weights: (rows,), what the attention of
    each row of a step counts, 1 until somebody writes there.
    """

    program: Program
    into: list[Floats]
    weights: Floats


def watching(program: Program, watch: Literal["sum", "max", "queries"], rows: int, positions: int) -> Watching:
    """The program with an eye on it, for steps of up to `rows` rows."""
    heads, dims = program.num_heads, program.head_dim
    found = Buffer("found", -(-2 * heads // LANES) * LANES)
    shape = (rows, heads * dims) if watch == "queries" else (program.num_kv_heads, -(-positions // TILE) * TILE)
    into = [np.zeros(shape, np.float32) for _ in range(program.num_layers)]
    weights = np.ones(rows, np.float32)
    ops: list[Op] = []
    for op in program.ops:
        if watch == "queries" and isinstance(op, RotaryStore):
            ops.append(Copy(op.q, into[op.layer]))
        if watch != "queries" and isinstance(op, Attend):
            ops.append(Observe(op.q, found, op.layer, op.scale, into[op.layer], weights, watch, op.softcap))
        ops.append(op)
    watched = replace(program, ops=tuple(ops), head=program.head + len(ops) - len(program.ops))
    return Watching(watched, into, weights)


@dataclass(frozen=True, slots=True, eq=False)
class BeforeAttention:
    """A program that ends before the attention of one layer: `queries` and `keys` get what that would look with.

    They are (rows, heads * head size) and (rows, KV heads * head size) of the last step, turned, keys as they are
    before pages round them.
    """

    program: Program
    attend: Attend
    queries: Floats
    keys: Floats


def before_attention(program: Program, layer: int, rows: int) -> BeforeAttention:
    """The program up to a layer's attention, for steps of up to `rows` rows, and the head behind it."""
    at, attend = next((i, op) for i, op in enumerate(program.ops) if isinstance(op, Attend) and op.layer == layer)
    store = next(op for op in program.ops[:at] if isinstance(op, RotaryStore) and op.layer == layer)
    queries, keys = (np.zeros((rows, buffer.width), np.float32) for buffer in (store.q, store.k))
    ops = (*program.ops[:at], Copy(store.q, queries), Copy(store.k, keys))
    cut = replace(program, ops=(*ops, *program.ops[program.head :]), head=len(ops))
    return BeforeAttention(cut, attend, queries, keys)
