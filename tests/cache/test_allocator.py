from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvist.cache.allocator import PageAllocator
from kvist.errors import CapacityError, InternalError


def counts(pages: PageAllocator) -> tuple[int, int, int]:
    assert pages.problems() == []
    return pages.free, pages.cached, pages.live


def test_fresh_pages_come_in_order_and_the_last_freed_comes_first() -> None:
    pages = PageAllocator(4)
    assert [pages.allocate() for _ in range(3)] == [0, 1, 2]
    pages.release(0, keep=False)
    pages.release(1, keep=False)
    assert [pages.allocate() for _ in range(3)] == [1, 0, 3]
    assert counts(pages) == (0, 0, 4)


def test_free_pages_go_before_cached_ones_and_the_least_recently_used_of_those_first() -> None:
    evicted: list[int] = []
    pages = PageAllocator(4, on_evict=evicted.append)
    for _ in range(3):
        pages.allocate()
    for page in (1, 0, 2):
        assert pages.release(page, keep=True) is False
    assert counts(pages) == (1, 3, 0)
    assert pages.eviction_order() == [1, 0, 2]
    assert [pages.allocate() for _ in range(4)] == [3, 1, 0, 2]
    assert evicted == [1, 0, 2]


def test_what_is_released_to_go_soon_goes_first_the_last_one_before_the_others() -> None:
    pages = PageAllocator(5)
    for _ in range(5):
        pages.allocate()
    for page, soon in ((0, False), (1, True), (2, False), (3, True), (4, False)):
        assert pages.release(page, keep=True, soon=soon) is False
    assert pages.eviction_order() == [3, 1, 0, 2, 4]
    pages.share(3)
    pages.release(3, keep=True)
    assert pages.eviction_order() == [1, 0, 2, 4, 3], "an owner who does not say so makes it worth keeping again"
    pages.share(0)
    assert pages.release(0, keep=False, soon=True) is True
    assert counts(pages) == (1, 4, 0)


def test_sharing_a_cached_page_saves_it_and_makes_it_the_most_recent() -> None:
    pages = PageAllocator(3)
    for _ in range(3):
        pages.allocate()
    for page in (0, 1, 2):
        pages.release(page, keep=True)
    pages.share(0)
    assert counts(pages) == (0, 2, 1)
    pages.release(0, keep=True)
    assert pages.eviction_order() == [1, 2, 0]


def test_a_page_is_released_when_its_last_owner_goes() -> None:
    pages = PageAllocator(1)
    pages.allocate()
    pages.share(0)
    assert pages.refs[0] == 2
    assert pages.release(0, keep=False) is False
    assert counts(pages) == (0, 0, 1)
    assert pages.release(0, keep=False) is True
    assert counts(pages) == (1, 0, 0)


def test_live_pages_are_never_handed_out() -> None:
    pages = PageAllocator(2)
    pages.allocate()
    pages.allocate()
    assert not pages.can_allocate(1)
    assert pages.can_allocate(0)
    assert not pages.evict()
    with pytest.raises(CapacityError, match="all 2 have owners"):
        pages.allocate()
    assert counts(pages) == (0, 0, 2)


def test_misuse_is_an_error_and_changes_nothing() -> None:
    pages = PageAllocator(2)
    with pytest.raises(InternalError, match="page 0 is free"):
        pages.share(0)
    with pytest.raises(InternalError, match="page 1 has no owner"):
        pages.release(1, keep=True)
    pages.allocate()
    pages.release(0, keep=True)
    with pytest.raises(InternalError, match="page 0 has no owner"):
        pages.release(0, keep=True)
    assert counts(pages) == (1, 1, 0)


@given(st.integers(1, 6), st.lists(st.tuples(st.sampled_from("asrke"), st.integers(0, 5)), max_size=60))
def test_any_history_agrees_with_a_list_that_is_searched(num_pages: int, history: list[tuple[str, int]]) -> None:
    pages = PageAllocator(num_pages)
    refs = [0] * num_pages
    free, cached = list(range(num_pages))[::-1], list[int]()
    for verb, page in history:
        page %= num_pages
        if verb == "a" and (free or cached):
            expected = free.pop() if free else cached.pop(0)
            assert pages.allocate() == expected
            refs[expected] = 1
        elif verb == "s" and (refs[page] or page in cached):
            pages.share(page)
            cached = [other for other in cached if other != page]
            refs[page] += 1
        elif verb in "rk" and refs[page]:
            pages.release(page, keep=verb == "k")
            refs[page] -= 1
            if not refs[page]:
                (cached if verb == "k" else free).append(page)
        elif verb == "e":
            assert pages.evict() == bool(cached)
            free += cached[:1]
            del cached[:1]
        assert pages.refs == refs
        assert pages.eviction_order() == cached
        assert counts(pages) == (len(free), len(cached), num_pages - len(free) - len(cached))
        assert pages.available == len(free) + len(cached)


def test_problems_are_seen() -> None:
    pages = PageAllocator(3)
    pages.refs[0] = 1
    assert "not each of 3 pages once" in pages.problems()[0]
    pages.refs[0] = -1
    assert "has -1 references" in pages.problems()[0]
