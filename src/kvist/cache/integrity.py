"""Proof of the cache's invariants, from first principles: nothing is trusted that can be counted again.

Run when idle in debugging, and after every test. It costs as much as the cache is large, and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from kvist.cache.prefix import content_key, pack
from kvist.errors import InternalError

if TYPE_CHECKING:
    from kvist.cache.manager import CacheManager
    from kvist.cache.table import PageTable


def check_integrity(manager: CacheManager) -> None:
    """Raise `InternalError` with all that is broken in `manager`; return if nothing is."""
    found = [*manager.allocator.problems(), *manager.index.problems()]
    found += [*_references(manager), *_index_and_pages(manager), *_eviction_order(manager)]
    for table in manager.tables:
        found += _table(manager, table)
    if found:
        raise InternalError("the cache is broken: " + "; ".join(found))


def _references(manager: CacheManager) -> Iterator[str]:
    """Every reference of every open table and locked match is counted exactly."""
    expected: Counter[int] = Counter()
    for table in manager.tables:
        expected.update(table.pages)
    for match in manager.matches:
        expected.update(match.locked)
    expected.update(manager.pins.held.values())
    counted = {page: refs for page, refs in enumerate(manager.allocator.refs) if refs}
    for page in sorted(counted.keys() | expected.keys()):
        if counted.get(page, 0) != expected[page]:
            yield f"page {page} has {expected[page]} owners, {counted.get(page, 0)} are counted"
    for key in manager.pins.held.keys() | (manager.index.nodes.keys() if len(manager.pins) else set()):
        node = manager.index.nodes.get(key)
        wanted = node.page if node is not None and key in manager.pins else None
        if manager.pins.held.get(key) != wanted:
            yield f"page {manager.pins.held.get(key)} is pinned where page {wanted} is to be"
    for match in manager.matches:
        for page in match.locked:
            if page not in manager.index:
                yield f"page {page} of a locked match is not published"


def _index_and_pages(manager: CacheManager) -> Iterator[str]:
    """A cached page is a published page without owner; a published page is cached or live."""
    for page in manager.allocator.eviction_order():
        if page not in manager.index:
            yield f"page {page} is cached but not published"
    for page in manager.index.pages:
        if not manager.allocator.refs[page] and not manager.allocator.is_cached(page):
            yield f"page {page} is published but free"


def _eviction_order(manager: CacheManager) -> Iterator[str]:
    """A parent is evicted after its children: it is live if one of them is, else nearer to the used end."""
    order = {page: i for i, page in enumerate(manager.allocator.eviction_order())}
    for page, node in manager.index.pages.items():
        parent = manager.index.nodes.get(node.parent)
        if parent and order.get(parent.page, len(order)) < order.get(page, len(order)):
            yield f"page {parent.page} would be evicted before its child {page}"


def _table(manager: CacheManager, table: PageTable) -> Iterator[str]:
    """A table's lengths agree, its published pages are those of its tokens, and what is reserved is its own."""
    size, pages, computed = manager.layout.page_size, table.pages, table.computed
    name = f"table {table.request or hex(id(table))}"
    if len(pages) < manager.layout.pages_for(computed):
        yield f"{name} has {len(pages)} pages for {computed} tokens"
    if len(set(pages)) != len(pages):
        yield f"{name} has a page twice: {pages}"
    if not computed <= table.reserved <= max(computed, len(pages) * size):
        yield f"{name} has {table.reserved} positions reserved, {computed} computed, {len(pages)} pages"
    if table.reserved > computed:
        for page in pages[computed // size :]:
            if manager.allocator.refs[page] != 1 or page in manager.index:
                yield f"{name} may write page {page}, which is shared or published"
    runs = (pack(table.tokens[at : at + size]) for at in range(0, computed - size + 1, size))
    expected = list(accumulate(runs, content_key, initial=manager.root(table.salt)))
    if table.keys != expected[: len(table.keys)] or bool(table.keys) != manager.enable_prefix_caching:
        yield f"{name} has keys that are not those of its tokens"
    if 0 < len(table.keys) < len(expected) and expected[len(table.keys)] not in manager.index.nodes:
        yield f"{name} has a full page {pages[len(table.keys) - 1]} that is not published"
    for page, key in zip(pages, table.keys[1:], strict=False):
        node = manager.index.nodes.get(key)
        if node is None or node.page != page:
            yield f"{name} has page {page} where {node.page if node else 'nothing'} is published"
