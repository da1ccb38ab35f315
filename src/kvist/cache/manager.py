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

Layers with a sliding window are a group with a pool of their own (see `group`), in which a table lets go of a page when
no later token sees it, so a page may outlive those before it. Tables of all groups grow together.

Only the thread that runs the engine calls in here. Slots past `computed` hold anything: readers mask them.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvist.cache.group import PageGroup
from kvist.cache.integrity import check_integrity
from kvist.cache.ledger import PageLedger
from kvist.cache.pins import PinBoard
from kvist.cache.report import Break, explain
from kvist.cache.search import Found, page_keys, search
from kvist.cache.stats import CacheCounters, CacheStats
from kvist.cache.table import GONE, Kept, PageTable, PrefixMatch, table_root
from kvist.cache.window import pass_by, take_back
from kvist.errors import InternalError, UsageError
from kvist.events import EventChannel


class CacheManager:
    """Owns the pages of each of the `groups`, their allocators and indices; the only writer of page tables.

    Group 0 is the one that sees most; all have pages of one size. `identity` names all that the numbers depend on
    besides tokens, layout and salt: weights, policy, numeric version.
    """

    def __init__(
        self,
        groups: Sequence[PageGroup],
        *,
        identity: bytes,
        enable_prefix_caching: bool = True,
        events: EventChannel | None = None,
        max_pinned: int | None = None,
    ) -> None:
        """max_pinned: pages of group 0 that may be pinned at most (None: a quarter)."""
        events = EventChannel() if events is None else events
        self.groups = tuple(groups)
        self.layout = groups[0].layout
        self.enable_prefix_caching = enable_prefix_caching
        self.ledgers = tuple(PageLedger(group, number, events) for number, group in enumerate(groups))
        self.pins = PinBoard(self.ledgers, groups[0].num_pages // 4 if max_pinned is None else max_pinned)
        self.tables: set[PageTable] = set()
        self.matches: set[PrefixMatch] = set()
        self._identity = b"\0".join((*(group.layout.identity for group in groups), identity))
        self._page_size = self.layout.page_size
        self._sliding = any(group.window is not None for group in groups)

    # -- beginning ---------------------------------------------------------------------------------------------------

    def match(
        self, tokens: Sequence[int], *, salt: bytes = b"", limit: int | None = None, whole: bool = False,
        kept: Kept | None = None,
    ) -> PrefixMatch:  # fmt: skip
        """Find and lock the longest cached prefix of `tokens`, up to `limit` of them.

        Full pages come first, then one more page up to the first different token. Only what was computed under the
        same `salt` is found. Give ``limit=len(tokens) - 1`` to be left with a token whose logits can be computed.
        whole: with all that the tokens of the prefix see themselves, so that they can be run again. kept: what the
        sequence begins with; tokens and limit are those of slots then (see `Kept.slot_tokens`).
        """
        within = tokens if limit is None else tokens[: max(limit, 0)]
        root = self.root(salt, kept)
        keys: tuple[bytes, ...] = ()
        hit = Found((), ((),) * len(self.groups))
        if self.enable_prefix_caching:
            hit = search(self.groups, [ledger.index for ledger in self.ledgers], root, within, whole)
            keys = (root, *hit.keys)
        found = tuple(within[: len(hit.keys) * self._page_size + hit.slots])
        match = PrefixMatch(salt, len(tokens), hit.groups, hit.partial, hit.slots, found, keys, self._unlock, kept)
        for ledger, pages in zip(self.ledgers, match.locked, strict=True):
            for page in pages:
                ledger.allocator.share(page)
        self.matches.add(match)
        return match

    def explain(self, match: PrefixMatch, tokens: Sequence[int], limit: int) -> Break:
        """Say why a locked match, of the first `limit` of these tokens, is not longer. Only of its own salt."""
        return explain(self.ledgers, match, tokens, limit, self._page_size)

    def open(self, match: PrefixMatch | None = None, salt: bytes = b"", *, request: str | None = None) -> PageTable:
        """Make a table that begins with a `match` (which is spent, and whose salt counts), or an empty one.

        The partial page is copied now. If no page is left for the copy, that part is not used; it is no error.
        """
        match = self.match((), salt=salt) if match is None else match
        if match not in self.matches:
            raise InternalError("a prefix match can be opened once, by its own manager, and not after its release")
        groups = [list(pages) for pages in match.groups]
        table = PageTable(match.salt, groups, keys=[*match.keys], request=request, kept=match.kept)
        self._share(table, request)
        cached = len(match.pages) * self._page_size
        if match.partial and all(ledger.allocator.can_allocate(1) for ledger in self.ledgers):
            for ledger, pages, page in zip(self.ledgers, table.groups, match.partial, strict=True):
                pages.append(ledger.copy(page, request))
            cached = match.cached
        table.tokens.extend(match.tokens[:cached])
        table.reserved = cached
        self.tables.add(table)
        self._unlock(match)
        evicted = match.evicted if cached else 0
        self.ledgers[0].hit(match.asked + evicted, cached + evicted, request)
        return table

    # -- running -----------------------------------------------------------------------------------------------------

    def reserve(self, table: PageTable, new_tokens: int, request: str | None = None) -> bool:
        """Make the next `new_tokens` positions writable. All or nothing: after False everything is as it was.

        The promise holds until the tokens are committed, or the table is forked, rolled back or released.
        """
        end = len(table.tokens) + new_tokens
        if end <= table.reserved:  # nearly every decode step
            return True
        self._require_open(table)
        if request is not None:
            table.request = request
        if not all(ledger.allocator.can_allocate(ledger.needs(table, end)) for ledger in self.ledgers):
            return False
        for ledger in self.ledgers:
            ledger.make_writable(table, end)
        table.reserved = len(table.pages) * self._page_size
        return True

    def commit(self, table: PageTable, new_tokens: Sequence[int]) -> None:
        """Take note that K and V of `new_tokens` are in the reserved positions.

        The table advances, every full page is sealed, and pages that no later token sees are let go of.
        """
        first, end = table.computed // self._page_size, table.computed + len(new_tokens)
        if end > table.reserved:
            raise InternalError(f"{end} tokens committed where {table.reserved} are reserved")
        table.tokens.extend(new_tokens)
        for i in range(first, end // self._page_size):
            self._seal(table, i)
        if self._sliding:
            pass_by(self.ledgers, table)

    def fork(self, table: PageTable, *, request: str | None = None) -> PageTable:
        """Make a second table with the same content. It costs no page; whoever writes into the last page copies it.

        Both tables have to reserve before they go on.
        """
        self._require_open(table)
        groups = [pages[: self.layout.pages_for(table.computed)] for pages in table.groups]
        table.reserved = table.computed
        twin = PageTable(table.salt, groups, list(table.tokens), list(table.keys), table.reserved, request, table.kept)
        self._share(twin, request)
        self.tables.add(twin)
        return twin

    def rollback(self, table: PageTable, length: int) -> int:
        """Shorten a table to its first `length` tokens and let go of all pages past them, reserved ones included.

        Published pages stay cached. A page that was sealed stays as it is: going on inside it copies it. Where layers
        have windows, the pages that the next token sees are taken back; if one is lost the table gets shorter still,
        down to where all are there. What is kept of a prompt stays whole: shorter than that is empty. Returns how many
        tokens are left.
        """
        self._require_open(table)
        if not 0 <= length <= table.computed:
            raise UsageError(f"cannot roll back to {length} tokens: {table.computed} are computed")
        if self._sliding:
            length = take_back(self.ledgers, table, length)
        if table.kept is not None and length < table.kept.slots:
            table.kept, table.keys[:1], length = None, [self.root(table.salt)] if table.keys else [], 0
        del table.tokens[length:]
        del table.keys[length // self._page_size + 1 :]
        table.reserved = length
        for number, (ledger, pages) in enumerate(zip(self.ledgers, table.groups, strict=True)):
            for _ in range(len(pages) - self.layout.pages_for(length)):
                if (page := pages.pop()) != GONE:
                    ledger.drop(page, table.request)
            table.gone[number] = min(table.gone[number], len(pages))
        return length

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
        return len(keys)

    def unpin(self, name: str) -> int:
        """Let go of a pin; pages that nobody else pinned may be evicted from now on. Returns how many."""
        return self.pins.remove(name)

    def keys(self, tokens: Sequence[int], *, salt: bytes = b"") -> list[bytes]:
        """Content keys of the full pages of a prefix, whether they are there or not."""
        return page_keys(self.root(salt), tokens, self._page_size)

    # -- the whole cache ---------------------------------------------------------------------------------------------

    def flush(self) -> int:
        """Forget all cached pages; live ones, pinned ones too, stay, and stay published. Returns the count."""
        return sum(ledger.flush() for ledger in self.ledgers)

    @property
    def counters(self) -> CacheCounters:
        """Counts since the manager was made."""
        return CacheCounters.sum(ledger.counters for ledger in self.ledgers)

    def stats(self) -> CacheStats:
        """Tell how the pages stand now."""
        held = zip(self.ledgers, self.pins.held, strict=True)
        return CacheStats(tuple(ledger.stats(self.tables, len(pages)) for ledger, pages in held), self._page_size)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one position in all layers, packed where layers are."""
        return sum(group.layout.bytes_per_token for group in self.groups if not group.exact)

    def check_integrity(self) -> None:
        """Prove all invariants, from the open tables and locked matches up; `InternalError` lists what is broken."""
        check_integrity(self)

    def root(self, salt: bytes, kept: Kept | None = None) -> bytes:
        """Key that the empty prefix has under `salt`, or what is kept of a prompt."""
        return table_root(self._identity, salt, kept)

    def close(self) -> None:
        """Give the pools' memory back. Nothing else may be called afterwards."""
        for ledger in self.ledgers:
            ledger.pool.close()

    def _seal(self, table: PageTable, i: int) -> None:
        """Publish the table's full page `i`, or take the page that is published with the same content."""
        if len(table.keys) != i + 1:
            return  # prefix caching is off, or a page before this one could not be published
        parent, tokens = table.keys[i], table.tokens[i * self._page_size : (i + 1) * self._page_size]
        nodes = [
            ledger.publish(parent, tokens, pages[i], i, table.request)
            for ledger, pages in zip(self.ledgers, table.groups, strict=True)
        ]
        for number, node in enumerate(nodes):
            if node is None:
                return
            ledger, pages = self.ledgers[number], table.groups[number]
            self.pins.hold(number, node.key, node.page, table.request)
            if node.page != pages[i]:
                ledger.share(node.page, table.request)
                ledger.drop(pages[i], table.request)
                pages[i] = node.page
        if nodes[0] is not None:
            table.keys.append(nodes[0].key)

    def _share(self, table: PageTable, request: str | None) -> None:
        """Become an owner of all the pages of a new table."""
        for ledger, pages in zip(self.ledgers, table.groups, strict=True):
            for page in pages:
                if page != GONE:
                    ledger.share(page, request)

    def _unlock(self, match: PrefixMatch) -> None:
        if match in self.matches:
            self.matches.remove(match)
            for ledger, pages in zip(self.ledgers, match.locked, strict=True):
                for page in reversed(pages):
                    ledger.drop(page, None)

    def _require_open(self, table: PageTable) -> None:
        if table not in self.tables:
            raise InternalError("a page table that was released, or belongs to another manager, is in use")
