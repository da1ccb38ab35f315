"""Room, asked for without taking any: what `reserve` would accept, and what releasing a table would cost.

The scheduler decides by these whom to preempt; nothing changes in here. Pages are counted in each group of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvist.cache.table import GONE

if TYPE_CHECKING:
    from kvist.cache.ledger import PageLedger
    from kvist.cache.manager import CacheManager
    from kvist.cache.table import PageTable


def lacking(manager: CacheManager, table: PageTable, new_tokens: int) -> list[int]:
    """How many pages `reserve` would need beyond those that can be allocated; all 0 where it would succeed."""
    end = table.computed + new_tokens
    return [max(ledger.needs(table, end) - ledger.allocator.available, 0) for ledger in manager.ledgers]


def room(manager: CacheManager, table: PageTable) -> int:
    """How many new tokens `reserve` would accept at most."""
    return max(min(_room(ledger, table) for ledger in manager.ledgers), 0)


def loss(manager: CacheManager, table: PageTable, wanted: Sequence[int]) -> tuple[bool, int]:
    """What it would take to get so many pages by releasing a table: (it gives fewer, tokens to compute again).

    Pages that others hold too stay, but give no room. Of its own, the unpublished ones are lost; of the published
    ones, which are evicted tail first, only as many as are wanted then.
    """
    losses = [_loss(ledger, table, pages) for ledger, pages in zip(manager.ledgers, wanted, strict=True)]
    return any(fewer for fewer, _ in losses), max(lost for _, lost in losses)


def _room(ledger: PageLedger, table: PageTable) -> int:
    fresh = ledger.allocator.available - ledger.needs(table, table.computed)
    return -1 if fresh < 0 else (len(ledger.pages(table)) + fresh) * ledger.group.layout.page_size - table.computed


def _loss(ledger: PageLedger, table: PageTable, wanted: int) -> tuple[bool, int]:
    size, lost, gone = ledger.group.layout.page_size, 0, 0
    pages = ledger.pages(table)
    kept: list[int] = []  # tokens of the published ones, tail first
    for i in range(len(pages) - 1, -1, -1):
        if pages[i] == GONE or ledger.allocator.refs[pages[i]] > 1:
            continue
        tokens = min(max(table.computed - i * size, 0), size)
        if pages[i] in ledger.index:
            kept.append(tokens)
        else:
            gone, lost = gone + 1, lost + tokens
    return gone + len(kept) < wanted, lost + sum(kept[: max(wanted - gone, 0)])
