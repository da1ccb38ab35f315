"""What the manager counts: counters since it was made, and how its pages stand now."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class CacheStats:
    """How the pages stand: free + cached + live = total. `wasted_slots` are slots of live pages that hold no token.

    `pinned` pages are a part of the live ones.
    """

    total: int
    free: int
    cached: int
    live: int
    page_size: int
    page_bytes: int
    wasted_slots: int
    pinned: int = 0

    @property
    def pool_bytes(self) -> int:
        """Bytes of the whole pool."""
        return self.total * self.page_bytes

    @property
    def live_bytes(self) -> int:
        """Bytes of the live pages."""
        return self.live * self.page_bytes

    @property
    def cached_bytes(self) -> int:
        """Bytes of the cached pages."""
        return self.cached * self.page_bytes

    @property
    def wasted_share(self) -> float:
        """Wasted part of the live slots, from 0 to 1."""
        return self.wasted_slots / (self.live * self.page_size) if self.live else 0.0
