"""From a program's operations to the rows of int64 that the compiled loop reads (see `abi`).

Dependencies come from what each op reads and writes: an op waits for the earlier ops up to the last one it conflicts
with. Ops that share nothing (q, k and v of a layer) run side by side.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvist.cache.layout import PageLayout
from kvist.kernels.cpu import abi
from kvist.kernels.program import Attend, Buffer, Embed, Floats, Gate, Matmul, Norm, Op, Program, RotaryStore, Weight

Table = npt.NDArray[np.int64]


def bits(number: float) -> int:
    """A float32's bits as an integer slot."""
    return int(struct.unpack("<i", struct.pack("<f", number))[0])


@dataclass
class _Row:
    """One op of the table, with the names of what it reads and writes."""

    code: int
    arguments: list[int]
    reads: set[str]
    writes: set[str]
    dtype: int = 0


@dataclass
class Lowering:
    """Addresses of everything a program touches. `zeros` stands in for a missing bias or residual."""

    program: Program
    layout: PageLayout
    buffers: dict[str, Floats]
    zeros: Floats
    keep: list[npt.NDArray[np.generic]] = field(default_factory=list)

    def table(self, ops: Sequence[Op]) -> Table:
        """The rows of `ops`, preceded by the plan of the step's attention if they attend."""
        rows = [_Row(abi.PLAN, [], set(), {"items"})] if any(isinstance(op, Attend) for op in ops) else []
        for op in ops:
            rows += self._rows(op)
        table = np.zeros((len(rows), abi.OP_SLOTS), np.int64)
        synced = 0
        for i, row in enumerate(rows):
            conflicts = [j for j in range(synced, i) if _conflict(rows[j], row)]
            upto = conflicts[-1] + 1 if conflicts else synced
            table[i, : abi.ARG] = (row.code + 256 * row.dtype, synced, upto)
            table[i, abi.ARG : abi.ARG + len(row.arguments)] = row.arguments
            synced = upto
        return table

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

    def _rows(self, op: Op) -> list[_Row]:
        match op:
            case Embed():
                learned = self._weight(op.positions) if op.positions else 0
                assert op.positions is None or op.positions.dtype == op.table.dtype
                arguments = [
                    self._weight(op.table),
                    op.table.columns,
                    bits(op.scale),
                    learned,
                    self._at(op.out),
                    self._stride(op.out),
                ]
                return [_Row(abi.EMBED, arguments, set(), {op.out.name}, abi.DTYPES.index(op.table.dtype))]
            case Norm():
                bias = self.zeros if op.bias is None else op.bias
                arguments = [
                    self._at(op.x),
                    self._stride(op.x),
                    self._at(op.out),
                    self._stride(op.out),
                    self._address(op.weight),
                    self._address(bias),
                    op.out.width,
                    op.width,
                    bits(op.eps),
                    int(op.out.sampled),
                ]
                code = abi.RMS_NORM if op.kind == "rms" else abi.LAYER_NORM
                return [_Row(code, arguments, {op.x.name}, {op.out.name})]
            case Matmul():
                return [self._matmul(op)]
            case RotaryStore():
                return [self._rotary_store(op)]
            case Attend():
                return self._attend(op)
            case Gate():
                up = self._at(op.up) if op.up else 0
                arguments = [
                    self._at(op.x),
                    up,
                    self._at(op.out),
                    self._stride(op.x),
                    op.x.width,
                    abi.ACTIVATIONS.index(op.activation),
                ]
                return [_Row(abi.GATE, arguments, {op.x.name} | ({op.up.name} if op.up else set()), {op.out.name})]

    def _matmul(self, op: Matmul) -> _Row:
        bias = self.zeros if op.bias is None else op.bias
        residual, stride = self._address(self.zeros), 0
        if op.residual is not None:
            residual, stride = self._at(op.residual), self._stride(op.residual)
        arguments = [
            self._weight(op.weight),
            self._at(op.x),
            op.weight.rows,
            op.weight.columns,
            self._address(bias),
            residual,
            stride,
            self._at(op.out),
            self._stride(op.out),
            int(op.out.sampled),
            self._stride(op.x),
        ]
        reads = {op.x.name} | ({op.residual.name} if op.residual else set())
        return _Row(abi.MATMUL, arguments, reads, {op.out.name}, abi.DTYPES.index(op.weight.dtype))

    def _rotary_store(self, op: RotaryStore) -> _Row:
        half = op.rotary.half if op.rotary else 0
        cos = self._address(op.rotary.cos) if op.rotary else 0
        sin = self._address(op.rotary.sin) if op.rotary else 0
        program = self.program
        arguments = [
            self._at(op.q),
            self._at(op.k),
            self._at(op.v),
            self._stride(op.q),
            self._stride(op.k),
            self._stride(op.v),
            program.num_heads,
            program.num_kv_heads,
            program.head_dim,
            half,
            cos,
            sin,
            self.layout.layer_offset(op.layer),
        ]
        touched = {op.q.name, op.k.name}
        return _Row(abi.ROTARY_STORE, arguments, touched | {op.v.name}, touched | {f"pages {op.layer}"}, self._codec())

    def _attend(self, op: Attend) -> list[_Row]:
        arguments = [
            self._at(op.q),
            self._stride(op.q),
            self._at(op.out),
            self.program.head_dim,
            self.layout.layer_offset(op.layer),
            bits(op.scale),
        ]
        written = {op.out.name, "partials"}
        return [
            _Row(abi.ATTEND, arguments, {op.q.name, f"pages {op.layer}", "items"}, written, self._codec()),
            _Row(abi.MERGE, arguments, {"partials", "items"}, {op.out.name}),
        ]

    def _codec(self) -> int:
        return abi.DTYPES.index(self.layout.codec.name)


def _conflict(earlier: _Row, later: _Row) -> bool:
    """Whether `later` must see `earlier` done."""
    return bool(earlier.writes & (later.reads | later.writes) or earlier.reads & later.writes)
