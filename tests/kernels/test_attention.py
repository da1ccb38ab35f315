"""Paged attention: close to the reference for every shape, and the same bits however a row is reached."""

from __future__ import annotations

import numpy as np
import pytest

from attention import Shape, World, build
from kvist.kernels.cpu import backend as cpu
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.reference import ReferenceBackend
from ops import same_bits

SHAPES = [
    (Shape(16, 2, 1), 70, "f32", 16),
    (Shape(16, 1, 9), 1300, "f16", 32),
    (Shape(32, 2, 3), 700, "bf16", 64),
    (Shape(64, 3, 3), 1500, "f16", 16),
    (Shape(64, 1, 8), 1100, "f32", 128),
    (Shape(80, 2, 4), 600, "bf16", 16),
    (Shape(96, 1, 1), 530, "f32", 32),
    (Shape(128, 2, 4), 1050, "f16", 128),
    (Shape(128, 1, 64), 130, "f32", 16),  # a group larger than a tile of rows
]
IDS = [f"{s.dims}x{s.kv_heads}x{s.group}-{length}-{kv}-{size}" for s, length, kv, size in SHAPES]
EXACT = [SHAPES[1], SHAPES[3], SHAPES[5], SHAPES[7], SHAPES[8]]


def error_to_reference(world: World, reference_world: World, rows: list[int]) -> float:
    """The largest difference over some positions; K and V are the kernel's own, so that rounding them is not compared
    twice.
    """
    found = world.whole()
    worst = 0.0
    for position in rows:
        reference_world.pool.data[:] = world.pool.data
        expected = reference_world.run((0, position, 1))[0]
        worst = max(worst, float(np.abs(found[position] - expected).max()))
    return worst


@pytest.mark.parametrize(("shape", "length", "kv", "page_size"), SHAPES, ids=IDS)
def test_close_to_the_reference(backend: CpuBackend, shape: Shape, length: int, kv: str, page_size: int) -> None:
    options = {"kv": kv, "page_size": page_size}
    world, truth = build(backend, shape, length, **options), build(ReferenceBackend(), shape, length, **options)
    rows = sorted({0, 1, 15, 16, 63, 64, 65, 511, 512, 513, 1024, length - 1} & set(range(length)))
    assert error_to_reference(world, truth, rows) < 2e-5


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16"])
def test_a_step_of_mixed_sequences_is_close_to_the_reference(backend: CpuBackend, kv: str) -> None:
    made = [build(b, Shape(16, 2, 3), 40, kv=kv, sequences=3, layers=2, layer=1) for b in (backend, ReferenceBackend())]
    steps = [((0, 0, 40), (1, 0, 7)), ((1, 7, 1), (2, 0, 33)), ((2, 33, 2), (1, 8, 20))]
    for step in steps:
        found, expected = (world.run(*step) for world in made)
        assert np.abs(found - expected).max() < (5e-6 if kv == "f32" else 2e-3), (
            "one of K or V may be rounded the other way"
        )


@pytest.fixture(scope="module")
def wholes(backend: CpuBackend) -> list[np.ndarray]:
    return [build(backend, shape, length, kv=kv, page_size=size).whole() for shape, length, kv, size in EXACT]


@pytest.mark.parametrize("case", range(len(EXACT)))
@pytest.mark.parametrize("sizes", [(1,), (7,), (64,), (512,), (1, 100, 3, 2, 16)], ids=str)
def test_chunks_and_decode_give_the_same_bits(
    backend: CpuBackend, wholes: list[np.ndarray], case: int, sizes: tuple[int, ...]
) -> None:
    shape, length, kv, size = EXACT[case]
    assert same_bits(build(backend, shape, length, kv=kv, page_size=size).chunked(sizes), wholes[case])


@pytest.mark.parametrize("case", range(len(EXACT)))
@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
def test_page_sizes_give_the_same_bits(
    backend: CpuBackend, wholes: list[np.ndarray], case: int, page_size: int
) -> None:
    shape, length, kv, _ = EXACT[case]
    world = build(backend, shape, length, kv=kv, page_size=page_size)
    assert same_bits(world.whole(), wholes[case])
    assert same_bits(world.run((0, length - 1, 1))[0], wholes[case][-1])


