from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from kvist.cache.codec import FLOATS, codec
from kvist.cache.layout import BLOCK, PAGE_SIZES, LayerSpec, PageLayout
from kvist.cache.pool import PagePool
from kvist.errors import CapacityError, UsageError


def make(page_size: int = 32, name: str = "f32", num_pages: int = 3) -> PagePool:
    return PagePool(PageLayout((LayerSpec(2, 16), LayerSpec(1, 48)), page_size, codec(name)), num_pages)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("name", FLOATS)
def test_everything_written_is_read_back_and_nothing_else_changes(page_size: int, name: str) -> None:
    pool = make(page_size, name)
    rng = np.random.default_rng(1)
    places = [(page, layer, head) for page in range(3) for layer, head in ((0, 0), (0, 1), (1, 0))]
    kept = {}
    for page, layer, head in places:
        shape = (page_size, pool.layout.layers[layer].head_dim)
        k, v = rng.integers(-128, 128, (2, *shape)).astype(np.float32)
        for slot in rng.permutation(page_size):
            pool.write(page, layer, head, slice(slot, slot + 1), k[slot : slot + 1], v[slot : slot + 1])
        kept[page, layer, head] = k, v
    for place, (k, v) in kept.items():
        read_k, read_v = pool.read(*place)
        assert np.array_equal(read_k, k)
        assert np.array_equal(read_v, v)
        part_k, part_v = pool.read(*place, slice(3, 14))
        assert np.array_equal(part_k, k[3:14])
        assert np.array_equal(part_v, v[3:14])


def test_numbers_lie_where_the_layout_says() -> None:
    pool = make()
    layout, layer = pool.layout, 1
    k, v = np.random.default_rng(2).normal(size=(2, 32, 48)).astype(np.float32)
    pool.write(2, layer, 0, slice(None), k, v)
    head = pool.address + layout.place(2, layer, 0)
    for slot, dim in ((0, 0), (5, 7), (16, 0), (31, 47)):
        block = head + slot // BLOCK * layout.block_bytes(layer)
        k_at = block + 4 * (dim * BLOCK + slot % BLOCK)
        v_at = block + layout.v_offset(layer) + 4 * (slot % BLOCK * 48 + dim)
        assert ctypes.c_float.from_address(k_at).value == k[slot, dim]
        assert ctypes.c_float.from_address(v_at).value == v[slot, dim]


def test_sketches_lie_behind_the_pages_each_head_together() -> None:
    specs = LayerSpec(2, 16, sketch=True), LayerSpec(1, 48), None, LayerSpec(3, 64, sketch=True)
    pool = PagePool(PageLayout(specs, 32, codec("f16")), 5)
    assert pool.sketches.nbytes == 5 * (pool.layout.page_bytes - pool.layout.kv_bytes)
    places = [(layer, head, page) for layer, heads in ((0, 2), (3, 3)) for head in range(heads) for page in range(5)]
    for number, (layer, head, page) in enumerate(places, 1):
        view = pool.sketch(page, layer, head)
        assert not view.any() and view.nbytes == pool.layout.sketch_bytes(layer)
        view[:] = number
    changes = np.flatnonzero(np.diff(pool.sketches))
    assert pool.sketches.all() and len(changes) == len(places) - 1 and np.all(np.diff(pool.sketches)[changes] == 1)
    assert not pool.data.any()
    assert pool.layout.page_bytes * 5 == pool.nbytes


def test_a_copy_is_the_whole_page_and_only_that() -> None:
    pool = make()
    assert [part.shape for part in pool.parts(1)] == [(2, 2 * 32 * 16 * 4), (1, 2 * 32 * 48 * 4)]
    for page in range(3):
        for part in pool.parts(page):
            part[...] = page + 1
    pool.copy(0, 2)
    assert [{n for part in pool.parts(page) for n in set(part.flat)} for page in range(3)] == [{1}, {2}, {1}]
    assert np.count_nonzero(pool.data) == 3 * pool.layout.page_bytes


def test_bytes_are_the_formula_and_blocks_are_aligned() -> None:
    pool = make(num_pages=7)
    assert pool.nbytes == pool.layout.pool_bytes(7) <= pool.data.nbytes == pool.layout.extent_bytes
    assert pool.address % 64 == 0
    assert not pool.data.any()


@pytest.mark.skipif(sys.platform != "linux", reason="reads ru_maxrss in kilobytes")
def test_memory_that_is_not_touched_is_not_resident() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layout = PageLayout((LayerSpec(8, 128),) * 32, 16, codec("f16"))
    pool = PagePool(layout, (2**30) // layout.page_bytes)
    for part in pool.parts(3):
        part[...] = 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80 * 1024, "no more than its extent of 64 MiB"
    pool.close()


def test_closing_gives_the_address_up_and_may_be_repeated() -> None:
    pool = make()
    view = pool.data
    pool.close()
    pool.close()
    assert (pool.address, len(pool.data), len(view)) == (0, 0, 1)


def test_pools_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        make(num_pages=0)
    with pytest.raises(CapacityError, match="the system refuses"):
        make(num_pages=2**48)


@pytest.mark.parametrize("place", [(3, 0, 0), (-1, 0, 0), (0, 1, 1), (0, 0, -1), (0, 2, 0)])
def test_places_outside_are_refused(place: tuple[int, int, int]) -> None:
    with pytest.raises(IndexError):
        make().read(*place)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's count of resident pages")
def test_prefault_provides_the_memory_it_is_asked_for() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    layout = PageLayout((LayerSpec(2, 64),), 64, codec("f32"))
    pool = PagePool(layout, (96 << 20) // layout.page_bytes)
    begin = resident()
    pool.prefault(32 << 20)
    assert 30 << 20 <= resident() - begin <= 40 << 20
    pool.prefault(10**12)  # more than there is: all of it
    assert resident() - begin >= 90 << 20
    assert not pool.data.any()
    pool.close()
