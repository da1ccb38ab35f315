"""From a program's operations to the rows of int64 that the compiled loop reads (see `abi`).

Dependencies come from what each op reads and writes: an op waits for the earlier ops up to the last one it conflicts
with. Ops that share nothing (q, k and v of a layer) run side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kvist.cache.pool import PagePool
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.lower_choice import Choosing, plan_rows, sketch_row
from kvist.kernels.cpu.lower_experts import ExpertMemory, lower_experts
from kvist.kernels.cpu.lower_pages import PagedRows
from kvist.kernels.cpu.profile import Origins
from kvist.kernels.cpu.row import Row, bits
from kvist.kernels.program import (
    Attend,
    Buffer,
    Cap,
    Copy,
    Embed,
    Experts,
    Floats,
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
from kvist.kernels.traffic import buffers_of

Table = npt.NDArray[np.int64]


@dataclass
class Lowering:
    """Addresses of everything a program touches.

    `zeros` stands in for a missing bias or residual; `unit` tells where a compiled unit is.
    """

    program: Program
    pools: Sequence[PagePool]
    buffers: dict[str, Floats]
    zeros: Floats
    likeliest: npt.NDArray[np.int64]
    choosing: Choosing
    unit: Callable[[str], int]
    threads: int
    keep: list[npt.NDArray[np.generic]] = field(default_factory=list)

    def table(self, ops: Sequence[Op]) -> tuple[Table, Origins]:
        """The rows of `ops`, preceded by the plan of the step's attention if they attend; what each stands for."""
        rows = plan_rows(ops, self.choosing.tables)
        i = 0
        while i < len(ops):
            together = _fused(ops[i : i + 3])
            if isinstance(first_op := ops[i], Matmul) and len(together) > 1:
                rows.append(self._activated(first_op, together))
            else:
                first, *others = self._rows(first_op)
                first.ops = (first_op,)
                rows += [first, *others]
            i += len(together)
        last = ops[-1] if ops else None
        if isinstance(last, Matmul | Cap) and last.out.sampled:
            rows.append(self._likeliest())
        table = np.zeros((len(rows), abi.OP_SLOTS), np.int64)
        synced = 0
        for i, row in enumerate(rows):
            conflicts = [j for j in range(synced, i) if _conflict(rows[j], row)]
            upto = conflicts[-1] + 1 if conflicts else synced
            table[i, : abi.ARG] = (row.code, synced, upto, self.unit(row.unit) if row.unit else 0)
            table[i, abi.ARG : abi.ARG + len(row.arguments)] = row.arguments
            synced = upto
        return table, [row.ops for row in rows]

    def _at(self, buffer: Buffer) -> int:
        return self._address(self.buffers[buffer.name])

    def _stride(self, buffer: Buffer) -> int:
        return self.buffers[buffer.name].strides[0]

    def _address(self, array: npt.NDArray[np.generic]) -> int:
        assert array.flags.c_contiguous
        self.keep.append(array)
        return int(array.ctypes.data)

    def _weight(self, weight: Weight) -> int:
        assert weight.columns % 16 == 0
        return self._address(weight.data)

    def _rows(self, op: Op) -> list[Row]:
        match op:
            case Embed():
                learned = self._weight(op.positions) if op.positions else 0
                assert op.positions is None or (op.positions.dtype, op.positions.columns) == ("f32", op.table.columns)
                arguments = [
                    self._weight(op.table), op.table.columns, bits(op.scale), learned, self._at(op.out),
                    self._stride(op.out), op.table.row_bytes,
                ]  # fmt: skip
                return [Row(abi.EMBED, arguments, set(), {op.out.name}, f"weights_{op.table.dtype}")]
            case Norm():
                return [self._norm(op)]
            case Matmul():
                return [self._matmul(op)]
            case RotaryStore():
                return [self._paged.rotary_store(op)]
            case Seal():
                return [self._paged.seal(op)]
            case Sketch():
                return [sketch_row(op, self.program, self.pools, self._address)]
            case Attend():
                return self._paged.attend(op)
            case Gate():
                up = self._at(op.up) if op.up else 0
                arguments = [
                    self._at(op.x), up, self._at(op.out), self._stride(op.x), op.x.width,
                    abi.ACTIVATIONS.index(op.activation),
                ]  # fmt: skip
                return [Row(abi.GATE, arguments, {op.x.name} | ({op.up.name} if op.up else set()), {op.out.name})]
            case Experts():
                return lower_experts(op, self._expert_memory, self._at, self._stride, self._address)
            case Cap():
                arguments = [self._at(op.x), self._stride(op.x), self._at(op.out), self._stride(op.out), op.out.width]
                return [Row(abi.CAP, [*arguments, bits(op.cap)], {op.x.name}, {op.out.name})]

            case Observe():
                return self._paged.observe(op)
            case Copy():
                into = [self._address(op.into), op.into.strides[0]]
                return [Row(abi.COPY, [self._at(op.x), self._stride(op.x), *into, op.x.width], {op.x.name}, set())]

    def _norm(self, op: Norm) -> Row:
        assert op.kind == "rms" or (op.groups == 1 and op.residual is None)
        bias = self.zeros if op.bias is None else op.bias
        residual, stride = (self._at(op.residual), self._stride(op.residual)) if op.residual else (0, 0)
        arguments = [
            self._at(op.x), self._stride(op.x), self._at(op.out), self._stride(op.out), self._address(op.weight),
            self._address(bias), op.out.width // op.groups, op.width, bits(op.eps), int(op.out.sampled),
            int(op.out in self._private), op.groups, residual, stride,
        ]  # fmt: skip
        code = abi.RMS_NORM if op.kind == "rms" else abi.LAYER_NORM
        return Row(code, arguments, {buffer.name for buffer in buffers_of(op)[0]}, {op.out.name})

    def _activated(self, op: Matmul, together: Sequence[Op]) -> Row:
        """A matmul with the activation that follows it, and perhaps the up matmul that it gates."""
        row, gate = self._matmul(op), together[-1]
        assert isinstance(gate, Gate)
        row.ops = tuple(together)
        row.arguments[15] = abi.ACTIVATIONS.index(gate.activation)
        for other in together[1:-1]:
            assert isinstance(other, Matmul)
            bias = self.zeros if other.bias is None else other.bias
            row.arguments[12:15] = [self._weight(other.weight), self._address(bias), self._at(other.out)]
            row.writes.add(other.out.name)
        return row

    @cached_property
    def _paged(self) -> PagedRows:
        return PagedRows(self.program, self.pools, self._at, self._stride, self._address, self.choosing)

    @cached_property
    def _expert_memory(self) -> ExpertMemory:
        ops = [op for op in self.program.ops if isinstance(op, Experts)]
        return ExpertMemory(ops, len(self.buffers[ops[0].x.name]), self._address)

    @cached_property
    def _private(self) -> set[Buffer]:
        """Buffers that threads may each norm rows into a part of: there is room, and only matmuls read them.

        And none after what was normed has changed: no thread waits for the others' norms, so one that comes late would
        norm something else.
        """
        normed = {op.out for op in self.program.ops if isinstance(op, Norm)} - {self.program.logits}
        sources: dict[Buffer, Buffer] = {}  # what each was normed from
        changed: set[Buffer] = set()  # those whose source was written since
        for op in self.program.ops:
            reads, writes = buffers_of(op)
            if isinstance(op, Matmul):
                normed -= {op.out} | ({op.residual} if op.residual else set())
            elif isinstance(op, Norm):
                normed -= set(reads)
            else:
                normed -= {*reads, *writes}
            normed -= changed & set(reads)
            changed |= {out for out, source in sources.items() if source in writes}
            if isinstance(op, Norm):
                sources[op.out] = op.x
                changed.discard(op.out)
        return {b for b in normed if len(self.buffers[b.name]) >= abi.PRIVATE_ROWS * self.threads}

    def _matmul(self, op: Matmul) -> Row:
        bias = self.zeros if op.bias is None else op.bias
        residual, stride = self._address(self.zeros), 0
        if op.residual is not None:
            residual, stride = self._at(op.residual), self._stride(op.residual)
        arguments = [
            self._weight(op.weight), self._at(op.x), op.weight.rows, op.weight.columns, self._address(bias),
            residual, stride, self._at(op.out), self._stride(op.out), int(op.out.sampled), self._stride(op.x),
            op.weight.row_bytes, *(0, 0, 0, -1),  # up weights, their bias and out, activation
            int(op.x in self._private),
        ]  # fmt: skip
        reads = {op.x.name} | ({op.residual.name} if op.residual else set())
        return Row(abi.MATMUL, arguments, reads, {op.out.name}, f"weights_{op.weight.dtype}")

    def _likeliest(self) -> Row:
        """The largest logit of each row: the last thing a step does."""
        logits, vocab = self.program.logits, self.program.vocab_size
        arguments = [self._at(logits), self._stride(logits), vocab, self._address(self.likeliest)]
        return Row(abi.LIKELIEST, arguments, {logits.name}, {"likeliest"})


def _conflict(earlier: Row, later: Row) -> bool:
    """Whether `later` must see `earlier` done."""
    return bool(earlier.writes & (later.reads | later.writes) or earlier.reads & later.writes)


def _fused(ops: Sequence[Op]) -> Sequence[Op]:
    """The first ops of `ops` that become one row: gate, up and their activation, up and its own, or just one op."""
    match ops:
        case [Matmul() as x, Gate() as gate, *_] if gate.up is None and gate.x == gate.out == x.out:
            return ops[:2] if x.residual is None and x.weight.rows == x.out.width else ops[:1]
        case [Matmul() as x, Matmul() as up, Gate() as gate]:
            same = (x.x, x.weight.dtype, x.weight.rows, x.weight.row_bytes)
            fits = same == (up.x, up.weight.dtype, up.weight.rows, up.weight.row_bytes)
            alone = x.residual is None and up.residual is None and x.weight.rows == x.out.width
            if fits and alone and gate.x == gate.out == x.out and gate.up == up.out:
                return ops
    return ops[:1]