@pytest.mark.parametrize("case", range(len(EXACT)))
def test_thread_counts_give_the_same_bits(one_thread: CpuBackend, wholes: list[np.ndarray], case: int) -> None:
    shape, length, kv, size = EXACT[case]
    world = build(one_thread, shape, length, kv=kv, page_size=size)
    assert same_bits(world.whole(), wholes[case])
    assert same_bits(world.run((0, length - 1, 1))[0], wholes[case][-1])


@pytest.mark.parametrize("room", [0, 1 << 13, 1 << 15, 1 << 17])
@pytest.mark.parametrize("case", [1, 3])
def test_split_or_not_gives_the_same_bits(
    backend: CpuBackend, wholes: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, case: int, room: int
) -> None:
    """With no room for partial results nothing is split; with a little, some sequences of a step are and others are
    not.
    """
    shape, length, kv, size = EXACT[case]
    monkeypatch.setattr(cpu, "PARTIAL_BYTES", room)
    world = build(backend, shape, length, kv=kv, page_size=size, sequences=4)
    world.whole(0)
    for s in (1, 2, 3):
        world.tables[s] = world.tables[0]  # several readers of the same pages
    for at in (513, length - 5):
        rows = world.run((0, at, 1))
        assert same_bits(rows[0], wholes[case][at])
        assert same_bits(world.run((0, at, 3)), wholes[case][at : at + 3])


def test_rows_do_not_know_the_sequences_beside_them(backend: CpuBackend, one_thread: CpuBackend) -> None:
    shape, length = Shape(64, 3, 3), 600
    alone = build(backend, shape, length, sequences=6)
    expected = [alone.whole(s) for s in range(6)]
    assert not same_bits(expected[0], expected[1])
    for made in (backend, one_thread):
        world = build(made, shape, length, sequences=6)
        for s in range(6):
            world.run((s, 0, 40 * s + 20))
        ages = [40 * s + 20 for s in range(6)]
        for counts in ([1] * 6, [1, 64, 1, 5, 16, 1], [17, 1, 90, 1, 1, 3], [300, 1, 1, 100, 1, 1]):
            rows = world.run(*((s, ages[s], counts[s]) for s in range(6)))
            first = 0
            for s in range(6):
                assert same_bits(rows[first : first + counts[s]], expected[s][ages[s] : ages[s] + counts[s]])
                first, ages[s] = first + counts[s], ages[s] + counts[s]


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("page_size", [16, 128])
def test_slots_that_hold_nothing_are_never_read(backend: CpuBackend, kv: str, page_size: int) -> None:
    """A pool full of NaN (every byte 0xFF is one, in all types) gives what a pool of zeros gives."""
    for shape in (Shape(64, 2, 3), Shape(16, 1, 9)):
        for length in (1, 17, 63, 65, 140, 530):
            clean, dirty = (
                build(backend, shape, length, kv=kv, page_size=page_size, fill_byte=byte) for byte in (0, 0xFF)
            )
            expected = clean.whole()
            assert np.isfinite(expected).all()
            assert same_bits(dirty.whole(), expected)
            dirty.pool.data[:] = 0xFF
            assert same_bits(dirty.chunked([1, 30, 5]), expected)


def test_what_a_page_held_before_is_never_read(backend: CpuBackend) -> None:
    shape, length = Shape(64, 2, 3), 300
    for page_size in (16, 64, 128):
        fresh = build(backend, shape, length, sequences=2, page_size=page_size)
        expected = fresh.run((1, 0, 77)), fresh.run((1, 77, 1))
        used = build(backend, shape, length, sequences=2, page_size=page_size)
        used.whole(0)
        used.tables[1] = used.tables[0][::-1].copy()
        assert same_bits(used.run((1, 0, 77)), expected[0])
        assert same_bits(used.run((1, 77, 1)), expected[1])


def test_large_scores_stay_finite_and_exact(backend: CpuBackend) -> None:
    """One position outweighs all others by far: its V comes out."""
    world = build(backend, Shape(16, 1, 1), 200, kv="f32", rotate=False)
    world.whole()
    k, v = np.zeros((16, 16), np.float32), np.arange(256, dtype=np.float32).reshape(16, 16)
    for page in world.tables[0]:
        world.pool.write(int(page), 0, 0, slice(0, 16), k, -v)
    k[3] = 1e4 * world.queries[199]
    world.pool.write(int(world.tables[0][2]), 0, 0, slice(0, 16), k, v)
    assert same_bits(world.run((0, 199, 1))[0], v[3])
