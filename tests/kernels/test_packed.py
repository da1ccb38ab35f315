"""Packed pages in kernels: what a step packs, and what attention makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvist.cache.codec.factors import TILE, counting
from kvist.cache.pool import PagePool
from kvist.kernels import reference_pages
from kvist.kernels.program import Backend, Limits, Seal
from kvist.kernels.reference import ReferenceBackend
from ops import same_bits
from packed_layer import KV_HEADS, World

PAIRS = [  # every codec once or twice; each pair is compiled
    ("int8", "int8"), ("int4", "int4"), ("kivi4", "kivi4"), ("int5", "int3"), ("fp8", "lm4"), ("lm3", "int6"), ("f16", "kivi2"),
]  # fmt: skip


def page_sizes(*names: str) -> list[int]:
    return [64, 128] if any(name.startswith("kivi") for name in names) else [16, 64]


@pytest.mark.parametrize(("k", "v"), PAIRS)
@pytest.mark.parametrize("dims", [64, 128])
def test_a_step_packs_what_the_definition_says(backend: Backend, k: str, v: str, dims: int) -> None:
    for page_size in page_sizes(k, v):
        world, same = World(k, v, page_size, dims), World(k, v, page_size, dims)
        world.run(backend, 128)
        same.run(ReferenceBackend(), 128)
        for page in range(world.sealed.num_pages - 2):  # the last is page 0's, the first is not full
            for head in range(KV_HEADS):
                exact = world.exact.read(world.sealed.num_pages - 2 - page, 0, head)
                same.sealed.pack(page + 1, 0, head, *exact)
        for page in range(1, world.sealed.num_pages - 1):
            for side in range(2):
                for head in range(KV_HEADS):
                    made, wanted = (pool.read(page, 0, head)[side] for pool in (world.sealed, same.sealed))
                    if (k, v)[side].startswith("lm"):  # the mean square is summed in another order
                        assert np.isclose(made, wanted, rtol=2e-3).mean() > 0.999
                    else:
                        assert same_bits(made, wanted)


@pytest.mark.parametrize(("k", "v"), PAIRS)
@pytest.mark.parametrize("window", [None, 100])
def test_rows_are_as_the_reference_has_them_and_chunks_change_no_bit(
    backend: Backend, k: str, v: str, window: int | None
) -> None:
    for page_size in page_sizes(k, v):
        whole = World(k, v, page_size, 64).run(backend, 300, window)
        wanted = World(k, v, page_size, 64).run(ReferenceBackend(), 300, window)
        by_channel = k.startswith("kivi")  # the reference does not round queries page by page
        assert np.abs(whole - wanted).max() < (5e-2 if by_channel else 1e-2)  # a code at a border may fall either way
        assert np.abs(whole - wanted).mean() < (1e-3 if by_channel else 2e-4)  # it rounds weights as kernels do
        for chunk in (1, 7, 64):
            assert same_bits(World(k, v, page_size, 64).run(backend, chunk, window), whole)


def far_world(k: str, v: str) -> World:
    """Two splits, in which many tiles of a row weigh nothing beside the first position, and many do."""
    world = World(k, v, page_sizes(k, v)[0], 64, length=700)
    world.look_at_first(14)
    return world


@pytest.mark.parametrize(("k", "v"), PAIRS)
@pytest.mark.parametrize("window", [None, 600])
def test_what_weighs_nothing_depends_on_the_row_alone(backend: Backend, k: str, v: str, window: int | None) -> None:
    whole = far_world(k, v).run(backend, 700, window)
    for chunk in (1, 7, 64):
        assert same_bits(far_world(k, v).run(backend, chunk, window), whole)
    wanted = far_world(k, v).run(ReferenceBackend(), 700, window)
    assert np.abs(whole - wanted).max() < 5e-2  # a tile at the border may fall either way
    assert np.abs(whole - wanted).mean() < (1e-3 if k.startswith("kivi") else 2e-4)


@pytest.mark.parametrize(("k", "v"), [pair for pair in PAIRS if not pair[0].startswith("kivi")])  # see above
def test_values_that_weigh_nothing_are_not_read(
    backend: Backend, k: str, v: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, told = far_world(k, v), list[np.ndarray]()
    last, layout = world.length - 1, world.sealed.layout
    whole = world.run(backend, 64)

    def noted(*given: object) -> np.ndarray:
        told.append(counting(*given))  # type: ignore[arg-type]
        return told[-1]

    monkeypatch.setattr(reference_pages, "counting", noted)
    pools, limits = [world.sealed, world.exact], Limits(world.length, world.length, 1)
    ReferenceBackend().bind(world.program(), pools, limits).run(world.batch(last, last + 1))
    counts = np.reshape(told, (KV_HEADS, -1, world.length)).any(1)  # in one row of a KV head at least
    sealed = np.arange(world.page_size, last // world.page_size * world.page_size)
    assert 0.1 < counts[:, TILE : sealed[-1] & -TILE].mean() < 0.9
    executable = backend.bind(world.program(), pools, limits)

    def spoil(head: int, position: int) -> None:
        place, slot = divmod(position, world.page_size)
        extent, page = divmod(world.sealed.num_pages - 1 - place, layout.extent_pages)
        stored = world.sealed.heads(0)[extent, head, page]
        begin = layout.header_bytes(0) + slot // 16 * layout.block_bytes(0)
        stored[begin + layout.v_offset(0) : begin + layout.block_bytes(0)] = 0xFF

    for head in range(KV_HEADS):
        for position in sealed[~counts[head, sealed]]:
            spoil(head, int(position))
    assert same_bits(executable.run(world.batch(last, last + 1)), whole[last:])
    spoil(0, int(sealed[counts[0, sealed]][0]))
    assert not same_bits(executable.run(world.batch(last, last + 1)), whole[last:])


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_the_largest_heads(backend: Backend, sign: int) -> None:
    """As many products as a sum may have (`Packed.check`), as large as can be: all but one of a slot's codes are 255."""
    worlds = [World("int8", "int8", 16, 1008, length=64) for _ in range(2)]
    for world in worlds:
        world.q = np.full_like(world.q, sign)
        low = np.arange(64)[:, None] == np.arange(world.k.shape[1]) % 1008
        world.k = world.v = np.where(low, np.float32(-1), np.float32(1))
        world.scale = 1 / 1008
    made, wanted = worlds[0].run(backend, 1), worlds[1].run(ReferenceBackend(), 64)
    assert np.abs(made - wanted).max() < 1e-2


