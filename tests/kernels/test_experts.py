"""A mixture of experts: close to the reference, and a row's bits are its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Backend, Buffer, Expert, Experts, Floats, Op
from kvist.kernels.reference import ReferenceBackend
from ops import fill, numbers, row_batch, run_ops, same_bits, weight

ROWS, HIDDEN, INNER = 40, 48, 80


def made(
    experts: int, chosen: int, dtype: str = "f16", clamp: float | None = None, biases: bool = False,
    sizes: tuple[int, int, int] = (ROWS, HIDDEN, INNER),
) -> list[Op]:  # fmt: skip
    rows, hidden, inner = sizes
    x, logits, stream = Buffer("x", hidden), Buffer("logits", -(-experts // 16) * 16), Buffer("stream", hidden)

    def bias(seed: int, width: int) -> Floats | None:
        return numbers(seed, width) if biases else None

    layer = tuple(
        Expert(
            weight(numbers(10 + 3 * e, inner, hidden, scale=0.2), dtype), weight(numbers(11 + 3 * e, inner, hidden, scale=0.2), dtype),
            weight(numbers(12 + 3 * e, hidden, inner, scale=0.2), dtype), bias(900 + e, inner), bias(930 + e, inner), bias(960 + e, hidden),
        )
        for e in range(experts)
    )  # fmt: skip
    return [
        fill(x, numbers(1, rows, hidden)), fill(logits, numbers(2, rows, logits.width, scale=2.0)),
        fill(stream, numbers(3, rows, hidden)), Experts(x, logits, stream, stream, layer, chosen, True, "silu", clamp),
    ]  # fmt: skip


def run(backend: Backend, ops: list[Op], rows: list[int], hidden: int = HIDDEN) -> Floats:
    return run_ops(backend, ops, row_batch(rows), hidden)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (4, 2), (8, 8), (20, 4)])
@pytest.mark.parametrize("renormalise", [False, True])
def test_close_to_the_reference(backend: CpuBackend, dtype: str, experts: int, chosen: int, renormalise: bool) -> None:
    ops = made(experts, chosen, dtype)
    ops[-1] = replace(ops[-1], renormalise=renormalise)  # type: ignore[type-var]
    rows = list(range(ROWS))
    assert np.abs(run(backend, ops, rows) - run(ReferenceBackend(), ops, rows)).max() < 2e-5


def test_the_clamp_of_gpt_oss_with_biases(backend: CpuBackend) -> None:
    ops, rows = made(6, 3, clamp=1.0, biases=True), list(range(ROWS))
    assert np.abs(run(backend, ops, rows) - run(ReferenceBackend(), ops, rows)).max() < 2e-5


@pytest.mark.parametrize("biases", [False, True])
def test_a_row_does_not_know_the_rows_beside_it(backend: CpuBackend, one_thread: CpuBackend, biases: bool) -> None:
    ops = made(5, 2, biases=biases)
    whole = run(backend, ops, list(range(ROWS)))
    assert same_bits(run(one_thread, ops, list(range(ROWS))), whole)
    for rows in ([0], [39], [3, 2, 1], [7] * 20, list(range(ROWS - 1, -1, -1))):
        assert same_bits(run(backend, ops, rows), whole[rows])


def test_of_equal_scores_the_first_experts_are_chosen(backend: CpuBackend) -> None:
    ops = made(8, 3)
    same = np.zeros((ROWS, 16), np.float32)
    same[:, 5] = 1.0
    ops[1] = fill(Buffer("logits", 16), same)
    expected = run(ReferenceBackend(), ops, [0, 1, 2])
    assert np.abs(run(backend, ops, [0, 1, 2]) - expected).max() < 2e-5


def test_logits_that_are_no_numbers_stay_a_problem_of_their_row(backend: CpuBackend) -> None:
    ops = made(8, 3)
    expected = run(backend, ops, [0, 1, 2])
    bad = numbers(2, ROWS, 16, scale=2.0).copy()
    bad[1] = np.nan
    ops[1] = fill(Buffer("logits", 16), bad)
    found = run(backend, ops, [0, 1, 2])
    assert same_bits(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_wide_experts_that_all_rows_choose(backend: CpuBackend, dtype: str) -> None:
    """More rows than the sums of one block of columns have room for: they are taken in portions."""
    rows = 400
    ops = made(1, 1, dtype, sizes=(rows, 784, 800))
    whole = run(backend, ops, list(range(rows)), 784)
    assert np.abs(whole - run(ReferenceBackend(), ops, list(range(rows)), 784)).max() < 2e-3
    assert same_bits(run(backend, ops, list(range(200)), 784), whole[:200])
    assert same_bits(run(backend, ops, [rows - 1], 784), whole[-1:])
