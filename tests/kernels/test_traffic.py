"""What ops must move and compute, alone and as one."""

from __future__ import annotations

import numpy as np
import pytest

from kvist.cache.policy import Choice
from kvist.kernels.program import (
    BatchMetadata,
    Buffer,
    Embed,
    Gate,
    Matmul,
    Norm,
    Op,
    Program,
    Rotary,
    RotaryStore,
    SequenceRows,
    Weight,
)
from kvist.kernels.traffic import StepSize, Traffic, traffic_of
from ops import numbers, tiny_pool, weight

X, H, G, U = (Buffer(name, 32) for name in "xhgu")
LAST = Buffer("last", 32, sampled=True)
W = weight(numbers(0, 32, 32), "f16")
ONES = np.ones(32, np.float32)
LAYOUT = tiny_pool(kv_heads=2, kv="bf16").layout
PROGRAM = Program((Norm("rms", X, H, ONES, None, 1e-5, 30),), 0, 4, 2, 16, 1, 16)
SIZE = StepSize(rows=5, sampled=2, positions=0, seen=0)


def traffic(*ops: Op, size: StepSize = SIZE) -> Traffic:
    return traffic_of(ops, size, PROGRAM, [LAYOUT])


def test_sizes_of_a_step() -> None:
    pages = np.zeros((1, 4), np.int32)
    rows = np.zeros(7, np.int32)
    batch = BatchMetadata(
        rows, rows, rows[None], rows[:2], [SequenceRows(0, 1, 40, pages), SequenceRows(1, 6, 10, pages)], rows
    )
    size = StepSize.of(batch, 2)
    assert size == StepSize(7, 2, 41 + 16, 41 + sum(range(11, 17)), ((40, 1), (10, 6)))
    for window in (1, 3, 13, 16, 41, 100):
        spans = [[range(max(0, t - window + 1), t + 1) for t in rows] for rows in ([40], range(10, 16))]
        positions = sum(len(set().union(*(set(span) for span in row))) for row in spans)
        assert size.within(window) == (positions, sum(len(span) for row in spans for span in row))
    assert size.within(None) == (size.positions, size.seen)


def test_a_matmul() -> None:
    moved = Traffic(weights=32 * 32 * 2, activations=5 * 2 * 32 * 4, operations=2 * 5 * 32 * 32)
    assert traffic(Matmul(H, W, G)) == moved
    more = traffic(Matmul(H, W, X, ONES, X))
    assert more == moved + Traffic(weights=32 * 4, activations=5 * 32 * 4)
    assert more.bytes == 32 * 32 * 2 + 32 * 4 + 5 * 3 * 32 * 4


def test_packed_weights_count_packed() -> None:
    packed = Weight(np.zeros((32, 20), np.uint8), "q4_1")  # one block of 32 numbers a row
    found = traffic(Matmul(H, packed, G))
    assert (found.weights, found.operations) == (32 * 20, 2 * 5 * 32 * 32)


def test_sampled_rows_and_steps_without_any() -> None:
    found = traffic(Norm("layer", X, LAST, ONES, ONES, 1e-5, 30))
    assert found == Traffic(weights=2 * 32 * 4, activations=2 * 2 * 32 * 4, operations=2 * 30 * 8)
    head = Matmul(LAST, W, Buffer("logits", 32, sampled=True))
    assert traffic(head, size=StepSize(5, 0, 0, 0)) == Traffic()


@pytest.mark.parametrize("rotated", [True, False])
def test_rotary_store(rotated: bool) -> None:
    q, k, v = Buffer("q", 64), Buffer("k", 32), Buffer("v", 32)
    rotary = Rotary(np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)) if rotated else None
    found = traffic(RotaryStore(q, k, v, 0, rotary))
    assert found.pages_written == 5 * 2 * 2 * 16 * 2
    assert found.activations == 5 * 4 * ((64 + 32 + 32) + (64 + 32 if rotated else 0))
    assert (found.weights, found.operations) == ((5 * 2 * 8 * 4, 5 * 6 * 6 * 8) if rotated else (0, 0))


def test_embeddings_read_a_row_for_each_token() -> None:
    assert traffic(Embed(W, X)) == Traffic(weights=5 * 64, activations=5 * 128, operations=5 * 32)
    assert traffic(Embed(W, X, positions=W)).weights == 2 * 5 * 64


def test_what_stays_between_fused_ops_does_not_count() -> None:
    row = 5 * 32 * 4
    apart = (Matmul(H, W, G), Matmul(H, W, U), Gate(G, U, G, "silu"))
    assert sum((traffic(op) for op in apart), Traffic()).activations == (2 + 2 + 3) * row
    together = traffic(*apart)
    assert together.activations == 2 * row  # h once, g once
    assert together.weights == 2 * 32 * 32 * 2
    assert together.operations == sum(traffic(op).operations for op in apart) == 2 * 2 * 5 * 32 * 32 + 5 * 32 * 5
    normed = traffic(Norm("rms", X, H, ONES, None, 1e-5, 32), Matmul(H, W, G))
    assert normed.activations == 2 * row  # x and g; h stays


def test_rows_that_choose_pages() -> None:
    """Of 500 pages a quarter is read, the last as far as the row; bounds of all but the three that are always read."""
    size = StepSize.over([(7999, 1), (30, 2)], 1)
    positions, seen, looked = size.chosen(Choice(2500, 3), 16)
    assert (positions, seen, looked) == (124 * 16 + 16 + 32, 124 * 16 + 16 + 31 + 32, 497)
