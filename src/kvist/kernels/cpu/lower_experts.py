"""A mixture of experts as rows of the table: choose, place, gather, two matmuls, combine (see `routing`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.row import Row, bits
from kvist.kernels.program import Buffer, Experts, Floats, Weight

Address = Callable[[npt.NDArray[np.generic]], int]


class ExpertMemory:
    """What all layers' experts work in, made for the largest: a layer is done before the next begins."""

    def __init__(self, ops: Sequence[Experts], rows: int, address: Address) -> None:
        places, experts = rows * max(op.chosen for op in ops), max(len(op.experts) for op in ops)
        hidden, inner = max(op.x.width for op in ops), max(op.experts[0].up.rows for op in ops)
        self.choices, self.places = (address(np.zeros(places, np.int32)) for _ in range(2))
        self.shares, self.zeros = (
            address(np.zeros(places, np.float32)),
            address(np.zeros(max(hidden, inner), np.float32)),
        )
        self.starts = address(np.zeros(experts + 1, np.int32))
        self.gathered = address(np.zeros((places, hidden), np.float32))
        self.gate, self.up = (address(np.zeros((places, inner), np.float32)) for _ in range(2))


def lower_experts(
    op: Experts, memory: ExpertMemory, at: Callable[[Buffer], int], stride: Callable[[Buffer], int], address: Address
) -> list[Row]:
    """The rows of one layer's experts. at, stride: of a buffer; address: of an array that is to be kept."""
    m, experts, width = memory, op.experts, op.x.width

    def weights(of: Sequence[Weight]) -> int:
        assert len({(w.dtype, w.rows, w.columns, w.row_bytes) for w in of}) == 1
        return address(np.array([address(w.data) for w in of], np.int64))

    def biases(of: Sequence[Floats | None]) -> int:
        return address(np.array([m.zeros if bias is None else address(bias) for bias in of], np.int64))

    gate, down = experts[0].gate, experts[0].down
    assert gate.dtype == experts[0].up.dtype and gate.row_bytes == experts[0].up.row_bytes
    made = [
        Row(
            abi.CHOOSE,
            [at(op.logits), stride(op.logits), len(experts), op.chosen, int(op.renormalise), m.choices, m.shares],
            {op.logits.name}, {"choices"},
        ),
        Row(abi.PLACE, [m.choices, m.places, m.starts, len(experts), op.chosen], {"choices"}, {"places"}),
        Row(
            abi.GATHER, [at(op.x), stride(op.x), width, op.chosen, m.places, m.gathered],
            {op.x.name, "places"}, {"gathered"},
        ),
        Row(
            abi.EXPERTS,
            [
                weights([e.gate for e in experts]), biases([e.gate_bias for e in experts]), gate.rows, gate.columns,
                gate.row_bytes, m.gathered, m.gate, m.zeros, m.starts, weights([e.up for e in experts]),
                biases([e.up_bias for e in experts]), m.up, abi.ACTIVATIONS.index(op.activation), bits(op.clamp or 0.0),
                len(experts),
            ],
            {"gathered", "places"}, {"expert gate"}, f"experts_{gate.dtype}",
        ),
        Row(
            abi.EXPERTS,
            [
                weights([e.down for e in experts]), biases([e.down_bias for e in experts]), down.rows, down.columns,
                down.row_bytes, m.gate, m.gathered, m.zeros, m.starts, 0, 0, 0, -1, 0, len(experts),
            ],
            {"expert gate", "places"}, {"gathered"}, f"experts_{down.dtype}",
        ),
        Row(
            abi.COMBINE,
            [
                m.gathered, width, op.chosen, m.places, m.shares, at(op.residual), stride(op.residual), at(op.out),
                stride(op.out),
            ],
            {"gathered", "places", "choices", op.residual.name}, {op.out.name},
        ),
    ]  # fmt: skip
    made[3].ops = (op,)
    return made
