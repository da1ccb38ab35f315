"""The verbs of a single page: allocate, copy, share, drop, publish, forget. Each is counted, and told to who listens.

The manager decides about tables in these words; here pool, allocator and index are kept in step, page by page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from kvist.cache.allocator import PageAllocator
from kvist.cache.pool import PagePool
from kvist.cache.prefix import Node, PrefixIndex
from kvist.cache.report import KeyMemory
from kvist.cache.stats import CacheCounters
from kvist.events import EventChannel, EventKind

REMEMBERED = 8  # keys of evicted pages that are remembered, for each page of the pool: 32 bytes each


class PageLedger:
    """Owns the allocator and the index of a `pool`. `request` arguments only name events."""

    def __init__(self, pool: PagePool, events: EventChannel) -> None:
        self.pool = pool
        self.events = events
        self.allocator = PageAllocator(pool.num_pages, on_evict=self.forget)
        self.index = PrefixIndex(pool.layout.page_size)
        self.evicted = KeyMemory(REMEMBERED * pool.num_pages)
        self._count = {field.name: 0 for field in fields(CacheCounters)}

    @property
    def counters(self) -> CacheCounters:
        """Counts since the ledger was made."""
        return CacheCounters(**self._count)

    def is_writable(self, page: int) -> bool:
        """Whether nobody but its one owner could see a change of the page."""
        return self.allocator.refs[page] == 1 and page not in self.index

    def allocate(self, request: str | None, copy_of: int | None = None) -> int:
        """Hand out a page with one owner. Its content is whatever was there."""
        page = self.allocator.allocate()
        self._count["pages_allocated"] += 1
        if self.events.listening:
            self.events.emit(EventKind.PAGE_ALLOCATED, request=request, page=page, detail=copy_of)
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
        if self.events.listening:
            self.events.emit(EventKind.PAGE_SHARED, request=request, page=page)

    def drop(self, page: int, request: str | None) -> None:
        """Take an owner away; the last one leaves a published page cached and any other free."""
        if self.allocator.release(page, keep=page in self.index):
            self._count["pages_freed"] += 1
            if self.events.listening:
                self.events.emit(EventKind.PAGE_FREED, request=request, page=page)

    def publish(self, parent: bytes, tokens: Sequence[int], page: int, depth: int, request: str | None) -> Node | None:
        """Seal a full page. Returns the node that now stands for its content, as `PrefixIndex.insert` does."""
        node = self.index.insert(parent, tokens, page, depth)
        if node is not None and node.page == page:
            self.evicted.discard(node.key)
            self._count["pages_sealed"] += 1
            if self.events.listening:
                self.events.emit(EventKind.PAGE_SEALED, request=request, page=page, detail=node.key.hex())
        return node

    def forget(self, page: int) -> None:
        """Unpublish a page whose content is about to be lost."""
        self.evicted.add(self.index.pages[page].key)
        self.index.remove(page)
        self._count["pages_evicted"] += 1
        if self.events.listening:
            self.events.emit(EventKind.PAGE_EVICTED, page=page)

    def hit(self, asked: int, found: int, request: str | None) -> None:
        """Note how many of the `asked` tokens a request did not have to compute."""
        self._count["prefix_queries"] += asked
        self._count["prefix_hits"] += found
        if self.events.listening and found:
            self.events.emit(EventKind.PAGE_HIT, request=request, count=found, detail=asked)
