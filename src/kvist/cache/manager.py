"""The one door to the cache: match, open, reserve, commit, fork, roll back, release.

One request's way through it::

    with manager.match(prompt, limit=len(prompt) - 1) as match:     # what is cached, locked
        table = manager.open(match)                                 # a table that begins with it
    while ...:
        manager.reserve(table, n) or preempt_somebody()             # room for n more tokens, or nothing happened
        ...                                                         # the runner writes K and V into the pages
        manager.commit(table, tokens)                               # advance; full pages are sealed and published
    manager.release(table)                                          # what is published stays cached

Three rules keep every answer right:

1. A page is written only where `reserve` promised it: the page then has one owner and is not published. Any other page
   is copied first. So a sealed page never changes, and neither does what a fork sees.
2. A full page is published under its content key. If that key is there already, the exactness contract says that both
   pages hold the same bits: the table takes the published page, and its own is dropped.
3. Whoever holds a page holds the pages before it in its prefix, and lets go of them tail first. So a page is never
   evicted before its children (see `allocator`), and what is referenced is never evicted at all.

Only the thread that runs the engine calls in here. Slots past `computed` hold anything: readers mask them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from kvist.cache.integrity import check_integrity
from kvist.cache.layout import PageLayout
from kvist.cache.ledger import PageLedger
from kvist.cache.pins import PinBoard
from kvist.cache.pool import PagePool
from kvist.cache.prefix import TOKEN_BYTES, Hit, content_key, pack, root_key
from kvist.cache.report import Break, explain
from kvist.cache.stats import CacheCounters, CacheStats
from kvist.cache.table import PageTable, PrefixMatch
from kvist.errors import InternalError, UsageError
from kvist.events import EventChannel


class CacheManager:
    """Owns a pool of `num_pages` pages, their allocator and their index; the only writer of page tables.

    `identity` names all that the numbers depend on besides tokens, layout and salt: weights, policy, numeric version.
    """

    def __init__(
        self,
        layout: PageLayout,
        num_pages: int,
        *,
        identity: bytes,
        enable_prefix_caching: bool = True,
        events: EventChannel | None = None,
        max_pinned: int | None = None,
    ) -> None:
        """max_pinned: pages that may be pinned at most (None: a quarter)."""
        self.layout = layout
        self.enable_prefix_caching = enable_prefix_caching
        self.pool = PagePool(layout, num_pages)
        self.ledger = PageLedger(self.pool, EventChannel() if events is None else events)
        self.allocator = self.ledger.allocator
        self.index = self.ledger.index
        self.pins = PinBoard(num_pages // 4 if max_pinned is None else max_pinned)
        self.tables: set[PageTable] = set()
        self.matches: set[PrefixMatch] = set()
        self._identity = layout.identity + b"\0" + identity
        self._page_size = layout.page_size

    # -- beginning ---------------------------------------------------------------------------------------------------

    def match(self, tokens: Sequence[int], *, salt: bytes = b"", limit: int | None = None) -> PrefixMatch:
        """Find and lock the longest cached prefix of `tokens`, up to `limit` of them.

        Full pages come first, then one more page up to the first different token. Only what was computed under the
        same `salt` is found. Give ``limit=len(tokens) - 1`` to be left with a token whose logits can be computed.
        """
        within = tokens if limit is None else tokens[: max(limit, 0)]
        root = self.root(salt)
        hit = self.index.lookup(root, within) if self.enable_prefix_caching else Hit()
        keys = (root, *hit.keys) if self.enable_prefix_caching else ()
        found = len(hit.pages) * self._page_size + (hit.partial[1] if hit.partial else 0)
        match = PrefixMatch(salt, len(tokens), hit.pages, hit.partial, tuple(within[:found]), keys, self._unlock)
        for page in match.locked:
            self.allocator.share(page)
        self.matches.add(match)
        return match

    def explain(self, match: PrefixMatch, tokens: Sequence[int], limit: int) -> Break:
        """Say why a locked match, of the first `limit` of these tokens, is not longer. Only of its own salt."""
        return explain(self.index, self.ledger.evicted, match, tokens, limit, self._page_size)

    def open(self, match: PrefixMatch | None = None, salt: bytes = b"", *, request: str | None = None) -> PageTable:
        """Make a table that begins with a `match` (which is spent, and whose salt counts), or an empty one.

        The partial page is copied now. If no page is left for the copy, that part is not used; it is no error.
        """
        if match is None:
            match = self.match((), salt=salt)
        if match not in self.matches:
            raise InternalError("a prefix match can be opened once, by its own manager, and not after its release")
        table = PageTable(match.salt, list(match.pages), keys=list(match.keys), request=request)
        for page in match.pages:
            self.ledger.share(page, request)
        cached = len(match.pages) * self._page_size
        if match.partial and self.allocator.can_allocate(1):
            table.pages.append(self.ledger.copy(match.partial[0], request))
            cached = match.cached
        table.tokens.extend(match.tokens[:cached])
        table.reserved = cached
        self.tables.add(table)
        self._unlock(match)
        self.ledger.hit(match.asked, cached, request)
        return table

    # -- running -----------------------------------------------------------------------------------------------------

    def reserve(self, table: PageTable, new_tokens: int, request: str | None = None) -> bool:
        """Make the next `new_tokens` positions writable. All or nothing: after False everything is as it was.

        The promise holds until the tokens are committed, or the table is forked, rolled back or released.
        """
        computed = len(table.tokens)
        end = computed + new_tokens
        if end <= table.reserved:  # nearly every decode step
            return True
        self._require_open(table)
        if request is not None:
            table.request = request
        pages, tail = table.pages, computed // self._page_size
        fresh = max(self.layout.pages_for(end) - len(pages), 0)
        copies = tail < len(pages) and not self.ledger.is_writable(pages[tail])
        # With no page left for the copy, a tail that nobody else holds is unpublished and written in place. All pages
        # that could be evicted are taken by then, so it has no children in the index. A sequence that fits the pool
        # alone can thus always go on.
        in_place = copies and self.allocator.refs[pages[tail]] == 1 and self.allocator.available == fresh
        if not self.allocator.can_allocate(fresh + (copies and not in_place)):
            return False
        for _ in range(fresh):
            pages.append(self.ledger.allocate(table.request))
        if in_place:
            self.ledger.forget(pages[tail])
        elif copies:
            shared = pages[tail]
            pages[tail] = self.ledger.copy(shared, table.request)
            self.ledger.drop(shared, table.request)
        table.reserved = len(pages) * self._page_size
        return True

    def commit(self, table: PageTable, new_tokens: Sequence[int]) -> None:
        """Take note that K and V of `new_tokens` are in the reserved positions: advance, and seal every full page."""
        tokens = table.tokens
        computed = len(tokens)
        end = computed + len(new_tokens)
        if end > table.reserved:
            raise InternalError(f"{end} tokens committed where {table.reserved} are reserved")
        tokens.extend(new_tokens)
        first, past = computed // self._page_size, end // self._page_size
        if first != past:
            for i in range(first, past):
                self._seal(table, i)

    def fork(self, table: PageTable, *, request: str | None = None) -> PageTable:
        """Make a second table with the same content. It costs no page; whoever writes into the last page copies it.

        Both tables have to reserve before they go on.
        """
        self._require_open(table)
        pages = table.pages[: self.layout.pages_for(table.computed)]
        for page in pages:
            self.ledger.share(page, request)
        table.reserved = table.computed
        twin = PageTable(table.salt, pages, list(table.tokens), list(table.keys), table.reserved, request)
        self.tables.add(twin)
        return twin

    def rollback(self, table: PageTable, length: int) -> None:
        """Shorten a table to its first `length` tokens and let go of all pages past them, reserved ones included.

        Published pages stay cached. A page that was sealed stays as it is: going on inside it copies it.
        """
        self._require_open(table)
        if not 0 <= length <= table.computed:
            raise UsageError(f"cannot roll back to {length} tokens: {table.computed} are computed")
        del table.tokens[length:]
        del table.keys[length // self._page_size + 1 :]
        table.reserved = length
        for _ in range(len(table.pages) - self.layout.pages_for(length)):
            self.ledger.drop(table.pages.pop(), table.request)

    def release(self, table: PageTable) -> None:
        """Let go of all pages, tail first, and close the table. Releasing it again does nothing, as with files."""
        if table in self.tables:
            self.rollback(table, 0)
            self.tables.remove(table)

    # -- pins --------------------------------------------------------------------------------------------------------

    def pin(self, name: str, tokens: Sequence[int], *, salt: bytes = b"") -> int:
        """Keep the full pages of a prefix from eviction, once they are there, until `unpin(name)`; how many.

        Raises RequestError if more pages would be pinned than may be, UsageError without prefix caching.
        """
        if not self.enable_prefix_caching:
            raise UsageError("there is nothing to pin: prefix caching is switched off")
        keys = self.keys(tokens, salt=salt)
        self.pins.add(name, keys)
        for key in keys:
            if key in self.index.nodes and key not in self.pins.held:
                self._hold(key, self.index.nodes[key].page, name)
        return len(keys)

    def unpin(self, name: str) -> int:
        """Let go of a pin; pages that nobody else pinned may be evicted from now on. Returns how many."""
        pages = self.pins.remove(name)
        for page in pages:
            self.ledger.drop(page, name)
        return len(pages)

    def keys(self, tokens: Sequence[int], *, salt: bytes = b"") -> list[bytes]:
        """Content keys of the full pages of a prefix, whether they are there or not."""
        packed, size = pack(tokens), self._page_size * TOKEN_BYTES
        runs = (packed[at : at + size] for at in range(0, len(packed) - size + 1, size))
        return list(accumulate(runs, content_key, initial=self.root(salt)))[1:]

    # -- the whole cache ---------------------------------------------------------------------------------------------

    def flush(self) -> int:
        """Forget all cached pages; live ones, pinned ones among them, stay, and stay published. Returns the count."""
        dropped = 0
        while self.allocator.evict():
            dropped += 1
        return dropped

    @property
    def counters(self) -> CacheCounters:
        """Counts since the manager was made."""
        return self.ledger.counters

    def stats(self) -> CacheStats:
        """Tell how the pages stand now."""
        size, wasted = self._page_size, dict[int, int]()
        for table in self.tables:
            full = table.computed // size
            for i, page in enumerate(table.pages[full:], full):
                if page not in self.index:
                    unused = size - max(table.computed - i * size, 0)
                    wasted[page] = min(unused, wasted.get(page, size))
        pages = self.allocator
        return CacheStats(
            pages.total, pages.free, pages.cached, pages.live, size, self.layout.page_bytes, sum(wasted.values()),
            len(self.pins.held),
        )  # fmt: skip

    def check_integrity(self) -> None:
        """Prove all invariants, from the open tables and locked matches up; `InternalError` lists what is broken."""
        check_integrity(self)

    def root(self, salt: bytes) -> bytes:
        """Key that the empty prefix has under `salt`."""
        return root_key(self._identity, salt)

    def close(self) -> None:
        """Give the pool's memory back. Nothing else may be called afterwards."""
        self.pool.close()

    def _seal(self, table: PageTable, i: int) -> None:
        """Publish the table's full page `i`, or take the page that is published with the same content."""
        if len(table.keys) != i + 1:
            return  # prefix caching is off, or a page before this one could not be published
        own, tokens = table.pages[i], table.tokens[i * self._page_size : (i + 1) * self._page_size]
        node = self.ledger.publish(table.keys[i], tokens, own, i, table.request)
        if node is None:
            return
        table.keys.append(node.key)
        if node.key in self.pins and node.key not in self.pins.held:
            self._hold(node.key, node.page, table.request)
        if node.page != own:
            self.ledger.share(node.page, table.request)
            table.pages[i] = node.page
            self.ledger.drop(own, table.request)

    def _hold(self, key: bytes, page: int, request: str | None) -> None:
        self.ledger.share(page, request)
        self.pins.held[key] = page

    def _unlock(self, match: PrefixMatch) -> None:
        if match in self.matches:
            self.matches.remove(match)
            for page in reversed(match.locked):
                self.ledger.drop(page, None)

    def _require_open(self, table: PageTable) -> None:
        if table not in self.tables:
            raise InternalError("a page table that was released, or belongs to another manager, is in use")
