"""The verbs of a single page: allocate, copy, share, drop, publish, forget. Each is counted, and told to who listens.

The manager decides about tables in these words; here pool, allocator and index are kept in step, page by page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

from kvist.cache.ages import PageAges
from kvist.cache.allocator import PageAllocator
from kvist.cache.group import PageGroup
from kvist.cache.pool import PagePool
from kvist.cache.prefix import Node, PrefixIndex
from kvist.cache.report import KeyMemory
from kvist.cache.stats import CacheCounters, PoolStats
from kvist.cache.table import PageTable
from kvist.events import EventChannel, EventKind

REMEMBERED = 8  # keys of evicted pages that are remembered, for each page of the pool: 32 bytes each


class PageLedger:
    """Owns pool, allocator and index of a group of layers, the `number`-th. `request` arguments only name events."""

    def __init__(self, group: PageGroup, number: int, events: EventChannel) -> None:
        self.group = group
        self.pool = PagePool(group.layout, group.num_pages)
        self.events = events
        self.ages: PageAges | None = None  # who is told how long pages live, if somebody is
        self.allocator = PageAllocator(group.num_pages, on_evict=self.forget)
        self.index = PrefixIndex(group.layout.page_size, gaps=group.window is not None)
        self._number = number
        self.evicted = KeyMemory(REMEMBERED * group.num_pages)
        self._count = {field.name: 0 for field in fields(CacheCounters)}

    @property
    def counters(self) -> CacheCounters:
        """Counts since the ledger was made."""
        return CacheCounters(**self._count)

    def pages(self, table: PageTable) -> list[int]:
        """A table's pages of this group."""
        return table.groups[self._number]

    def needs(self, table: PageTable, end: int) -> int:
        """How many pages it takes to make the positions of a table up to `end` writable."""
        pages, tail = self.pages(table), table.computed // self.group.layout.page_size
        shared = tail < len(pages) and self.allocator.refs[pages[tail]] > 1
        return max(self.group.layout.pages_for(end) - len(pages), 0) + shared

    def make_writable(self, table: PageTable, end: int) -> None:
        """Make the positions of a table up to `end` writable; there must be the pages for it.

        With none left to copy it, a tail that is published, and that nobody else holds, is unpublished and written in
        place. All pages that could be evicted are taken by then, so it has no children in the index (or gaps are
        allowed there). A sequence that fits the pool alone can thus always go on.
        """
        pages, tail = self.pages(table), table.computed // self.group.layout.page_size
        known = len(pages)
        for _ in range(self.group.layout.pages_for(end) - known):
            pages.append(self.allocate(table.request))
        if tail < known and not self.is_writable(pages[tail]):
            old = pages[tail]
            if self.allocator.refs[old] == 1 and not self.allocator.available:
                self.forget(old)
            else:
                pages[tail] = self.copy(old, table.request)
                self.drop(old, table.request)

    def is_writable(self, page: int) -> bool:
        """Whether nobody but its one owner could see a change of the page."""
        return self.allocator.refs[page] == 1 and page not in self.index

    def allocate(self, request: str | None, copy_of: int | None = None) -> int:
        """Hand out a page with one owner. Its content is whatever was there."""
        page = self.allocator.allocate()
        self._count["pages_allocated"] += 1
        if self.events.listening:
            self.events.emit(EventKind.PAGE_ALLOCATED, request=request, page=page, detail=copy_of, group=self._number)
        return page

    def copy(self, source: int, request: str | None) -> int:
        """Hand out a page with one owner and the content of `source`, which somebody must hold."""
        page = self.allocate(request, copy_of=source)
        self.pool.copy(source, page)
        self._count["pages_copied"] += 1
        return page

    def share(self, page: int, request: str | None) -> None:
        """Add an owner."""
        self.allocator.share(page)
        self._count["pages_shared"] += 1
        if self.ages is not None:
            self.ages.shared(page)
        if self.events.listening:
            self.events.emit(EventKind.PAGE_SHARED, request=request, page=page, group=self._number)

    def drop(self, page: int, request: str | None, *, soon: bool = False) -> None:
        """Take an owner away; the last one leaves a published page cached and any other free.

        soon: of the cached ones it is evicted first.
        """
        if self.allocator.release(page, keep=page in self.index, soon=soon):
            self._count["pages_freed"] += 1
            if self.events.listening:
                self.events.emit(EventKind.PAGE_FREED, request=request, page=page, group=self._number)
        elif self.ages is not None and not self.allocator.refs[page]:
            self.ages.left(page)

    def publish(self, parent: bytes, tokens: Sequence[int], page: int, depth: int, request: str | None) -> Node | None:
        """Seal a full page. Returns the node that now stands for its content, as `PrefixIndex.insert` does."""
        node = self.index.insert(parent, tokens, page, depth)
        if node is not None and node.page == page:
            self.evicted.discard(node.key)
            self._count["pages_sealed"] += 1
            if self.ages is not None:
                self.ages.sealed(page)
            if self.events.listening:
                self.events.emit(
                    EventKind.PAGE_SEALED, request=request, page=page, detail=node.key.hex(), group=self._number
                )
        return node

    def forget(self, page: int) -> None:
        """Unpublish a page whose content is about to be lost."""
        self.evicted.add(self.index.pages[page].key)
        self.index.remove(page)
        self._count["pages_evicted"] += 1
        if self.ages is not None:
            self.ages.forgotten(page)
        if self.events.listening:
            self.events.emit(EventKind.PAGE_EVICTED, page=page, group=self._number)

    def flush(self) -> int:
        """Forget all cached pages; returns how many."""
        count = 0
        while self.allocator.evict():
            count += 1
        return count

    def stats(self, tables: Iterable[PageTable], pinned: int) -> PoolStats:
        """Tell how the pages stand, of which the `tables` hold the live ones, but for the `pinned`."""
        size, wasted = self.group.layout.page_size, dict[int, int]()
        for table in tables:
            full, pages = table.computed // size, self.pages(table)
            for i, page in enumerate(pages[full:], full):
                if page not in self.index:
                    unused = size - max(table.computed - i * size, 0)
                    wasted[page] = min(unused, wasted.get(page, size))
        count = self.allocator
        return PoolStats(
            count.total, count.free, count.cached, count.live, self.group.layout.page_bytes, sum(wasted.values()),
            pinned, self.group.window,
        )  # fmt: skip

    def hit(self, asked: int, found: int, request: str | None) -> None:
        """Note how many of the `asked` tokens a request did not have to compute."""
        self._count["prefix_queries"] += asked
        self._count["prefix_hits"] += found
        if self.events.listening and found:
            self.events.emit(EventKind.PAGE_HIT, request=request, count=found, detail=asked)
