"""Proof of the cache's invariants, from first principles: nothing is trusted that can be counted again.

Run when idle in debugging, and after every test. It costs as much as the cache is large, and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from kvist.cache.prefix import content_key, pack
from kvist.cache.table import GONE
from kvist.errors import InternalError

if TYPE_CHECKING:
    from kvist.cache.ledger import PageLedger
    from kvist.cache.manager import CacheManager
    from kvist.cache.table import PageTable


def check_integrity(manager: CacheManager) -> None:
    """Raise `InternalError` with all that is broken in `manager`; return if nothing is."""
    found: list[str] = []
    for number, ledger in enumerate(manager.ledgers):
        problems = [*ledger.allocator.problems(), *ledger.index.problems(), *_references(manager, number)]
        problems += [*_pins(manager, number), *_index_and_pages(ledger)]
        if ledger.group.window is None:
            problems += _eviction_order(ledger)
        for table in manager.tables:
            problems += _pages(manager, number, table)
        found += (f"group {number}: {problem}" for problem in problems) if number else problems
    for table in manager.tables:
        found += _table(manager, table)
    if found:
        raise InternalError("the cache is broken: " + "; ".join(found))


def _references(manager: CacheManager, number: int) -> Iterator[str]:
    """Every reference of every open table and locked match is counted exactly."""
    ledger, expected = manager.ledgers[number], Counter[int]()
    for table in manager.tables:
        expected.update(page for page in table.groups[number] if page != GONE)
    for match in manager.matches:
        expected.update(match.locked[number])
    expected.update(manager.pins.held[number].values())
    counted = {page: refs for page, refs in enumerate(ledger.allocator.refs) if refs}
    for page in sorted(counted.keys() | expected.keys()):
        if counted.get(page, 0) != expected[page]:
            yield f"page {page} has {expected[page]} owners, {counted.get(page, 0)} are counted"
    for match in manager.matches:
        for page in match.locked[number]:
            if page not in ledger.index:
                yield f"page {page} of a locked match is not published"


def _pins(manager: CacheManager, number: int) -> Iterator[str]:
    """What is pinned and there is held, nothing else."""
    held, nodes = manager.pins.held[number], manager.ledgers[number].index.nodes
    wanted = {key: nodes[key].page for key in manager.pins.keys(number) if key in nodes}
    for key in held.keys() | wanted.keys():
        if held.get(key) != wanted.get(key):
            yield f"page {held.get(key)} is pinned where page {wanted.get(key)} is to be"


def _index_and_pages(ledger: PageLedger) -> Iterator[str]:
    """A cached page is a published page without owner; a published page is cached or live."""
    for page in ledger.allocator.eviction_order():
        if page not in ledger.index:
            yield f"page {page} is cached but not published"
    for page in ledger.index.pages:
        if not ledger.allocator.refs[page] and not ledger.allocator.is_cached(page):
            yield f"page {page} is published but free"


def _eviction_order(ledger: PageLedger) -> Iterator[str]:
    """A parent is evicted after its children: it is live if one of them is, else nearer to the used end."""
    order = {page: i for i, page in enumerate(ledger.allocator.eviction_order())}
    for page, node in ledger.index.pages.items():
        parent = ledger.index.nodes.get(node.parent)
        if parent and order.get(parent.page, len(order)) < order.get(page, len(order)):
            yield f"page {parent.page} would be evicted before its child {page}"


def _pages(manager: CacheManager, number: int, table: PageTable) -> Iterator[str]:
    """A table holds the pages of a group that its next token sees, and what it may write is its own."""
    ledger, pages, size = manager.ledgers[number], table.groups[number], manager.layout.page_size
    name, computed, gone = _name(table), table.computed, table.gone[number]
    if len(pages) < ledger.group.layout.pages_for(computed):
        yield f"{name} has {len(pages)} pages for {computed} tokens"
    if len(pages) != len(table.pages):
        yield f"{name} has {len(pages)} pages beside {len(table.pages)}"
    held = [page for page in pages if page != GONE]
    if len(set(held)) != len(held):
        yield f"{name} has a page twice: {pages}"
    kept = ledger.group.kept
    if {*pages[kept:gone]} > {GONE} or GONE in pages[:kept] + pages[gone:] or gone > ledger.group.unseen(computed).stop:
        yield f"{name} has let go of the wrong pages: {pages}, {gone} counted"
    if table.reserved > computed:
        for page in pages[computed // size :]:
            if ledger.allocator.refs[page] != 1 or page in ledger.index:
                yield f"{name} may write page {page}, which is shared or published"
    for page, key in zip(pages, table.keys[1:], strict=False):
        node = ledger.index.nodes.get(key)
        if page != GONE and (node is None or node.page != page):
            yield f"{name} has page {page} where {node.page if node else 'nothing'} is published"


def _table(manager: CacheManager, table: PageTable) -> Iterator[str]:
    """A table's lengths agree, and its keys are those of its tokens."""
    size, computed, name = manager.layout.page_size, table.computed, _name(table)
    if not computed <= table.reserved <= max(computed, len(table.pages) * size):
        yield f"{name} has {table.reserved} positions reserved, {computed} computed, {len(table.pages)} pages"
    runs = (pack(table.tokens[at : at + size]) for at in range(0, computed - size + 1, size))
    expected = list(accumulate(runs, content_key, initial=manager.root(table.salt, table.kept)))
    if table.keys != expected[: len(table.keys)] or bool(table.keys) != manager.enable_prefix_caching:
        yield f"{name} has keys that are not those of its tokens"
    if 0 < len(table.keys) < len(expected) and expected[len(table.keys)] not in manager.ledgers[0].index.nodes:
        yield f"{name} has a full page {table.pages[len(table.keys) - 1]} that is not published"


def _name(table: PageTable) -> str:
    return f"table {table.request or hex(id(table))}"
