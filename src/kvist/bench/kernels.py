"""Measure each kernel alone, over shapes, rows and contexts, as a share of what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Any, cast

import numpy as np

from kvist.bench.kernel_cases import TABLE, Case, attend_cases, matmul_cases, row_cases
from kvist.bench.profile import rate
from kvist.bench.roofline import Roofline
from kvist.cache.codec import codec
from kvist.cache.pool import PagePool
from kvist.errors import unknown_name
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.cpu.profile import Launch, Profile
from kvist.kernels.program import BLOCK_TYPES, BatchMetadata, Limits, Program, SequenceRows, WeightType
from kvist.kernels.traffic import Traffic
from kvist.llm import LLM

TYPES = ("f32", "f16", "bf16", *BLOCK_TYPES)
ROWS = (1, 2, 4, 8, 16, 64, 512)
CACHES = 128 << 20  # bytes that are read to empty them
SECONDS, LEAST, MOST = 0.05, 3, 25  # a case runs that long, but at least and at most so often


@dataclass(frozen=True, slots=True)
class Measured:
    """One case. seconds: of one op, from its beginning to the beginning of the next, the median of all runs.

    copies: ops that ran one after the other. cold: each had weights or pages of its own, read from memory.
    """

    kernel: str
    shape: str
    dtype: str
    rows: int
    context: int
    copies: int
    cold: bool
    seconds: float
    traffic: Traffic
    roofline_share: float
    bound: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kernel": self.kernel, "shape": self.shape, "type": self.dtype, "rows": self.rows, "context": self.context,
            "copies": self.copies, "from": "memory" if self.cold else "cache", "seconds": self.seconds,
            "bytes": self.traffic.bytes, "operations": self.traffic.operations,
            "gb_s": rate(self.traffic.bytes, self.seconds), "gflop_s": rate(self.traffic.operations, self.seconds),
            "roofline_share": self.roofline_share, "bound": self.bound,
        }  # fmt: skip


def check_types(types: Sequence[str]) -> tuple[WeightType, ...]:
    """The types of weights asked for, or all."""
    for name in types:
        if name not in TYPES:
            raise unknown_name("weight type", name, TYPES)
    return cast("tuple[WeightType, ...]", tuple(dict.fromkeys(types)) or TYPES)


def kernels(
    llm: LLM, types: Sequence[str] = (), rows: Sequence[int] = (), starting: Callable[[str], None] = lambda name: None
) -> tuple[Roofline, Iterator[Measured]]:
    """The machine's limits, and every case in turn. The model gives the shapes, its weights are not used."""
    roofline = Roofline(llm.backend.team, CACHES)
    return roofline, _measure_all(llm, roofline, check_types(types), tuple(rows) or ROWS, starting)


def _measure_all(
    llm: LLM, roofline: Roofline, types: Sequence[WeightType], rows: Sequence[int], starting: Callable[[str], None]
) -> Iterator[Measured]:
    for pair in (types[i : i + 2] for i in range(0, len(types), 2)):  # built before anything is measured
        llm.backend.prepare(pair)
        for name in pair:
            llm.backend.team.unit(f"weights_{name}")
    held = llm.engine.manager.layout.codec
    cases = chain(
        *(matmul_cases(llm.model, name, rows) for name in types), attend_cases(llm.model, held),
        row_cases(llm.model, held),
    )  # fmt: skip
    group, limits = "", (0.0, 0.0)
    for case in cases:
        if group != (group := f"{case.kernel} {case.dtype} {case.shape}"):
            limits = roofline.probe("read"), roofline.probe("fma")
        starting(f"{group}, {case.rows} rows" + (f" of {case.context}" if case.context else ""))
        yield measure(llm.backend, case, roofline, *limits)


def measure(backend: CpuBackend, case: Case, roofline: Roofline, read: float, fma: float) -> Measured:
    """Run one case as often as its time allows. read, fma: what the machine can do, a second."""
    layer, layers = case.layout.spec(0), len(case.layout.layers)
    pages = case.layout.pages_for(max(case.context, case.rows, 1))
    pool = PagePool(case.layout, pages)
    heads = next((op.q.width // layer.head_dim for op in case.ops if hasattr(op, "q")), layer.kv_heads)
    program = Program(
        (*case.ops, *case.fill), len(case.fill) + len(case.ops), heads, layer.kv_heads, layer.head_dim, layers, 16
    )
    executable = backend.bind(program, [pool], Limits(case.rows, 1, 1))
    _fill_pool(pool)
    batch, begin = _batch(case, pages), time.perf_counter()
    seconds: list[float] = []
    executable.run(batch)
    with executable.profile() as profile:
        while len(seconds) < LEAST or (time.perf_counter() - begin < SECONDS and len(seconds) < MOST):
            if case.cold:
                roofline.read_once()
            executable.run(batch)
            seconds.append(_seconds(case, profile.launches[-1]))
    pool.close()
    return _measured(case, profile, median(seconds), read, fma)


def _measured(case: Case, profile: Profile, seconds: float, read: float, fma: float) -> Measured:
    records = [record for record in profile.records(profile.launches[0]) if record.kind != "embed"]
    each = sum((record.traffic for record in records), Traffic()) // len(case.ops)
    shares = {"read": each.bytes / seconds / read, "fma": each.operations / seconds / fma}
    bound = max(shares, key=lambda name: shares[name])
    return Measured(
        case.kernel, case.shape, case.dtype, case.rows, case.context, len(case.ops), case.cold, seconds, each,
        shares[bound], bound,
    )  # fmt: skip


def _seconds(case: Case, launch: Launch) -> float:
    """Of one op: the caller's time in the rows of the table from its first to what refills the buffers."""
    first, end = (
        next(i for i, ops in enumerate(launch.origins) if ops and ops[0] is op) for op in (case.ops[0], case.fill[0])
    )
    return float(launch.times[0, first:end].sum()) / len(case.ops) / 1e9


def _fill_pool(pool: PagePool) -> None:
    numbers = np.random.default_rng(2).standard_normal((pool.layout.extent_bytes // 16 + 1, 16)).astype(np.float32)
    stored = codec(pool.layout.codec.name).encode(numbers).view(np.uint8).reshape(-1)
    pool.data[:] = stored[: pool.layout.extent_bytes]


def _batch(case: Case, pages: int) -> BatchMetadata:
    """One sequence whose newest rows are computed; its pages lie in any order."""
    table = np.random.default_rng(3).permutation(pages).astype(np.int32)
    start = max(0, case.context - case.rows)
    positions = np.arange(start, start + case.rows, dtype=np.int32)
    tokens = np.arange(case.rows, dtype=np.int32) % TABLE
    sequences = [SequenceRows(0, case.rows, start, table[None])]
    return BatchMetadata(tokens, positions, table[None, positions // 16], np.empty(0, np.int32), sequences, positions)
