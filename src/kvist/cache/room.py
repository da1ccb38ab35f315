"""Room, asked for without taking any: what `reserve` would accept, and what releasing a table would cost.

The scheduler decides by these whom to preempt; nothing changes in here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvist.cache.manager import CacheManager
    from kvist.cache.table import PageTable


def lacking(manager: CacheManager, table: PageTable, new_tokens: int) -> int:
    """How many pages `reserve` would need beyond those that can be allocated; 0 where it would succeed."""
    fresh = max(manager.layout.pages_for(table.computed + new_tokens) - len(table.pages), 0)
    return max(fresh + _copies_tail(manager, table) - manager.allocator.available, 0)


def room(manager: CacheManager, table: PageTable) -> int:
    """How many new tokens `reserve` would accept at most."""
    if (fresh := manager.allocator.available - _copies_tail(manager, table)) < 0:
        return 0
    return (len(table.pages) + fresh) * manager.layout.page_size - table.computed


def loss(manager: CacheManager, table: PageTable, wanted: int) -> tuple[bool, int]:
    """What it would take to get so many pages by releasing a table: (it gives fewer, tokens to compute again).

    Pages that others hold too stay, but give no room. Of its own, the unpublished ones are lost; of the published
    ones, which are evicted tail first, only as many as are wanted then.
    """
    size, lost, gone = manager.layout.page_size, 0, 0
    kept: list[int] = []  # tokens of the published ones, tail first
    for i in range(len(table.pages) - 1, -1, -1):
        if manager.allocator.refs[table.pages[i]] > 1:
            continue
        tokens = min(max(table.computed - i * size, 0), size)
        if table.pages[i] in manager.index:
            kept.append(tokens)
        else:
            gone, lost = gone + 1, lost + tokens
    return gone + len(kept) < wanted, lost + sum(kept[: max(wanted - gone, 0)])


def _copies_tail(manager: CacheManager, table: PageTable) -> bool:
    """Whether going on takes a page for a copy of the tail, which others see as well."""
    tail = table.computed // manager.layout.page_size
    # a page that is published, but nobody else holds, is written in place where no page is left: see `reserve`
    return tail < len(table.pages) and manager.allocator.refs[table.pages[tail]] > 1
