"""A check that cannot fail proves nothing: every invariant is broken on purpose, one a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from kvist.cache.codec import codec
from kvist.cache.group import PageGroup
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.manager import CacheManager
from kvist.cache.table import PageTable
from kvist.errors import InternalError

Make = Callable[..., CacheManager]


class World:
    """Pages 0, 1 cached; 2, 3 and the filling 4 live in `table`; 5 free; 2 locked by a match as well."""

    def __init__(self, manager: CacheManager) -> None:
        self.manager = manager
        old = self.sequence(range(100, 132))
        self.table = self.sequence(range(40))
        manager.release(old)
        self.match = manager.match(range(16))
        manager.check_integrity()

    def sequence(self, tokens: range) -> PageTable:
        table = self.manager.open()
        self.manager.reserve(table, len(tokens))
        self.manager.commit(table, tokens)
        return table


def lose_a_free_page(w: World) -> None:
    w.manager.ledgers[0].allocator._free.pop()


def hand_a_page_out_twice(w: World) -> None:
    w.manager.ledgers[0].allocator._free.append(2)


def count_one_owner_too_many(w: World) -> None:
    w.manager.ledgers[0].allocator.refs[3] += 1


def forget_an_owner(w: World) -> None:
    w.manager.ledgers[0].allocator.refs[2] -= 1


def forget_a_locked_match(w: World) -> None:
    w.manager.matches.clear()


def forget_a_table(w: World) -> None:
    w.manager.tables.clear()


def unpublish_a_cached_page(w: World) -> None:
    w.manager.ledgers[0].index.remove(1)


def publish_a_free_page(w: World) -> None:
    w.manager.ledgers[0].index.insert(w.manager.root(b""), range(900, 916), 5, 0)


def unpublish_a_locked_page(w: World) -> None:
    w.manager.ledgers[0].index.remove(2)


def evict_a_parent_first(w: World) -> None:
    w.manager.ledgers[0].allocator._cached.move_to_end(0, last=False)


def orphan_a_page(w: World) -> None:
    w.manager.ledgers[0].index.remove(0)


def change_a_token_of_the_index(w: World) -> None:
    index = w.manager.ledgers[0].index
    node = dataclasses.replace(index.pages[3], tokens=b"\1" * 64)
    index.pages[3] = index.nodes[node.key] = node


def lose_a_child(w: World) -> None:
    w.manager.ledgers[0].index.children[w.manager.root(b"")].pop()


def forget_a_page_by_id(w: World) -> None:
    del w.manager.ledgers[0].index.pages[3]


def change_a_token_of_the_table(w: World) -> None:
    w.table.tokens[20] = 999


def lose_a_key(w: World) -> None:
    w.table.keys.clear()


def forget_to_publish(w: World) -> None:
    w.manager.reserve(w.table, 8)
    w.table.tokens.extend(range(8))


def compute_more_than_there_are_pages(w: World) -> None:
    w.table.tokens.extend(range(20))


def hold_a_page_twice(w: World) -> None:
    w.table.pages.append(4)


def hold_another_page_than_the_published(w: World) -> None:
    w.table.pages[1] = 5


def reserve_more_than_there_are_pages(w: World) -> None:
    w.table.reserved = 49


def write_into_a_published_page(w: World) -> None:
    w.manager.rollback(w.table, 20)
    w.table.reserved = 32


def write_into_a_shared_page(w: World) -> None:
    w.manager.fork(w.table)
    w.table.reserved = 48


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lose_a_free_page, r"is not each of 6 pages once"),
        (hand_a_page_out_twice, r"is not each of 6 pages once"),
        (count_one_owner_too_many, r"page 3 has 1 owners, 2 are counted"),
        (forget_an_owner, r"page 2 has 2 owners, 1 are counted"),
        (forget_a_locked_match, r"page 2 has 1 owners, 2 are counted"),
        (forget_a_table, r"page 4 has 0 owners, 1 are counted"),
        (unpublish_a_cached_page, r"page 1 is cached but not published"),
        (publish_a_free_page, r"page 5 is published but free"),
        (unpublish_a_locked_page, r"page 2 of a locked match is not published"),
        (evict_a_parent_first, r"page 0 would be evicted before its child 1"),
        (orphan_a_page, r"page 1 at depth 1 lost its parent"),
        (change_a_token_of_the_index, r"page 3 is not what its key says"),
        (lose_a_child, r"children do not agree with their parents"),
        (forget_a_page_by_id, r"by key and the index by page differ"),
        (change_a_token_of_the_table, r"has keys that are not those of its tokens"),
        (lose_a_key, r"has keys that are not those of its tokens"),
        (forget_to_publish, r"has a full page 4 that is not published"),
        (compute_more_than_there_are_pages, r"has 3 pages for 60 tokens"),
        (hold_a_page_twice, r"has a page twice: \[2, 3, 4, 4\]"),
        (hold_another_page_than_the_published, r"has page 5 where 3 is published"),
        (reserve_more_than_there_are_pages, r"has 49 positions reserved, 40 computed, 3 pages"),
        (write_into_a_published_page, r"may write page 3, which is shared or published"),
        (write_into_a_shared_page, r"may write page 4, which is shared or published"),
    ],
)
def test_damage_is_seen(damage: Callable[[World], None], complaint: str, damaged: World) -> None:
    damage(damaged)
    with pytest.raises(InternalError, match=f"^the cache is broken: .*{complaint}"):
        damaged.manager.check_integrity()


@pytest.fixture
def damaged() -> World:
    return World(CacheManager([PageGroup(PageLayout((LayerSpec(1, 16),), 16, codec("f32")), 6)], identity=b"test"))
