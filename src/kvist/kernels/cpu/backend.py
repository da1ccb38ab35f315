"""The CPU backend: memory for a program's buffers, a table for the compiled loop, a team to run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvist.cache.pool import PagePool
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.compile import load_kernels
from kvist.kernels.cpu.jobs import find_nonfinite, unpack
from kvist.kernels.cpu.lower import Lowering, Table
from kvist.kernels.cpu.sizes import partial_bytes, scratch_bytes
from kvist.kernels.cpu.team import Team
from kvist.kernels.program import BatchMetadata, Buffer, Floats, Limits, Matmul, Packed, Program, Weight

PARTIAL_BYTES = 8 << 20  # room for the partial results of split attention; beyond it attention is not split


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Zeros on a cache line's start, so that a vector never straddles two lines; untouched pages take no memory."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


class CpuBackend:
    """Runs programs on `threads` threads of this machine."""

    def __init__(self, threads: int, on_compile: Callable[[], None] | None = None) -> None:
        self.team = Team(load_kernels(on_compile), threads)

    @property
    def threads(self) -> int:
        """Threads that share a step."""
        return self.team.threads

    def bind(self, program: Program, pool: PagePool, limits: Limits) -> CpuExecutable:
        """See `kernels.program.Backend`."""
        return CpuExecutable(self.team, program, pool, limits)

    def unpack(self, jobs: Sequence[tuple[Packed, Weight]]) -> None:
        """See `kernels.program.Backend`."""
        unpack(self.team, jobs)

    def find_nonfinite(self, weights: Sequence[Weight]) -> list[int]:
        """See `kernels.program.Backend`."""
        return find_nonfinite(self.team, weights)

    def close(self) -> None:
        """End the threads; idempotent."""
        self.team.close()


class CpuExecutable:
    """A program with its buffers, tables and context. Owned by one runner; not shared between threads."""

    def __init__(self, team: Team, program: Program, pool: PagePool, limits: Limits) -> None:
        self._team, self._limits, self._pool = team, limits, pool
        self._buffers = {
            buffer.name: aligned((limits.sampled if buffer.sampled else limits.rows, buffer.width))
            for buffer in _buffers(program)
        }
        widest = max((op.weight.rows for op in program.ops if isinstance(op, Matmul)), default=0)
        widest = max([widest, *(buffer.width for buffer in _buffers(program))])
        lowering = Lowering(program, pool.layout, self._buffers, aligned((widest,)))
        self._step = lowering.table(program.ops)
        self._head = lowering.table(program.ops[program.head :])
        self._keep = lowering.keep
        self._logits = self._buffers[program.logits.name]
        self._vocab = program.vocab_size
        group = program.num_heads // program.num_kv_heads
        self._counters = aligned((len(self._step), 2), np.int64)
        self._sequences = aligned((limits.sequences, abi.SEQUENCE_SLOTS), np.int64)
        items = 2 * (limits.rows + 64 * limits.sequences + 4096)
        self._items, self._merges = (
            aligned((items, abi.ITEM_SLOTS), np.int64),
            aligned((limits.sequences, abi.ITEM_SLOTS), np.int64),
        )
        scratch = -(-scratch_bytes(group, program.head_dim) // 4096) * 4096
        self._scratch = aligned((team.threads, scratch), np.uint8)
        partial_rows = PARTIAL_BYTES // partial_bytes(program.head_dim)
        self._partials = aligned((partial_rows * partial_bytes(program.head_dim),), np.uint8)
        self._context = np.zeros(abi.CONTEXT_SLOTS, np.int64)
        fixed = {
            abi.SEQUENCE_TABLE: self._sequences.ctypes.data,
            abi.ITEM_TABLE: self._items.ctypes.data,
            abi.ITEM_CAPACITY: items,
            abi.MERGE_TABLE: self._merges.ctypes.data,
            abi.PARTIALS: self._partials.ctypes.data,
            abi.PARTIAL_ROWS: partial_rows,
            abi.GROUP: group,
            abi.KV_HEADS: program.num_kv_heads,
            abi.POOL: pool.address,
            abi.PAGE_BYTES: pool.layout.page_bytes,
            abi.PAGE_SIZE: pool.layout.page_size,
            abi.SCRATCH: self._scratch.ctypes.data,
            abi.SCRATCH_BYTES: scratch,
            abi.COUNTERS: self._counters.ctypes.data,
            abi.ATTEND_FUNCTION: team.attend_address,
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
            self._sequences[i] = (sequence.first, sequence.count, sequence.position, sequence.pages.ctypes.data)
        for slot, array in (
            (abi.TOKENS, batch.tokens),
            (abi.POSITIONS, batch.positions),
            (abi.ROW_PAGES, batch.row_pages),
        ):
            context[slot] = array.ctypes.data
        context[abi.ROWS], context[abi.SEQUENCES] = rows, len(batch.sequences)
        limit = self._limits.sampled
        portions = [batch.sampled_rows[i : i + limit] for i in range(0, wanted, limit)] or [batch.sampled_rows]
        self._launch(self._step, portions[0])
        if len(portions) == 1:
            return self._logits[:wanted, : self._vocab]
        logits = [self._logits[:limit, : self._vocab].copy()]
        for portion in portions[1:]:
            self._launch(self._head, portion)
            logits.append(self._logits[: len(portion), : self._vocab].copy())
        return np.concatenate(logits)

    def _launch(self, table: Table, sampled: npt.NDArray[np.int32]) -> None:
        self._context[abi.SAMPLED] = len(sampled)
        self._context[abi.SAMPLED_ROWS] = sampled.ctypes.data
        self._counters.fill(0)
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
