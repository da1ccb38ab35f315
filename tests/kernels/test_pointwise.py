"""Embedding, norms, rotary embedding: close to the reference, exact where the arithmetic is, and row by row."""

from __future__ import annotations

import numpy as np
import pytest

from attention import rotary
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import (
    Backend,
    BatchMetadata,
    Buffer,
    Embed,
    Floats,
    Limits,
    Matmul,
    Norm,
    Op,
    Program,
    RotaryStore,
)
from kvist.kernels.reference import ReferenceBackend
from ops import fill, numbers, row_batch, run_ops, same_bits, tiny_pool, weight

DTYPES = ("f32", "f16", "bf16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_embed_is_exact(backend: CpuBackend, dtype: str, learned: bool, scale: float) -> None:
    table, places = weight(numbers(1, 60, 48), dtype), weight(numbers(2, 60, 48))
    op = Embed(table, Buffer("x", 48), scale, places if learned else None)
    batch = row_batch([5, 59, 0, 5, 17, 3, 2, 1, 33])
    found, expected = (run_ops(b, [op], batch, 48) for b in (backend, ReferenceBackend()))
    assert same_bits(found, expected)


def norm_op(kind: str, width: int, x: Buffer, out: Buffer, bias: bool) -> Norm:
    padded = x.width
    w = np.pad(1 + numbers(3, width, scale=0.2), (0, padded - width)).astype(np.float32)
    b = np.pad(numbers(4, width), (0, padded - width)).astype(np.float32) if bias else None
    return Norm(kind, x, out, w, b, 1e-5, width)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "bias"), [("rms", False), ("layer", True), ("layer", False)])
@pytest.mark.parametrize("width", [1, 10, 16, 40, 576, 2048])
def test_norms(backend: CpuBackend, one_thread: CpuBackend, kind: str, bias: bool, width: int) -> None:
    """Close to the reference; padded lanes stay zero; every row alone gives the bits it has in the batch."""
    padded = -(-width // 16) * 16
    values = np.pad(3 + numbers(5, 40, width, scale=2.0), ((0, 0), (0, padded - width))).astype(np.float32)
    x, out = Buffer("x", padded), Buffer("out", padded)
    ops: list[Op] = [fill(x, values), norm_op(kind, width, x, out, bias)]
    rows = list(range(40))
    found, expected = (run_ops(b, ops, row_batch(rows), padded) for b in (backend, ReferenceBackend()))
    assert np.abs(found - expected).max() < 4e-6
    assert not found[:, width:].any()
    assert same_bits(run_ops(one_thread, ops, row_batch(rows), padded), found)
    for row in (0, 3, 39):
        assert same_bits(run_ops(backend, ops, row_batch([row]), padded), found[row : row + 1])


def test_norms_in_place_and_of_extreme_rows(backend: CpuBackend) -> None:
    values = np.stack([np.zeros(32), np.full(32, 1e18), np.full(32, 1e-30), np.arange(32) - 1e4]).astype(np.float32)
    x = Buffer("x", 32)
    for kind in ("rms", "layer"):
        ops: list[Op] = [fill(x, values), norm_op(kind, 32, x, x, True)]
        found, expected = (run_ops(b, ops, row_batch([0, 1, 2, 3]), 32) for b in (backend, ReferenceBackend()))
        assert np.allclose(found, expected, rtol=1e-5, atol=2e-5)


def head(widths: int = 48) -> tuple[list[Op], int]:
    """Embed, norm of the sampled rows, head."""
    x, last, logits = Buffer("x", widths), Buffer("last", widths, sampled=True), Buffer("logits", 64, sampled=True)
    ops: list[Op] = [
        fill(x, numbers(5, 40, widths)),
        norm_op("rms", widths, x, last, False),
        Matmul(last, weight(numbers(6, 55, widths)), logits),
    ]
    return ops, 55


@pytest.mark.parametrize("sampled", [[0], [39], [1, 5, 38], [7, 3, 3, 0], list(range(40))])
def test_sampled_rows_are_gathered(backend: CpuBackend, sampled: list[int]) -> None:
    ops, vocab = head()
    rows = list(range(40))
    every = run_ops(backend, ops, row_batch(rows), vocab, head=1)
    assert np.abs(every - run_ops(ReferenceBackend(), ops, row_batch(rows), vocab)).max() < 2e-5
    assert same_bits(run_ops(backend, ops, row_batch(rows, sampled), vocab, head=1), every[sampled])


@pytest.mark.parametrize("limit", [1, 7, 39, 40])
def test_more_sampled_rows_than_the_limit_are_taken_in_portions(backend: CpuBackend, limit: int) -> None:
    ops, vocab = head()
    rows = list(range(40))
    every = run_ops(backend, ops, row_batch(rows), vocab, head=1)
    assert same_bits(run_ops(backend, ops, row_batch(rows), vocab, head=1, sampled_limit=limit), every)


def test_no_sampled_rows(backend: CpuBackend) -> None:
    ops, vocab = head()
    assert run_ops(backend, ops, row_batch([0, 1], []), vocab, head=1).shape == (0, vocab)


def rotated(backend: Backend, dims: int, half: int, positions: np.ndarray) -> tuple[Floats, Floats, Floats]:
    """q and k after the op, and K as the page has it (f32)."""
    heads, kv_heads, rows = 3, 2, len(positions)
    q, k, v = Buffer("q", heads * dims), Buffer("k", kv_heads * dims), Buffer("v", kv_heads * dims)
    table = rotary(2 * half, 256)
    found = []
    for shown in (q, k):
        out = Buffer("out", shown.width)
        ops = (
            fill(q, numbers(1, rows, q.width)), fill(k, numbers(2, rows, k.width)), fill(v, numbers(3, rows, v.width)),
            RotaryStore(q, k, v, 0, table), Matmul(shown, weight(np.eye(shown.width, dtype=np.float32)), out),
        )  # fmt: skip
        pool = tiny_pool(16, kv_heads, dims, "f32", pages=16)
        program = Program(ops, len(ops), heads, kv_heads, dims, 1, shown.width)
        where = np.asarray(positions, np.int32)
        ids = np.arange(rows, dtype=np.int32)
        batch = BatchMetadata(ids, where, where[None] // 16, ids, [], where)
        found.append(backend.bind(program, [pool], Limits(rows, rows, 1)).run(batch).copy())
    stored = [[pool.read(p // 16, 0, h, slice(p % 16, p % 16 + 1))[0][0] for h in range(kv_heads)] for p in positions]
    return found[0], found[1], np.array(stored, np.float32).reshape(rows, -1)


@pytest.mark.parametrize(
    ("dims", "half"),
    [(16, 8), (16, 5), (16, 1), (32, 16), (32, 10), (64, 32), (64, 13), (80, 40), (96, 48), (128, 64), (128, 16)],
)
def test_rotary(backend: CpuBackend, dims: int, half: int) -> None:
    """Halves of any length: a head whose half is no whole vector must not touch its other half, or the next head."""
    positions = np.array([0, 1, 2, 50, 255, 254, 17])
    found, expected = rotated(backend, dims, half, positions), rotated(ReferenceBackend(), dims, half, positions)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() < 1e-6
    assert np.array_equal(found[1], found[2]), "what the page holds is what k holds"
    untouched = numbers(1, 7, 3 * dims).reshape(7, 3, dims)[..., 2 * half :]
    assert np.array_equal(found[0].reshape(7, 3, dims)[..., 2 * half :], untouched)
    alone = rotated(backend, dims, half, positions[:1])
    assert same_bits(alone[0], found[0][:1]) and same_bits(alone[1], found[1][:1])
