"""What ops must read, write and compute in a step, counted from the program and the batch.

A kernel's time says something only beside this. Counted is what no arithmetic can do without: every weight once, the
rows of every buffer once, K and V of every context position once a sequence, new K and V as they are stored. What a
kernel reads again, or keeps aside for a moment, is its own affair and does not count in its favour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvist.cache.layout import PageLayout
from kvist.cache.policy.base import ALWAYS, Choice
from kvist.kernels.program import (
    Attend,
    BatchMetadata,
    Buffer,
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
)

ACTIVATION_OPS = {"silu": 4, "gelu_tanh": 9, "gelu": 5}
"""Operations of one number's activation; exp, tanh and erf count one each."""

NORM_OPS = {"rms": 4, "layer": 8}
"""Operations of one number's norm."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes moved and operations computed; a multiply-add counts two.

    weights: also of norms, biases and angles; as they are held, so packed ones count packed. activations: buffers, read
    and written.
    """

    weights: int = 0
    activations: int = 0
    pages_read: int = 0
    pages_written: int = 0
    operations: int = 0

    @property
    def bytes(self) -> int:
        """All bytes."""
        return self.weights + self.activations + self.pages_read + self.pages_written

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.weights + other.weights, self.activations + other.activations, self.pages_read + other.pages_read,
            self.pages_written + other.pages_written, self.operations + other.operations,
        )  # fmt: skip

    def __floordiv__(self, count: int) -> Traffic:
        """The mean of `count` steps, in whole numbers."""
        return Traffic(
            self.weights // count, self.activations // count, self.pages_read // count, self.pages_written // count,
            self.operations // count,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StepSize:
    """How large a step is.

    positions: K and V positions that its sequences see, each once; seen: the same for every row, summed. sequences:
    (position, count) of each.
    """

    rows: int
    sampled: int
    positions: int
    seen: int
    sequences: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(batch: BatchMetadata, sampled: int) -> StepSize:
        """The size of a batch of which `sampled` rows give logits."""
        return StepSize.over([(s.position, s.count) for s in batch.sequences], sampled)

    @staticmethod
    def over(sequences: Sequence[tuple[int, int]], sampled: int) -> StepSize:
        """The size of a step over sequences of (position, count), of which `sampled` rows give logits."""
        return StepSize(
            sum(count for _, count in sequences),
            sampled,
            sum(position + count for position, count in sequences),
            sum(count * position + count * (count + 1) // 2 for position, count in sequences),
            tuple(sequences),
        )

    def within(self, window: int | None, first: int = 0) -> tuple[int, int]:
        """positions and seen where a row sees the last `window` positions, its own included, and the `first` ones."""
        if window is None:
            return self.positions, self.seen
        positions = sum(min(position + count, window + count - 1) for position, count in self.sequences)
        seen = 0
        for position, count in self.sequences:
            short = min(count, max(0, window - position))  # rows that see all there is
            seen += short * position + short * (short + 1) // 2 + (count - short) * window
            before = range(position - window + 1, position + count - window + 1)  # positions in front of each window
            seen += sum(min(first, max(0, here)) for here in before) if first else 0
            positions += min(first, max(0, before.start))
        return positions, seen

    def chosen(self, choice: Choice, page_size: int) -> tuple[int, int, int]:
        """positions and seen where rows choose pages, and the pages whose sketches they look at.

        Rows of one sequence may choose the same: the pages of its newest row count.
        """
        positions = seen = looked = 0
        for position, count in self.sequences:
            for at in range(position, position + count):
                pages = at // page_size + 1
                read = (choice.count(pages) - 1) * page_size + at % page_size + 1
                seen += read
            positions, looked = positions + read, looked + max(0, pages - ALWAYS)
        return positions, seen, looked


def traffic_of(ops: Sequence[Op], size: StepSize, program: Program, layouts: Sequence[PageLayout]) -> Traffic:
    """What ops that run as one must move and compute; layouts: of the pages of each group of layers.

    A buffer that one of them writes and another reads need not leave the processor: it does not count.
    """
    total, read, made, pending = Traffic(), set[str](), set[str](), dict[str, int]()
    for op in ops:
        rows, (inputs, outputs) = rows_of(op, size), buffers_of(op)
        moved = 0
        for buffer in inputs:
            if buffer.name in made:
                pending.pop(buffer.name, None)
            elif buffer.name not in read:
                moved += rows * buffer.width * 4
        read |= {buffer.name for buffer in inputs}
        made |= {buffer.name for buffer in outputs}
        pending |= {buffer.name: rows * buffer.width * 4 for buffer in outputs}
        total += Traffic(activations=moved) + _own_traffic(op, rows, size, program, layouts)
    return total + Traffic(activations=sum(pending.values()))


def rows_of(op: Op, size: StepSize) -> int:
    """Rows an op computes in a step."""
    sampled = not isinstance(op, RotaryStore | Seal | Sketch | Observe | Copy) and op.out.sampled
    return size.sampled if sampled else size.rows


def buffers_of(op: Op) -> tuple[list[Buffer], list[Buffer]]:
    """What an op reads, what it writes."""
    match op:
        case Embed():
            return [], [op.out]
        case Norm():
            return [op.x] + ([op.residual] if op.residual else []), [op.out]
        case Matmul():
            return [op.x] + ([op.residual] if op.residual else []), [op.out]
        case RotaryStore():
            return [op.q, op.k, op.v], [op.q, op.k] if op.rotary else []
        case Seal() | Sketch():
            return [], []
        case Attend():
            return [op.q], [op.out]
        case Cap():
            return [op.x], [op.out]
        case Experts():
            return [op.x, op.logits, op.residual], [op.out]
        case Gate():
            return [op.x] + ([op.up] if op.up else []), [op.out]
        case Observe():
            return [op.q], [op.found]
        case Copy():
            return [op.x], []


def _own_traffic(op: Op, rows: int, size: StepSize, program: Program, layouts: Sequence[PageLayout]) -> Traffic:
    """All but activations."""
    match op:
        case Embed():
            each = op.table.row_bytes + (op.positions.row_bytes if op.positions else 0)
            return Traffic(weights=rows * each, operations=rows * op.out.width * (2 if op.positions else 1))
        case Norm():
            vectors = op.weight.nbytes + (0 if op.bias is None else op.bias.nbytes)
            each = op.width * op.groups * (NORM_OPS[op.kind] + (1 if op.residual else 0))
            return Traffic(weights=vectors if rows else 0, operations=rows * each)
        case Matmul():
            held = op.weight.data.nbytes + (0 if op.bias is None else op.bias.nbytes)
            return Traffic(weights=held if rows else 0, operations=2 * rows * op.weight.rows * op.weight.columns)
        case Seal():  # a slot for every row, in the long run
            exact, packed = _slot_bytes(layouts, op.layer, packed=False), _slot_bytes(layouts, op.layer, packed=True)
            return Traffic(pages_read=rows * exact, pages_written=rows * packed)
        case RotaryStore():
            half, heads = op.rotary.half if op.rotary else 0, program.num_heads + program.num_kv_heads
            return Traffic(
                weights=rows * 2 * half * 4, pages_written=rows * _slot_bytes(layouts, op.layer, packed=False),
                operations=rows * heads * half * 6,
            )  # fmt: skip
        case Sketch():  # once a page, not once a step
            return Traffic()
        case Attend():
            return _attention_traffic(op, size, program, layouts)
        case Experts():
            first, count = op.experts[0], len(op.experts)
            used = count * (1 - (1 - op.chosen / count) ** rows)  # that rows choose, if they choose evenly
            held = sum(w.data.nbytes for w in (first.gate, first.up, first.down))
            numbers = sum(w.rows * w.columns for w in (first.gate, first.up, first.down))
            return Traffic(weights=round(used * held), operations=2 * rows * op.chosen * numbers)
        case Cap():
            return Traffic(operations=3 * rows * op.out.width)
        case Observe():
            return Traffic(
                activations=2 * op.into.nbytes,
                pages_read=size.positions * _slot_bytes(layouts, op.layer, packed=False) // 2,
                operations=program.num_heads * size.seen * (2 * program.head_dim + 2),
            )  # fmt: skip
        case Copy():
            return Traffic(activations=rows * op.x.width * 4)
        case Gate():
            return Traffic(operations=rows * op.out.width * (ACTIVATION_OPS[op.activation] + (1 if op.up else 0)))


def _attention_traffic(op: Attend, size: StepSize, program: Program, layouts: Sequence[PageLayout]) -> Traffic:
    """K and V that are seen, and the sketches of the pages that are chosen from."""
    each = 4 * program.head_dim + (3 if op.softcap else 0)
    if op.choice is None:
        positions, seen = size.within(op.window, op.first)
        sketches = looked = 0
    else:
        positions, seen, looked = size.chosen(op.choice, layouts[0].page_size)
        sketches = sum(_sketch_bytes(layout, op.layer) for layout in layouts)
    return Traffic(
        pages_read=positions * _slot_bytes(layouts, op.layer, packed=True) + looked * sketches,
        operations=program.num_heads * (seen * each + looked * 2 * (layouts[0].page_size + 1) * program.head_dim),
    )


def _sketch_bytes(layout: PageLayout, layer: int) -> int:
    """Sketches of one page in one layer."""
    spec = layout.layers[layer]
    return spec.kv_heads * layout.sketch_bytes(layer) if spec else 0


def _slot_bytes(layouts: Sequence[PageLayout], layer: int, *, packed: bool) -> int:
    """K and V of one position in one layer; of a packed layer as it is packed, or as floats."""
    held = [layout for layout in layouts if layout.layers[layer] is not None]
    chosen = [layout for layout in held if layout.spec(layer).packed == packed] or held
    return sum(layout.layer_bytes(layer) // layout.page_size for layout in chosen)
