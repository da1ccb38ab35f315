"""The manager, one behaviour a test, with exact page ids. Page size is 16 throughout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kvist.cache import prefix
from kvist.cache.manager import CacheManager
from kvist.cache.prefix import content_key, pack
from kvist.cache.table import PageTable
from kvist.errors import InternalError, UsageError
from kvist.events import EventChannel, EventKind

Make = Callable[..., CacheManager]
A, B, C = range(16), range(16, 32), range(32, 48)


def extend(manager: CacheManager, table: PageTable, *runs: range) -> PageTable:
    for run in runs:
        assert manager.reserve(table, len(run))
        manager.commit(table, list(run))
    manager.check_integrity()
    return table


def opened(manager: CacheManager, *runs: range, salt: bytes = b"") -> PageTable:
    """A sequence of these tokens that reuses what it can, as the engine does it."""
    tokens = [token for run in runs for token in run]
    with manager.match(tokens, salt=salt, limit=len(tokens) - 1) as match:
        table = manager.open(match)
    assert manager.reserve(table, len(tokens) - table.computed)
    manager.commit(table, tokens[table.computed :])
    manager.check_integrity()
    return table


def test_a_sequence_takes_pages_as_it_grows(make_manager: Make) -> None:
    manager = make_manager()
    table = manager.open()
    assert (table.pages, table.computed) == ([], 0)
    assert manager.reserve(table, 1)
    assert (table.pages, table.computed, table.reserved) == ([0], 0, 16)
    manager.commit(table, [5])
    assert (table.tokens, table.computed) == ([5], 1)
    extend(manager, table, range(40))
    assert table.pages == [0, 1, 2]
    assert (manager.stats().live, manager.stats().wasted_slots) == (3, 7)


def test_reserving_within_the_page_allocates_nothing(make_manager: Make) -> None:
    manager = make_manager()
    table = manager.open()
    manager.reserve(table, 1)
    for token in range(16):
        assert manager.reserve(table, 1)
        manager.commit(table, [token])
    assert manager.counters.pages_allocated == 1
    assert manager.counters.pages_sealed == 1


def test_reserve_is_all_or_nothing(make_manager: Make) -> None:
    manager = make_manager(num_pages=3)
    extend(manager, manager.open(), A, range(4))
    table = manager.open()
    before = manager.stats(), manager.counters
    assert not manager.reserve(table, 17)
    assert (table.pages, table.reserved) == ([], 0)
    assert (manager.stats(), manager.counters) == before
    assert manager.reserve(table, 16)


def test_a_released_sequence_is_found_again_without_its_last_token(make_manager: Make) -> None:
    manager = make_manager()
    manager.release(opened(manager, A, B))
    assert (manager.stats().cached, manager.ledgers[0].allocator.eviction_order()) == (2, [1, 0])
    with manager.match([*A, *B], limit=31) as match:
        assert (match.pages, match.partial, match.slots, match.cached) == ((0,), (1,), 15, 31)
        table = manager.open(match)
    assert (table.pages, table.computed) == ([0, 2], 31)
    extend(manager, table, range(31, 32))
    assert table.pages == [0, 1], "the recomputed page is the published one; the copy is free again"
    assert (manager.stats().free, manager.stats().live) == (6, 2)


def test_a_partly_matching_page_is_copied_up_to_the_first_different_token(make_manager: Make) -> None:
    manager = make_manager()
    first = opened(manager, A, B)
    k = np.arange(16 * 16, dtype=np.float32).reshape(16, 16) % 251
    manager.ledgers[0].pool.write(1, 0, 0, slice(None), k, -k)
    with manager.match([*A, *range(16, 21), 99, 99]) as match:
        assert (match.pages, match.partial, match.slots, match.cached, match.asked) == ((0,), (1,), 5, 21, 23)
        second = manager.open(match)
    assert (first.pages, second.pages) == ([0, 1], [0, 2])
    assert second.tokens == [*A, *range(16, 21)]
    assert np.array_equal(manager.ledgers[0].pool.read(2, 0, 0, slice(0, 5))[0], k[:5])
    assert manager.counters.pages_copied == 1
    extend(manager, second, range(99, 101))
    assert second.pages == [0, 2], "the copy is its own, no further copy is needed"


def test_without_a_page_for_the_copy_the_partial_part_is_dropped(make_manager: Make) -> None:
    manager = make_manager(num_pages=2)
    first = opened(manager, A, B)
    with manager.match([*A, *range(16, 21)]) as match:
        assert match.cached == 21
        second = manager.open(match)
    assert (second.pages, second.computed) == ([0], 16)
    assert manager.counters.prefix_hits == 16
    manager.release(first)


def test_a_locked_match_cannot_be_evicted(make_manager: Make) -> None:
    manager = make_manager(num_pages=3)
    manager.release(opened(manager, A, B))
    match = manager.match([*A, *range(16, 20)])
    assert manager.stats().live == 2
    other = manager.open()
    assert not manager.reserve(other, 17)
    manager.check_integrity()
    match.release()
    match.release()
    assert manager.ledgers[0].allocator.eviction_order() == [1, 0]
    assert manager.reserve(other, 17)
    assert other.pages == [2, 1]


def test_a_match_is_opened_once(make_manager: Make) -> None:
    manager = make_manager()
    match = manager.match([1, 2, 3])
    manager.open(match)
    match.release()
    with pytest.raises(InternalError, match="opened once"):
        manager.open(match)
    with pytest.raises(InternalError, match="opened once"):
        make_manager().open(manager.match([1]))


def test_salts_and_identities_never_meet(make_manager: Make) -> None:
    manager = make_manager()
    manager.release(opened(manager, A, salt=b"ada"))
    assert manager.match(A, salt=b"bob").cached == manager.match(A).cached == 0
    with manager.match(A, salt=b"ada") as match:
        assert match.cached == 16
    assert make_manager().root(b"") != manager.root(b"x")


def test_two_that_compute_the_same_end_up_on_one_page(make_manager: Make) -> None:
    manager = make_manager()
    first, second = manager.open(), manager.open()
    assert manager.reserve(first, 16)
    assert manager.reserve(second, 16)
    manager.commit(first, A)
    manager.commit(second, A)
    assert (first.pages, second.pages) == ([0], [0])
    assert (manager.stats().live, manager.stats().free, manager.counters.pages_sealed) == (1, 7, 1)


def test_a_fork_costs_no_page_until_somebody_writes(make_manager: Make) -> None:
    manager = make_manager()
    table = opened(manager, A, range(4))
    twin = manager.fork(table)
    assert (twin.pages, manager.stats().live) == ([0, 1], 2)
    extend(manager, table, range(4, 6))
    assert (table.pages, twin.pages) == ([0, 2], [0, 1]), "who writes copies"
    extend(manager, twin, range(7, 9))
    assert twin.pages == [0, 1], "and the other has the page for itself"
    assert (table.tokens[16:], twin.tokens[16:]) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 7, 8])


def test_eight_branches_share_their_prompt(make_manager: Make) -> None:
    manager = make_manager(num_pages=80)
    root = opened(manager, range(1000))
    assert len(root.pages) == 63
    branches = [root, *(manager.fork(root) for _ in range(7))]
    for n, branch in enumerate(branches):
        extend(manager, branch, range(2000 + n, 2001 + n))
    assert manager.stats().live == 62 + 8
    assert manager.stats().wasted_slots == 8 * 7


def test_a_fork_ends_what_was_reserved(make_manager: Make) -> None:
    manager = make_manager()
    table = opened(manager, range(4))
    manager.reserve(table, 40)
    twin = manager.fork(table)
    assert (table.pages, twin.pages) == ([0, 1, 2], [0])
    with pytest.raises(InternalError, match="5 tokens committed where 4 are reserved"):
        manager.commit(table, [9])
    extend(manager, table, range(9, 10))
    assert table.pages == [3, 1, 2]


def test_rollback_drops_pages_and_sealed_ones_stay_cached(make_manager: Make) -> None:
    manager = make_manager()
    table = opened(manager, A, B, range(5))
    manager.rollback(table, 20)
    assert (table.pages, table.computed, manager.stats().free) == ([0, 1], 20, 6)
    manager.rollback(table, 16)
    assert (table.pages, manager.ledgers[0].allocator.eviction_order()) == ([0], [1])
    manager.rollback(table, 0)
    assert manager.ledgers[0].allocator.eviction_order() == [1, 0]


def test_writing_into_a_sealed_page_copies_it(make_manager: Make) -> None:
    manager = make_manager()
    table = opened(manager, A)
    manager.rollback(table, 10)
    extend(manager, table, range(50, 52))
    assert table.pages == [1]
    assert manager.ledgers[0].allocator.eviction_order() == [0]
    assert manager.match(A).pages == (0,)


def test_going_on_as_before_after_a_rollback_returns_to_the_sealed_page(make_manager: Make) -> None:
    manager = make_manager()
    table = opened(manager, A)
    manager.rollback(table, 10)
    extend(manager, table, range(10, 16))
    assert (table.pages, manager.stats().free) == ([0], 7)


def test_a_sequence_alone_can_go_on_in_a_full_pool(make_manager: Make) -> None:
    """No page is left for the copy: the sealed tail, which nobody else holds, is unpublished and written in place."""
    manager = make_manager(num_pages=3)
    table = opened(manager, A, B, C)
    manager.rollback(table, 20)
    assert manager.reserve(table, 28)
    assert (table.pages, len(manager.ledgers[0].index), manager.counters.pages_copied) == ([0, 1, 2], 1, 0)
    manager.commit(table, [99] * 28)
    manager.check_integrity()
    with manager.match([*A, *B]) as match:
        assert (match.pages, match.partial, match.slots) == ((0,), (1,), 4), "the old content is no longer found"


def test_a_shared_tail_is_never_written_in_place(make_manager: Make) -> None:
    manager = make_manager(num_pages=1)
    table = opened(manager, range(4))
    twin = manager.fork(table)
    assert not manager.reserve(table, 1)
    manager.release(twin)
    assert manager.reserve(table, 1)
    assert table.pages == [0]


def test_rolling_back_further_than_there_is_is_refused(make_manager: Make) -> None:
    manager = make_manager()
    table = opened(manager, range(4))
    for length in (-1, 5):
        with pytest.raises(UsageError, match="4 are computed"):
            manager.rollback(table, length)


def test_eviction_is_least_recently_used_and_children_first(make_manager: Make) -> None:
    channel = EventChannel()
    manager = make_manager(num_pages=6, events=channel)
    old, new = opened(manager, A, B, C), opened(manager, C, A)
    assert (old.pages, new.pages) == ([0, 1, 2], [3, 4])
    manager.release(old)
    manager.release(new)
    assert manager.ledgers[0].allocator.eviction_order() == [2, 1, 0, 4, 3]
    with manager.match([*A, *B]):
        pass
    assert manager.ledgers[0].allocator.eviction_order() == [2, 4, 3, 1, 0], "what was asked for is used"
    with channel.subscribe() as listener:
        table = opened(manager, range(200, 248))
    assert table.pages == [5, 2, 4]
    assert [event.page for event in listener.drain() if event.kind == EventKind.PAGE_EVICTED] == [2, 4]
    with manager.match([*C, *A]) as match:
        assert match.pages == (3,)


def test_flush_forgets_what_nobody_holds(make_manager: Make) -> None:
    manager = make_manager()
    manager.release(opened(manager, A, B))
    table = opened(manager, A)
    assert manager.flush() == 1
    assert (manager.stats().cached, manager.stats().live, len(manager.ledgers[0].index)) == (0, 1, 1)
    manager.release(table)
    assert manager.flush() == 1
    assert manager.stats().free == manager.stats().total == 8


def test_without_prefix_caching_nothing_is_found_kept_or_copied(make_manager: Make) -> None:
    manager = make_manager(enable_prefix_caching=False)
    table = opened(manager, A, B)
    assert manager.match([*A, *B]).cached == 0
    manager.rollback(table, 20)
    extend(manager, table, range(3))
    assert (table.pages, manager.counters.pages_copied) == ([0, 1], 0)
    twin = manager.fork(table)
    extend(manager, twin, range(3))
    assert twin.pages == [0, 2]
    manager.release(table)
    manager.release(twin)
    assert (manager.stats().free, len(manager.ledgers[0].index)) == (8, 0)


def test_a_released_table_is_empty_and_of_no_more_use(make_manager: Make) -> None:
    manager = make_manager()
    table = opened(manager, A)
    manager.release(table)
    manager.release(table)
    assert (table.pages, table.computed) == ([], 0)
    for use in (
        lambda: manager.reserve(table, 1),
        lambda: manager.commit(table, [1]),
        lambda: manager.fork(table),
        lambda: manager.rollback(table, 0),
    ):
        with pytest.raises(InternalError):
            use()


def test_committing_what_was_not_reserved_is_an_error(make_manager: Make) -> None:
    manager = make_manager()
    table = manager.open()
    manager.reserve(table, 3)
    with pytest.raises(InternalError, match="17 tokens committed where 16 are reserved"):
        manager.commit(table, range(17))
    assert table.computed == 0


def test_a_hash_collision_is_never_an_answer(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hash blind for a page's last token, the second content stays unpublished, and so does all after it."""
    blind = lambda parent, tokens: content_key(parent, tokens[:-4])  # noqa: E731
    monkeypatch.setattr(prefix, "content_key", blind)
    monkeypatch.setattr("kvist.cache.integrity.content_key", blind)
    manager = make_manager()
    first = opened(manager, A)
    second = opened(manager, range(15), range(99, 100), B)
    assert (first.pages, second.pages) == ([0], [1, 2])
    assert (second.tokens[15], len(manager.ledgers[0].index), len(second.keys)) == (99, 1, 1)
    manager.release(second)
    assert manager.stats().free == 7
    manager.release(first)
    manager.flush()


