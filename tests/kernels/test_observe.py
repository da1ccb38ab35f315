"""What a step's rows look at: against plain NumPy, and the same bits however rows are cut into steps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import (
    Attend,
    Backend,
    BatchMetadata,
    Buffer,
    Floats,
    Limits,
    Program,
    RotaryStore,
    SequenceRows,
)
from kvist.kernels.reference import ReferenceBackend
from kvist.kernels.watching import watching
from ops import fill, numbers, same_bits, tiny_pool

LENGTH, KV_HEADS, GROUP, DIMS, LAYER = 150, 2, 3, 16, 1
CAP = 5.0
COUNTS = np.random.RandomState(4).uniform(0, 3, LENGTH).astype(np.float32)


def observed(
    backend: Backend, watch: str, sizes: list[int], *, kv: str = "f32", page_size: int = 16, cap: float | None = None,
    counts: Floats | None = None,
) -> tuple[Floats, Floats]:
    """What is noted of LENGTH rows in steps of these sizes; the keys."""
    heads = KV_HEADS * GROUP
    q, out = Buffer("q", heads * DIMS), Buffer("out", heads * DIMS)
    k, v = Buffer("k", KV_HEADS * DIMS), Buffer("v", KV_HEADS * DIMS)
    ops = (
        fill(q, numbers(1, LENGTH, q.width, scale=2.0)), fill(k, numbers(2, LENGTH, k.width, scale=1.5)),
        fill(v, numbers(3, LENGTH, v.width)), RotaryStore(q, k, v, LAYER, None),
        Attend(q, out, LAYER, DIMS**-0.5, softcap=cap),
    )  # fmt: skip
    program = Program(ops, len(ops), heads, KV_HEADS, DIMS, 2, out.width)
    watched = watching(program, watch, max(sizes), LENGTH)  # type: ignore[arg-type]
    assert watched.program.head == len(watched.program.ops) == len(ops) + 1
    into = watched.into
    pages = -(-LENGTH // page_size)
    pool = tiny_pool(page_size, KV_HEADS, DIMS, kv, pages + 2, 2)
    table = np.random.RandomState(9).permutation(pool.num_pages)[:pages].astype(np.int32)
    executable = backend.bind(watched.program, [pool], Limits(max(sizes), 1, 1))
    at, queries = 0, []
    while at < LENGTH:
        count = min(sizes[len(queries) % len(sizes)], LENGTH - at)
        rows = np.arange(at, at + count, dtype=np.int32)
        sequence = SequenceRows(0, count, at, table[None])
        none = np.empty(0, np.int32)
        if counts is not None:
            watched.weights[:count] = counts[rows]
        executable.run(BatchMetadata(rows, rows, table[None, rows // page_size], none, [sequence], rows))
        queries.append(into[LAYER][:count].copy())
        at += count
    keys = np.stack([np.concatenate([pool.read(int(p), LAYER, h)[0] for p in table])[:LENGTH] for h in range(KV_HEADS)])
    return (np.concatenate(queries) if watch == "queries" else into[LAYER]), keys


@pytest.mark.parametrize("kind", ["sum", "max"])
@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("kv", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_attention_that_positions_get(
    one_thread: CpuBackend, kind: str, cap: float | None, kv: str, reference: bool, counted: bool
) -> None:
    backend, counts = ReferenceBackend() if reference else one_thread, COUNTS if counted else None
    found, keys = observed(backend, kind, [LENGTH], kv=kv, cap=cap, counts=counts)
    queries = numbers(1, LENGTH, KV_HEADS * GROUP * DIMS, scale=2.0).astype(np.float64)
    expected = np.zeros((KV_HEADS, LENGTH))
    for t, row in enumerate(queries.reshape(LENGTH, -1, DIMS)):
        for h, query in enumerate(row):
            scores = keys[h // GROUP, : t + 1].astype(np.float64) @ query / math.sqrt(DIMS)
            scores = scores if cap is None else cap * np.tanh(scores / cap)
            weights = np.exp(scores) / np.exp(scores).sum() * (COUNTS[t] if counted else 1)
            own = expected[h // GROUP, : t + 1]
            own[:] = own + weights if kind == "sum" else np.maximum(own, weights)
    assert found[:, :LENGTH] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert not found[:, LENGTH:].any(), "nothing is seen beyond the rows"


@pytest.mark.parametrize("watch", ["sum", "max", "queries"])
def test_the_bits_do_not_depend_on_steps_pages_or_threads(
    backend: CpuBackend, one_thread: CpuBackend, watch: str
) -> None:
    whole, _ = observed(one_thread, watch, [LENGTH], counts=COUNTS)
    for sizes, page_size in (([1], 16), ([7, 64, 2], 32), ([100], 64)):
        assert same_bits(observed(backend, watch, sizes, page_size=page_size, counts=COUNTS)[0], whole)


def test_queries_are_as_they_are_before_they_are_rotated(one_thread: CpuBackend) -> None:
    assert same_bits(observed(one_thread, "queries", [40])[0], numbers(1, LENGTH, KV_HEADS * GROUP * DIMS, scale=2.0))
