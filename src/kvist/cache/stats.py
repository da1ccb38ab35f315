"""What the manager counts: counters since it was made, and how its pages stand now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """Counts since the manager was made. They only grow.

    `pages_shared` counts owners added to existing pages; `pages_freed` pages that lost their last owner and were not
    kept, so a page that was cached first counts in `pages_evicted` instead. `pages_copied` are a part of
    `pages_allocated`. `prefix_queries` and `prefix_hits` are tokens asked for and found, counted when a match is
    opened: a request that waits for room and asks again is counted once.
    """

    pages_allocated: int = 0
    pages_shared: int = 0
    pages_freed: int = 0
    pages_evicted: int = 0
    pages_sealed: int = 0
    pages_copied: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0

    @classmethod
    def sum(cls, counters: Iterable[CacheCounters]) -> CacheCounters:
        """Those of several groups of layers, added up."""
        return cls(*map(sum, zip(*map(astuple, counters), strict=True)))


@dataclass(frozen=True, slots=True)
class PoolStats:
    """How the pages of one group of layers stand: free + cached + live = total.

    `wasted_slots` are slots of live pages that hold no token. `pinned` pages are a part of the live ones. `window` is
    what its layers see, None for everything.
    """

    total: int
    free: int
    cached: int
    live: int
    page_bytes: int
    wasted_slots: int
    pinned: int
    window: int | None


@dataclass(frozen=True, slots=True)
class CacheStats:
    """How the pages stand, in `pools`, one for each group of layers, and added up."""

    pools: tuple[PoolStats, ...]
    page_size: int

    @property
    def total(self) -> int:
        """Count of all pages; free + cached + live."""
        return sum(pool.total for pool in self.pools)

    @property
    def free(self) -> int:
        """Count of pages without content."""
        return sum(pool.free for pool in self.pools)

    @property
    def cached(self) -> int:
        """Count of pages without owner whose content is kept."""
        return sum(pool.cached for pool in self.pools)

    @property
    def live(self) -> int:
        """Count of pages with at least one owner."""
        return sum(pool.live for pool in self.pools)

    @property
    def pinned(self) -> int:
        """Count of live pages that a pin holds."""
        return sum(pool.pinned for pool in self.pools)

    @property
    def wasted_slots(self) -> int:
        """Count of slots of live pages that hold no token."""
        return sum(pool.wasted_slots for pool in self.pools)

    @property
    def pool_bytes(self) -> int:
        """Bytes of all pools."""
        return sum(pool.total * pool.page_bytes for pool in self.pools)

    @property
    def live_bytes(self) -> int:
        """Bytes of the live pages."""
        return sum(pool.live * pool.page_bytes for pool in self.pools)

    @property
    def cached_bytes(self) -> int:
        """Bytes of the cached pages."""
        return sum(pool.cached * pool.page_bytes for pool in self.pools)

    @property
    def wasted_share(self) -> float:
        """Wasted part of the live bytes, from 0 to 1."""
        wasted = sum(pool.wasted_slots * pool.page_bytes for pool in self.pools) / self.page_size
        return wasted / self.live_bytes if self.live_bytes else 0.0