def test_counters_tell_what_happened(make_manager: Make) -> None:
    manager = make_manager(num_pages=4)
    table = opened(manager, A, range(4))
    manager.release(manager.fork(table))
    manager.release(table)
    manager.release(opened(manager, A, range(4)))
    manager.release(opened(manager, range(100, 164)))
    counters = manager.counters
    assert counters.pages_allocated == 2 + 1 + 4
    assert counters.pages_shared == 2 + 1
    assert counters.pages_freed == 1 + 1
    assert counters.pages_evicted == 1
    assert counters.pages_sealed == 1 + 4
    assert counters.pages_copied == 0
    assert (counters.prefix_queries, counters.prefix_hits) == (20 + 20 + 64, 16)


def test_events_tell_the_story_of_every_page(make_manager: Make) -> None:
    channel = EventChannel()
    manager = make_manager(num_pages=2, events=channel)
    with channel.subscribe() as listener:
        first = manager.open(request="first")
        manager.reserve(first, 16)
        manager.commit(first, A)
        manager.release(first)
        second = manager.open(manager.match([*range(8), 99]), request="second")
        manager.reserve(second, 16)
        manager.release(second)
        told = [(event.kind, event.request, event.page, event.count, event.detail) for event in listener.drain()]
    assert told == [
        (EventKind.PAGE_ALLOCATED, "first", 0, 1, None),
        (EventKind.PAGE_SEALED, "first", 0, 1, content_key(manager.root(b""), pack(A)).hex()),
        (EventKind.PAGE_ALLOCATED, "second", 1, 1, 0),
        (EventKind.PAGE_HIT, "second", None, 8, 9),
        (EventKind.PAGE_EVICTED, None, 0, 1, None),
        (EventKind.PAGE_ALLOCATED, "second", 0, 1, None),
        (EventKind.PAGE_FREED, "second", 0, 1, None),
        (EventKind.PAGE_FREED, "second", 1, 1, None),
    ]


def test_nothing_is_built_when_nobody_listens(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventChannel, "emit", lambda *_, **__: pytest.fail("emitted"))
    manager = make_manager(num_pages=2)
    manager.release(opened(manager, A))
    opened(manager, A, B)


def test_wasted_slots_of_a_shared_page_count_once(make_manager: Make) -> None:
    manager = make_manager()
    table = opened(manager, A, range(4))
    twin = manager.fork(table)
    manager.rollback(twin, 18)
    stats = manager.stats()
    assert (stats.live, stats.wasted_slots, stats.wasted_share) == (2, 12, 12 / 32)
    assert stats.pool_bytes == manager.ledgers[0].pool.nbytes == 8 * manager.layout.page_bytes
    assert (stats.live_bytes, stats.cached_bytes) == (2 * manager.layout.page_bytes, 0)
