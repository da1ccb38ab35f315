"""Tokens that choose the pages they read: what the reference and plain attention make of it, the same bits every way."""

from __future__ import annotations

import numpy as np
import pytest

from attention import Shape, World, build
from kvist.cache.policy import Choice
from kvist.cache.policy.base import ALWAYS, WHOLE
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
        truth.pool.data[:] = world.pool.data
        assert np.abs(found[position] - truth.run((0, position, 1))[0]).max() < 2e-5
    assert np.abs(found - full).max() > 1e-2, "what is not read is missed"


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_the_bounds_are_the_smallest_and_the_largest(backend: CpuBackend, case: int) -> None:
    world = made(backend, case)
    world.whole()
    size = world.pool.layout.page_size
    for page in world.tables[0][1 : world.length // size]:
        for head in range(world.shape.kv_heads):
            k, _ = world.pool.read(int(page), 0, head)
            decode = world.pool.layout.codec.decode
            assert np.array_equal(decode(world.pool.bounds(int(page), 0, head)), [k.min(0), k.max(0)])


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
