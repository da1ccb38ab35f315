"""Packed pages in kernels: what a step packs, and what attention makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvist.cache.codec import Packed, any_codec, codec
from kvist.cache.codec.packed import signs
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.pool import PagePool
from kvist.kernels.program import (
    Attend,
    Backend,
    BatchMetadata,
    Buffer,
    Floats,
    Limits,
    Mix,
    Op,
    Program,
    RotaryStore,
    Seal,
    SequenceRows,
)
from kvist.kernels.reference import ReferenceBackend
from ops import fill, numbers, same_bits

HEADS, KV_HEADS = 6, 2
PAIRS = [  # every codec once or twice; each pair is compiled
    ("int8", "int8"), ("int4", "int4"), ("kivi4", "kivi4"), ("int5", "int3"), ("fp8", "lm4"), ("lm3", "int6"), ("f16", "kivi2"),
]  # fmt: skip


def page_sizes(*names: str) -> list[int]:
    return [64, 128] if any(name.startswith("kivi") for name in names) else [16, 64]


class World:
    """One packed layer: pools of exact and sealed pages, every position's q, k and v from fixed numbers."""

    def __init__(self, k: str, v: str, page_size: int, dims: int, exact: str = "f16", length: int = 300) -> None:
        self.dims, self.page_size, self.length = dims, page_size, length
        spec = LayerSpec(KV_HEADS, dims, any_codec(k), any_codec(v))
        pages = -(-length // page_size)
        self.sealed = PagePool(PageLayout((spec,), page_size, codec(exact)), pages)
        self.exact = PagePool(PageLayout((spec.exact,), page_size, codec(exact)), pages)
        for pool in (self.sealed, self.exact):
            pool.data[:] = 0xFF  # what nobody wrote is no number
        turned = [isinstance(c, Packed) and c.rotated for c in (spec.k, spec.v)]
        self.mix = Mix(signs(dims), turned[0], turned[1]) if any(turned) else None

    def program(self, window: int | None = None) -> Program:
        q, k, v = Buffer("q", HEADS * self.dims), Buffer("k", KV_HEADS * self.dims), Buffer("v", KV_HEADS * self.dims)
        out = Buffer("out", HEADS * self.dims)
        ops: list[Op] = [
            fill(q, numbers(1, self.length, q.width)),
            fill(k, numbers(2, self.length, k.width) + 2 * numbers(4, 1, k.width)),  # channels have offsets
            fill(v, numbers(3, self.length, v.width)),
            RotaryStore(q, k, v, 0, None, self.mix),
            Seal(0),
            Attend(q, out, 0, 0.2, window, mix=self.mix),
        ]  # fmt: skip
        return Program(tuple(ops), len(ops), HEADS, KV_HEADS, self.dims, 1, out.width)

    def batch(self, start: int, end: int) -> BatchMetadata:
        """Exact pages lie in the order of positions, sealed ones the other way round."""
        positions, total = np.arange(start, end, dtype=np.int32), self.sealed.num_pages
        places = np.arange(-(-end // self.page_size))
        pages = np.ascontiguousarray(np.stack([total - 1 - places, places]).astype(np.int32))
        full = pages[:, max(1, start // self.page_size) : end // self.page_size]
        return BatchMetadata(
            positions, positions, np.ascontiguousarray(pages[:, positions // self.page_size]), positions - start,
            [SequenceRows(0, end - start, start, pages)], positions, np.ascontiguousarray(full),
        )  # fmt: skip

    def run(self, backend: Backend, chunk: int, window: int | None = None) -> Floats:
        """All positions, so many in a step."""
        executable = backend.bind(self.program(window), [self.sealed, self.exact], Limits(self.length, self.length, 1))
        ends = range(chunk, self.length + chunk, chunk)
        return np.concatenate([
            executable.run(self.batch(end - chunk, min(end, self.length))).copy() for end in ends
        ])  # fmt: skip


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
        assert np.abs(whole - wanted).mean() < (1e-3 if by_channel else 2e-4)  # weights have 15 bits
        for chunk in (1, 7, 64):
            assert same_bits(World(k, v, page_size, 64).run(backend, chunk, window), whole)


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
