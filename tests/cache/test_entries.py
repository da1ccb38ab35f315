"""Entries of pages as arrays, and copied to other pages: every number where the pool says it is."""

from __future__ import annotations

import numpy as np
import pytest

from kvist.cache.codec import codec
from kvist.cache.entries import copy_entries, read_entries
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.pool import PagePool

HEADS, DIMS = 3, 32


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_entries_are_read_and_copied_as_the_pool_has_them(name: str, page_size: int) -> None:
    random = np.random.default_rng(7)
    pool = PagePool(PageLayout((LayerSpec(1, 16), LayerSpec(HEADS, DIMS)), page_size, codec(name)), 12)
    source, target, count = [7, 2, 11, 4, 5, 0], [3, 8], 5 * page_size + 3
    for page in source:
        for head in range(HEADS):
            k, v = random.standard_normal((2, page_size, DIMS), np.float32)
            pool.write(page, 1, head, slice(None), k, v)
    before = [[part.copy() for part in pool.parts(page)] for page in range(12)]
    k, v = read_entries(pool, source, 1, count)
    assert k.shape == v.shape == (HEADS, count, DIMS) and k.dtype == np.float32
    kept = np.sort(np.stack([random.permutation(count)[: 2 * page_size] for _ in range(HEADS)]), axis=1)
    copy_entries(pool, source, target, 1, kept)
    for head in range(HEADS):
        for place, page in enumerate(source[:5]):
            own = slice(place * page_size, (place + 1) * page_size)
            expected = pool.read(page, 1, head)
            assert k[head, own].tobytes() == expected[0].tobytes() and v[head, own].tobytes() == expected[1].tobytes()
        for place, page in enumerate(target):
            own = kept[head, place * page_size : (place + 1) * page_size]
            expected = pool.read(page, 1, head)
            assert k[head, own].tobytes() == expected[0].tobytes() and v[head, own].tobytes() == expected[1].tobytes()
    for page in range(12):
        first, second = (np.array_equal(a, b) for a, b in zip(pool.parts(page), before[page], strict=True))
        assert first, "other layers are left alone"
        assert second == (page not in target)
    pool.close()
