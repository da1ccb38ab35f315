"""The CPU backend: memory for a program's buffers, a table for the compiled loop, a team to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from kvist.cache.pool import PagePool
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.build import Target
from kvist.kernels.cpu.chooser import CpuChooser
from kvist.kernels.cpu.compile import load_kernels
from kvist.kernels.cpu.jobs import convert, find_nonfinite
from kvist.kernels.cpu.lower import Lowering, Table
from kvist.kernels.cpu.lower_choice import Choosing, heights_shape, most_pages, tables_shape
from kvist.kernels.cpu.profile import Origins, Profile
from kvist.kernels.cpu.sizes import choosing_bytes, partial_bytes, scratch_bytes
from kvist.kernels.cpu.team import Team
from kvist.kernels.program import BatchMetadata, Buffer, Floats, Limits, Matmul, Program, Weight, WeightType
from kvist.memory import allocate

PARTIAL_BYTES = 8 << 20  # room for the partial results of split attention; beyond it attention is not split


class CpuBackend:
    """Runs programs on `threads` threads of this machine."""

    def __init__(
        self, threads: int, on_compile: Callable[[], None] | None = None, target: Target | None = None
    ) -> None:
        self.team = Team(load_kernels(on_compile, target), threads)

    @property
    def threads(self) -> int:
        """Threads that share a step."""
        return self.team.threads

    def bind(self, program: Program, pools: Sequence[PagePool], limits: Limits) -> CpuExecutable:
        """See `kernels.program.Backend`."""
        return CpuExecutable(self.team, program, pools, limits)

    def prepare(self, types: Iterable[WeightType]) -> None:
        """See `kernels.program.Backend`."""
        self.team.prepare(["choosing", *(f"weights_{name}" for name in types)])

    def convert(self, jobs: Sequence[tuple[Weight, Weight]]) -> None:
        """See `kernels.program.Backend`."""
        convert(self.team, jobs)

    def find_nonfinite(self, weights: Sequence[Weight]) -> list[int]:
        """See `kernels.program.Backend`."""
        return find_nonfinite(self.team, weights)

    def close(self) -> None:
        """End the threads; idempotent."""
        self.team.close()


class CpuExecutable:
    """A program with its buffers, tables and context. Owned by one runner; not shared between threads."""

    def __init__(self, team: Team, program: Program, pools: Sequence[PagePool], limits: Limits) -> None:
        self._team, self._limits, self._pools = team, limits, pools
        buffers, matmuls = _buffers(program), [op for op in program.ops if isinstance(op, Matmul)]
        group = program.num_heads // program.num_kv_heads
        chosen = tables_shape(program, pools, limits)
        items = 2 * (limits.rows + 64 * limits.sequences + 4096)
        scratch = scratch_bytes(group, program.head_dim)
        if chosen[2]:
            scratch = max(scratch, choosing_bytes(group, program.head_dim, most_pages(pools, limits)))
        partial_rows = PARTIAL_BYTES // partial_bytes(program.head_dim)
        memory = allocate({
            **{b.name: ((limits.sampled if b.sampled else limits.rows, b.width), np.float32) for b in buffers},
            "zeros": ((max([*(op.weight.rows for op in matmuls), *(b.width for b in buffers)]),), np.float32),
            "likeliest": ((limits.sampled,), np.int64),
            "sequence table": ((limits.sequences, abi.SEQUENCE_SLOTS), np.int64),
            "item table": ((items, abi.ITEM_SLOTS), np.int64),
            "merge table": ((limits.sequences, abi.ITEM_SLOTS), np.int64),
            "chosen pages": (chosen, np.int32),
            "heights of pages": (heights_shape(program, pools, limits, team.threads), np.uint8),
            "chosen item table": ((items if chosen[2] else 0, abi.ITEM_SLOTS), np.int64),
            "chosen merge table": ((limits.sequences, abi.ITEM_SLOTS), np.int64),
            "partial results": ((partial_rows * partial_bytes(program.head_dim),), np.uint8),
            "scratch": ((team.threads, -(-scratch // 4096) * 4096), np.uint8),
        })  # fmt: skip
        self._likeliest = memory["likeliest"]
        lowering = Lowering(
            program, pools, memory, memory["zeros"], self._likeliest,
            Choosing(memory["chosen pages"], memory["heights of pages"]), team.unit, team.threads,
        )  # fmt: skip
        self._program, self._chooser = program, CpuChooser(team)
        self._profile: Profile | None = None
        self._step, self._step_origins = lowering.table(program.ops)
        self._head, self._head_origins = lowering.table(program.ops[program.head :])
        self._keep = lowering.keep
        self._logits, self._sequences = memory[program.logits.name], memory["sequence table"]
        self._vocab = program.vocab_size
        self._likeliest.fill(-1)
        self._chosen = self._likeliest[:0]
        self._counters = np.zeros((len(self._step), team.threads + 1), np.int64)
        self._context = np.zeros(abi.CONTEXT_SLOTS, np.int64)
        fixed = {
            abi.SEQUENCE_TABLE: memory["sequence table"].ctypes.data,
            abi.ITEM_TABLE: memory["item table"].ctypes.data,
            abi.ITEM_CAPACITY: items,
            abi.MERGE_TABLE: memory["merge table"].ctypes.data,
            abi.CHOSEN_ITEM_TABLE: memory["chosen item table"].ctypes.data,
            abi.CHOSEN_MERGE_TABLE: memory["chosen merge table"].ctypes.data,
            abi.PARTIALS: memory["partial results"].ctypes.data,
            abi.PARTIAL_ROWS: partial_rows,
            abi.GROUP: group,
            abi.KV_HEADS: program.num_kv_heads,
            abi.PAGE_SIZE: pools[0].layout.page_size,
            abi.SCRATCH: memory["scratch"].ctypes.data,
            abi.SCRATCH_BYTES: memory["scratch"].strides[0],
            abi.THREADS: team.threads,
            abi.COUNTERS: self._counters.ctypes.data,
        }
        for slot, value in fixed.items():
            self._context[slot] = value

    def run(self, batch: BatchMetadata) -> Floats:
        """See `kernels.program.Executable`.

        More sampled rows than the limit are taken in portions (research, scoring).
        """
        rows, wanted = len(batch.tokens), len(batch.sampled_rows)
        assert rows <= self._limits.rows and len(batch.sequences) <= self._limits.sequences
        context = self._context
        for i, sequence in enumerate(batch.sequences):
            pages = sequence.pages
            where = (pages.ctypes.data, pages.strides[0])
            self._sequences[i] = (sequence.first, sequence.count, sequence.position, *where)
        for slot, array in (
            (abi.TOKENS, batch.tokens),
            (abi.POSITIONS, batch.positions),
            (abi.SLOTS, batch.slots),
            (abi.ROW_PAGES, batch.row_pages),
        ):
            context[slot] = array.ctypes.data
        context[abi.ROWS], context[abi.SEQUENCES] = rows, len(batch.sequences)
        context[abi.FULL], context[abi.FULL_PAGES] = batch.full_pages.shape[1], batch.full_pages.ctypes.data
        limit = self._limits.sampled
        portions = [batch.sampled_rows[i : i + limit] for i in range(0, wanted, limit)] or [batch.sampled_rows]
        self._launch(self._step, self._step_origins, batch, portions[0])
        self._chosen = self._likeliest[:wanted]
        if len(portions) == 1:
            return self._logits[:wanted, : self._vocab]
        logits = [self._logits[:limit, : self._vocab].copy()]
        for portion in portions[1:]:
            self._launch(self._head, self._head_origins, batch, portion)
            logits.append(self._logits[: len(portion), : self._vocab].copy())
        self._chosen = np.full(wanted, -1)  # nobody has asked for it yet
        return np.concatenate(logits)

    @property
    def chooser(self) -> CpuChooser:
        """See `kernels.program.Executable`."""
        return self._chooser

    def likeliest(self) -> npt.NDArray[np.int64]:
        """See `kernels.program.Executable`."""
        return self._chosen

    @contextmanager
    def profile(self) -> Iterator[Profile]:
        """Note what every op takes while this is open."""
        self._profile = Profile(self._program, [pool.layout for pool in self._pools], self._team.threads)
        try:
            yield self._profile
        finally:
            self._profile, self._context[abi.TIMES] = None, 0

    def _launch(self, table: Table, origins: Origins, batch: BatchMetadata, sampled: npt.NDArray[np.int32]) -> None:
        self._context[abi.SAMPLED] = len(sampled)
        self._context[abi.SAMPLED_ROWS] = sampled.ctypes.data
        self._counters.fill(0)
        if self._profile is not None:
            self._context[abi.TIMES] = self._profile.begin(table, origins, batch, len(sampled))
        self._team.run(table.ctypes.data, len(table), self._context.ctypes.data)


def _buffers(program: Program) -> list[Buffer]:
    """Every buffer the program writes."""
    found: dict[str, Buffer] = {}
    for op in program.ops:
        for name in op.__dataclass_fields__:
            value = getattr(op, name)
            if isinstance(value, Buffer):
                found[value.name] = value
    return list(found.values())
