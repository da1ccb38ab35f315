"""The machine's limits, measured beside each workload, and what a step must read and compute at least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from kvist.engine.engine import Engine
from kvist.kernels.cpu.jobs import fma_peak, read_bandwidth
from kvist.kernels.cpu.team import Team
from kvist.kernels.program import Weight
from kvist.memory import map_memory
from kvist.models.load import Model

PASSES = 3  # a probe takes the best of so many


@dataclass
class Roofline:
    """Probes of read bandwidth and FMA peak by all threads, in bytes and operations a second.

    The buffer that is read is as large as the weights.
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

    def read_once(self) -> float:
        """Bytes a second of reading the buffer once; what was in the cache is not there any more."""
        return read_bandwidth(self.team, self._buffer)

    def as_json(self) -> dict[str, float]:
        """Medians of all probes of this run."""
        return {"read_gb_s": round(median(self.read) / 1e9, 2), "fma_gflops": round(median(self.fma) / 1e9, 1)}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step of a model must read and compute at least.

    Every weight matrix is read once a step, K and V of every context position once a sequence.
    """

    matrix_bytes: int
    layer_parameters: int
    head_parameters: int
    kv_bytes_per_token: int
    attention_ops: (
        int  # per query row and context position: two multiply-adds for each number of the heads, in every layer
    )

    def read_bytes(self, contexts: list[int]) -> int:
        """Bytes of one decode step over sequences of these lengths."""
        return self.matrix_bytes + self.kv_bytes_per_token * sum(contexts)

    def operations(self, rows: int, contexts_sum: int, heads: int) -> int:
        """Operations of `rows` rows that see `contexts_sum` positions together, with logits of `heads` rows."""
        return 2 * self.layer_parameters * rows + 2 * self.head_parameters * heads + self.attention_ops * contexts_sum


def cost_of(model: Model, engine: Engine) -> Cost:
    """Count a model's bytes and operations from its weights; of experts as many as a row chooses."""
    head, config = model.matrices["head"], model.config
    layers = {role: w for role, w in model.matrices.items() if role.startswith("layers.")}
    experts = [w for role, w in layers.items() if ".expert." in role]
    others = [w for role, w in layers.items() if ".expert." not in role]

    def total(amount: Callable[[Weight], int]) -> int:
        chosen = sum(map(amount, experts)) * config.experts_chosen // max(1, config.experts)
        return sum(map(amount, others)) + chosen

    return Cost(
        total(lambda w: w.data.nbytes) + head.data.nbytes,
        total(lambda w: w.rows * w.columns),
        head.rows * head.columns,
        engine.manager.bytes_per_token,
        4 * config.num_layers * config.num_heads * config.head_dim,
    )