@pytest.mark.parametrize("dims", [16, 32, 128])
@pytest.mark.parametrize(
    ("exact", "k", "v"),
    [("f16", "int4", "int4"), ("f32", "int8", "int8"), ("bf16", "int4", "int4"), ("f16", "fp8", "lm4")],
)
def test_other_heads_and_types_of_exact_pages(backend: Backend, dims: int, exact: str, k: str, v: str) -> None:
    whole = World(k, v, 16, dims, exact).run(backend, 300)
    wanted = World(k, v, 16, dims, exact).run(ReferenceBackend(), 300)
    assert np.abs(whole - wanted).mean() < 2e-4
    assert same_bits(World(k, v, 16, dims, exact).run(backend, 1), whole)


def test_heads_that_are_no_power_of_two(backend: Backend) -> None:
    whole = World("int8", "int8", 16, 80).run(backend, 300)
    assert np.abs(whole - World("int8", "int8", 16, 80).run(ReferenceBackend(), 300)).mean() < 2e-4
    assert same_bits(World("int8", "int8", 16, 80).run(backend, 1), whole)


def test_own_page_and_page_0_are_exact(backend: Backend) -> None:
    """As long as a sequence has two pages at most, nothing is lost: bits are those of a layer of floats."""
    world = World("int8", "int8", 128, 64, length=256)
    plain = replace(world.exact.layout, layers=world.exact.layout.layers)
    pool = PagePool(plain, 2)
    got = world.run(backend, 64)
    program = world.program()
    floats = replace(program, ops=tuple(op for op in program.ops if not isinstance(op, Seal)))
    executable = backend.bind(floats, [pool], Limits(256, 256, 1))
    batch = world.batch(0, 256)
    one = replace(batch, row_pages=batch.row_pages[1:], sequences=[replace(batch.sequences[0], pages=batch.sequences[0].pages[1:])])  # fmt: skip
    wanted = executable.run(one)
    assert np.abs(got - wanted).max() < 1e-5
    assert same_bits(got[:128], wanted[:128])
