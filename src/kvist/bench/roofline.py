"""The machine's limits, measured beside each workload, and what a step must read and compute at least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from kvist.cache.layout import PageLayout
from kvist.engine.engine import Engine
from kvist.kernels.cpu.jobs import fma_peak, read_bandwidth
from kvist.kernels.cpu.team import Team
from kvist.kernels.program import Attend, Experts, Matmul, Program
from kvist.kernels.traffic import StepSize, Traffic, traffic_of
from kvist.memory import map_memory
from kvist.models.decoder import build_program
from kvist.models.load import Model

PASSES = 3  # a probe takes the best of so many


@dataclass
class Roofline:
    """Probes of read bandwidth and FMA peak by all threads, in bytes and operations a second.

    The buffer that is read is as large as what a step reads (see `Cost.step_bytes`): caches hold as much of it.
    """

    team: Team
    buffer_bytes: int
    read: list[float] = field(default_factory=list)
    fma: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = max(self.buffer_bytes >> 18, 1) << 18
        self._buffer = np.frombuffer(map_memory(size), np.uint8)
        self._buffer.fill(1)

    def probe(self, bound: str) -> float:
        """One measurement of `bound`: "read" or "fma"."""
        if bound == "read":
            found = max(self.read_once() for _ in range(PASSES))
            self.read.append(found)
        else:
            found = max(fma_peak(self.team) for _ in range(PASSES))
            self.fma.append(found)
        return found

    def limit(self, read: int, operations: int) -> tuple[str, int]:
        """Which bound keeps this machine longer, by its last probes, and how much of it there is to do."""
        seconds = {"read": read / self._last("read"), "fma": operations / self._last("fma")}
        return ("read", read) if seconds["read"] > seconds["fma"] else ("fma", operations)

    def _last(self, bound: str) -> float:
        found = self.read if bound == "read" else self.fma
        return found[-1] if found else self.probe(bound)

    def read_once(self) -> float:
        """Bytes a second of reading the buffer once; what was in the cache is not there any more."""
        return read_bandwidth(self.team, self._buffer)

    def as_json(self) -> dict[str, float]:
        """Medians of all probes of this run."""
        return {"read_gb_s": round(median(self.read) / 1e9, 2), "fma_gflops": round(median(self.fma) / 1e9, 1)}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step of a model must read and compute at least.

    That is what matmuls, experts and attention do: the rest is a hundredth of it. Every weight is read once a step, of
    experts those that its rows choose; K and V of every position that a row of a sequence sees, once a sequence: in a
    layer with a window no others.
    """

    program: Program
    layouts: Sequence[PageLayout]

    def of(self, sequences: Sequence[tuple[int, int]], sampled: int) -> tuple[int, int]:
        """Bytes and operations of a step over sequences, each (tokens before, rows), with logits of `sampled` rows."""
        size = StepSize.over(sequences, sampled)
        ops = [op for op in self.program.ops if isinstance(op, Matmul | Experts | Attend)]
        moved = sum((traffic_of([op], size, self.program, self.layouts) for op in ops), Traffic())
        return moved.weights + moved.pages_read, moved.operations

    @property
    def step_bytes(self) -> int:
        """What a step of one row reads at least."""
        return self.of([(0, 1)], 1)[0]


def cost_of(model: Model, engine: Engine) -> Cost:
    """Count a model's bytes and operations from its program and its pages."""
    program = build_program(model.config, model.matrices, model.vectors, None)  # angles do not count
    return Cost(program, [group.layout for group in engine.manager.groups])
