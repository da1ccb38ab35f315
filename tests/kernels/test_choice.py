"""Tokens that choose the pages they read: what the reference and plain attention make of it, the same bits every way."""

from __future__ import annotations

import numpy as np
import pytest

from attention import Shape, World, build
from kvist.cache.policy import Choice
from kvist.cache.policy.base import ALWAYS, WHOLE
from kvist.cache.sketch import sketch
from kvist.kernels.cpu import backend as cpu
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.reference import ReferenceBackend
from ops import same_bits

QUARTER, FEW, ALL = Choice(2500, ALWAYS), Choice(0, 5), Choice(WHOLE, ALWAYS)
CASES = [
    (Shape(16, 2, 1), 700, "f32", 16, QUARTER),
    (Shape(64, 3, 3), 1500, "f16", 16, QUARTER),
    (Shape(32, 2, 4), 900, "bf16", 32, FEW),
    (Shape(64, 1, 9), 1300, "f16", 64, QUARTER),
    (Shape(80, 2, 2), 1100, "bf16", 16, QUARTER),
    (Shape(128, 1, 6), 1500, "f32", 128, FEW),
]
IDS = [f"{s.dims}x{s.kv_heads}x{s.group}-{length}-{kv}-{size}-{c.share}" for s, length, kv, size, c in CASES]


def made(backend: CpuBackend | ReferenceBackend, case: int, **options: object) -> World:
    shape, length, kv, size, choice = CASES[case]
    return build(backend, shape, length, **{"kv": kv, "page_size": size, "choice": choice, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_close_to_the_reference(backend: CpuBackend, case: int) -> None:
    world, truth = made(backend, case), made(ReferenceBackend(), case)
    found, full = world.whole(), made(backend, case, choice=None).whole()
    rows = sorted({0, 1, 64, 257, 511, 512, 640, 1024, world.length - 1} & set(range(world.length)))
    for position in rows:
        truth.pool.data[:], truth.pool.sketches[:] = world.pool.data, world.pool.sketches
        assert np.abs(found[position] - truth.run((0, position, 1))[0]).max() < 2e-5
    assert np.abs(found - full).max() > 1e-2, "what is not read is missed"


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_the_sketches_are_those_of_the_definition(backend: CpuBackend, case: int) -> None:
    world = made(backend, case)
    world.whole()
    size = world.pool.layout.page_size
    for page in world.tables[0][1 : world.length // size]:
        for head in range(world.shape.kv_heads):
            k, _ = world.pool.read(int(page), 0, head)
            assert world.pool.sketch(int(page), 0, head).tobytes() == sketch(k).tobytes()


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_all_pages_have_the_bits_of_no_choice(backend: CpuBackend, case: int) -> None:
    world, full = made(backend, case, choice=ALL), made(backend, case, choice=None)
    assert same_bits(world.whole(), full.whole())
    last = (0, world.length - 1, 1)
    assert same_bits(world.run(last), full.run(last))


@pytest.mark.parametrize("sizes", [(1,), (7,), (64,), (512,), (1, 100, 3, 2, 16)], ids=str)
@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_chunks_and_decode_give_the_same_bits(backend: CpuBackend, case: int, sizes: tuple[int, ...]) -> None:
    assert same_bits(made(backend, case).chunked(sizes), made(backend, case).whole())


@pytest.mark.parametrize("room", [0, 1 << 13, 1 << 17])
def test_split_or_not_gives_the_same_bits(backend: CpuBackend, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """2,100 positions, of which 1,050 are read: the splits are those of what is read."""
    shape, choice = Shape(64, 3, 3), Choice(5000, ALWAYS)
    whole = build(backend, shape, 2100, choice=choice).whole()
    monkeypatch.setattr(cpu, "PARTIAL_BYTES", room)
    world = build(backend, shape, 2100, choice=choice, sequences=2)
    world.whole(0)
    world.run((1, 0, 1500))
    for at, count in ((2099, 1), (2000, 3), (1500, 1)):
        rows = world.run((1, 1500, 1), (0, at, count))
        assert same_bits(rows[1:], whole[at : at + count])


def test_one_thread_gives_the_same_bits(backend: CpuBackend, one_thread: CpuBackend) -> None:
    assert same_bits(made(one_thread, 1).whole(), made(backend, 1).whole())


@pytest.mark.parametrize("threads", [2, 3, 4, 7])
def test_shared_out_or_not_gives_the_same_bits(one_thread: CpuBackend, threads: int) -> None:
    """Few rows have their pages weighed in parts of 64 and more: here up to 4, again and again in one place."""
    shape, length = Shape(64, 3, 3), 3700
    whole = build(one_thread, shape, length, choice=QUARTER).whole()
    backend = CpuBackend(threads)
    try:
        world = build(backend, shape, length, sequences=2, choice=QUARTER)
        world.whole(0)
        world.run((1, 0, 2500))
        for at, count in ((3699, 1), (3699, 1), (3690, 2), (2500, 3), (1000, 1), (3680, 9), (3699, 1)):
            assert same_bits(world.run((0, at, count)), whole[at : at + count])
            both = world.run((1, 2499, 1), (0, at, count))
            assert same_bits(both[1:], whole[at : at + count])
    finally:
        backend.close()


def test_rows_do_not_know_the_sequences_beside_them(backend: CpuBackend) -> None:
    shape = Shape(64, 3, 3)
    alone = build(backend, shape, 600, sequences=4, choice=QUARTER)
    expected = [alone.whole(s) for s in range(4)]
    world = build(backend, shape, 600, sequences=4, choice=QUARTER)
    ages = [0] * 4
    for counts in ([1, 300, 17, 64], [299, 1, 200, 5], [300, 200, 1, 400]):
        rows = world.run(*((s, ages[s], counts[s]) for s in range(4)))
        for s, first in enumerate(np.cumsum([0, *counts[:-1]])):
            assert same_bits(rows[first : first + counts[s]], expected[s][ages[s] : ages[s] + counts[s]])
            ages[s] += counts[s]


SKETCHES = {
    "equal": lambda kept: np.broadcast_to(kept[:1], kept.shape),
    "zero": np.zeros_like,
    "any bytes": lambda kept: np.random.default_rng(1).integers(0, 256, kept.shape, np.uint8),
    "all bits": lambda kept: np.full_like(kept, 255),
    "two alike": lambda kept: np.repeat(kept[::2], 2, axis=0)[: len(kept)],
}


@pytest.mark.parametrize("kind", SKETCHES)
@pytest.mark.parametrize("case", [0, 1, 4], ids=[IDS[i] for i in (0, 1, 4)])
def test_ties_and_what_is_no_number(backend: CpuBackend, case: int, kind: str) -> None:
    """Whatever stands in the sketches: the reference's pages are read, by a decode row and by one of a chunk alike."""
    world, truth = made(backend, case), made(ReferenceBackend(), case)
    world.whole()
    last = world.length - 1
    for head in range(world.shape.kv_heads):
        pages = world.tables[0][1 : last // world.pool.layout.page_size]
        views = [world.pool.sketch(int(page), 0, head) for page in pages]
        for view, changed in zip(views, SKETCHES[kind](np.stack(views)), strict=True):
            view[:] = changed
    found = world.run((0, last, 1))[0]
    assert same_bits(world.run((0, last - 2, 3))[-1], found)
    truth.pool.data[:], truth.pool.sketches[:] = world.pool.data, world.pool.sketches
    assert np.abs(found - truth.run((0, last, 1))[0]).max() < 2e-5
