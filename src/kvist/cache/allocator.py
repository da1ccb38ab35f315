"""Page ids: which are free, which are cached, which are live, and who goes first when room is needed.

Plain Python, no arrays, every operation O(1)::

              allocate                 release, last owner
     free  ─────────────►  live  ──────────────────────────►  free      keep=False
       ▲                    ▲  │
       │ evict              │  └────────────────────────────►  cached    keep=True
       └─────── cached ─────┘ share                            (the most recently used end)

    free + cached + live = total, always.

**Eviction order** is least recently used first, where a cached page was last used when its last owner released it.
Owners release a sequence's pages tail first, and whoever holds a page holds all pages before it in its prefix; so a
page always becomes cached after its children did, and is evicted after them. No tree has to be walked for it. A page
that is hardly worth keeping can be released to the other end instead, to be the next to go.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from kvist.errors import CapacityError, InternalError


class PageAllocator:
    """Reference counts and eviction order of the pages 0..num_pages-1.

    `refs[page]` is the count of owners, `touched` how many of the first pages were ever handed out; both are read-only
    for others. `on_evict` is called with a page whose content is about
    to be lost, before the page can be handed out again.
    """

    def __init__(self, num_pages: int, on_evict: Callable[[int], None] | None = None) -> None:
        self.refs = [0] * num_pages
        self.touched = 0
        # A stack, lowest id on top: a page used lately is used again, so that memory never touched stays untouched.
        self._free = list(range(num_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._on_evict = on_evict

    @property
    def total(self) -> int:
        """Count of all pages."""
        return len(self.refs)

    @property
    def free(self) -> int:
        """Count of pages without content."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Count of pages without owner whose content is kept."""
        return len(self._cached)

    @property
    def live(self) -> int:
        """Count of pages with at least one owner."""
        return self.total - self.available

    @property
    def available(self) -> int:
        """Count of pages that can be allocated: free + cached."""
        return len(self._free) + len(self._cached)

    def can_allocate(self, count: int) -> bool:
        """Whether the next `count` allocations succeed."""
        return count <= self.available

    def allocate(self) -> int:
        """Hand out a page with one owner: a free one, else the least recently used cached one.

        Raises `CapacityError` if every page is live: ask `can_allocate` first.
        """
        if not self._free and not self.evict():
            raise CapacityError(f"no page left: all {self.total} have owners")
        page = self._free.pop()
        self.touched = max(self.touched, page + 1)
        self.refs[page] = 1
        return page

    def share(self, page: int) -> None:
        """Add an owner to a page that is live or cached."""
        if not self.refs[page]:
            if page not in self._cached:
                raise InternalError(f"page {page} is free and cannot be shared")
            del self._cached[page]
        self.refs[page] += 1

    def release(self, page: int, *, keep: bool, soon: bool = False) -> bool:
        """Take an owner away. The last one leaves the page cached if `keep`, else free; true if it became free.

        soon: of the cached pages it is evicted first.
        """
        if not self.refs[page]:
            raise InternalError(f"page {page} has no owner that could release it")
        self.refs[page] -= 1
        if self.refs[page]:
            return False
        if keep:
            self._cached[page] = None
            if soon:
                self._cached.move_to_end(page, last=False)
            return False
        self._free.append(page)
        return True

    def evict(self) -> bool:
        """Make the least recently used cached page free; false if there is none."""
        if not self._cached:
            return False
        page, _ = self._cached.popitem(last=False)
        if self._on_evict is not None:
            self._on_evict(page)
        self._free.append(page)
        return True

    def eviction_order(self) -> list[int]:
        """List the cached pages, the next to be evicted first."""
        return list(self._cached)

    def is_cached(self, page: int) -> bool:
        """Whether the page has no owner and its content is kept."""
        return page in self._cached

    def problems(self) -> list[str]:
        """List what contradicts free + cached + live = total; empty when all is well."""
        owned = [page for page, refs in enumerate(self.refs) if refs]
        found = [f"page {page} has {refs} references" for page, refs in enumerate(self.refs) if refs < 0]
        if sorted([*self._free, *self._cached, *owned]) != list(range(self.total)):
            found.append(
                f"free {sorted(self._free)} + cached {sorted(self._cached)} + live {owned} "
                f"is not each of {self.total} pages once"
            )
        return found
