from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvist.cache.codec import codec
from kvist.cache.group import PageGroup
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.manager import CacheManager


@pytest.fixture
def make_manager() -> Iterator[Callable[..., CacheManager]]:
    """Small managers, all of them checked once more when the test is over."""
    made: list[CacheManager] = []

    def make(num_pages: int = 8, page_size: int = 16, **options: Any) -> CacheManager:
        layout = PageLayout((LayerSpec(1, 16), LayerSpec(2, 16)), page_size, codec("bf16"))
        made.append(CacheManager([PageGroup(layout, num_pages)], identity=b"test", **options))
        return made[-1]

    yield make
    for manager in made:
        manager.check_integrity()
        manager.close()
