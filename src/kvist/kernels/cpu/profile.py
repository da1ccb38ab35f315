"""What every op of a step took, thread by thread, beside what it had to move and compute.

The compiled loop notes the times (see `abi.TIMES`), Python counts the rest from the batch when it is asked. Nothing is
noted, and no time spent, while no profile is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvist.cache.layout import PageLayout
from kvist.kernels.cpu import abi
from kvist.kernels.program import (
    Attend,
    BatchMetadata,
    Cap,
    Copy,
    Embed,
    Experts,
    Gate,
    Matmul,
    Norm,
    Observe,
    Op,
    Program,
    RotaryStore,
    Seal,
    Sketch,
    Weight,
)
from kvist.kernels.traffic import StepSize, Traffic, traffic_of

Origins = list[tuple[Op, ...]]
"""For each row of a table the program's ops that it stands for; none for a row that only helps another."""

KINDS = {
    abi.PLAN: "plan", abi.EMBED: "embed", abi.RMS_NORM: "norm", abi.LAYER_NORM: "norm", abi.MATMUL: "matmul",
    abi.ROTARY_STORE: "rotary_store", abi.ATTEND: "attend", abi.MERGE: "merge", abi.GATE: "gate",
    abi.LIKELIEST: "likeliest", abi.CAP: "cap", abi.CHOOSE: "choose",
    abi.PLACE: "place", abi.GATHER: "gather", abi.EXPERTS: "experts", abi.COMBINE: "combine", abi.COPY: "copy",
    abi.NORMALISE: "normalise", abi.OBSERVE: "observe",
    abi.SEAL: "seal", abi.SKETCH: "sketch", abi.BEST: "best pages",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table in one run: nanoseconds each thread worked on it, and waited before it could begin.

    Of the last row also what a thread waited for the others to end.
    """

    kind: str
    ops: tuple[Op, ...]
    worked: tuple[int, ...]
    waited: tuple[int, ...]
    traffic: Traffic

    def label(self, role: Callable[[Weight], str | None] = lambda weight: None) -> str:
        """What people call it; `role` knows names of matrices (else what they write is named)."""
        words = [self.kind, "+".join(filter(None, (_name(op, role) for op in self.ops)))]
        matrices = [op.weight for op in self.ops if isinstance(op, Matmul)]
        if matrices:
            words.append(f"{sum(w.rows for w in matrices)}x{matrices[0].columns}")
            words.append("+".join(dict.fromkeys(w.dtype for w in matrices)))
        return " ".join(filter(None, words))


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One run of a table. times: int64 [threads][ops][2], nanoseconds waited and worked."""

    codes: npt.NDArray[np.int64]
    origins: Origins
    batch: BatchMetadata
    sampled: int
    times: npt.NDArray[np.int64]

    @property
    def nanoseconds(self) -> int:
        """From the first op to the end of the last piece, during which a thread waits or works; the longest of all."""
        return int(self.times.sum((1, 2)).max())


@dataclass(eq=False)
class Profile:
    """What an executable ran while this was open."""

    program: Program
    layouts: Sequence[PageLayout]
    threads: int
    launches: list[Launch] = field(default_factory=list)

    def begin(self, table: npt.NDArray[np.int64], origins: Origins, batch: BatchMetadata, sampled: int) -> int:
        """Note that a table is about to run; the address its times go to."""
        times = np.zeros((self.threads, len(table), 2), np.int64)
        self.launches.append(Launch(table[:, abi.CODE], origins, batch, sampled, times))
        return int(times.ctypes.data)

    def records(self, launch: Launch) -> Iterator[Record]:
        """Every row of a run."""
        size = StepSize.of(launch.batch, launch.sampled)
        for i, (code, ops) in enumerate(zip(launch.codes.tolist(), launch.origins, strict=True)):
            waited, worked = launch.times[:, i].T.tolist()
            traffic = traffic_of(ops, size, self.program, self.layouts)
            yield Record(KINDS.get(code, f"op {code}"), ops, tuple(worked), tuple(waited), traffic)


def _name(op: Op, role: Callable[[Weight], str | None]) -> str:
    """An op inside a label; nothing where the kind says it all."""
    match op:
        case Matmul():
            return role(op.weight) or op.out.name
        case Embed():
            return op.table.dtype
        case Norm():
            return op.kind
        case Gate():
            return op.activation
        case RotaryStore() | Seal() | Sketch() | Attend() | Cap() | Experts() | Observe() | Copy():
            return ""
