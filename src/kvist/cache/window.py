"""Pages of layers with a window: let go of when no later token sees them, taken back when a table gets shorter.

Only the manager calls in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvist.cache.table import GONE

if TYPE_CHECKING:
    from kvist.cache.ledger import PageLedger
    from kvist.cache.prefix import Node
    from kvist.cache.table import PageTable


def pass_by(ledgers: Sequence[PageLedger], table: PageTable) -> None:
    """Let go of the pages that no later token sees, the oldest first. What is published stays cached.

    Exact pages of packed layers go first of all: they serve rollbacks alone, and the first ones every prefix needs.
    """
    for number, ledger in enumerate(ledgers):
        unseen, pages = ledger.group.unseen(table.computed), table.groups[number]
        for i in unseen[max(table.gone[number] - unseen.start, 0) :]:
            ledger.drop(pages[i], table.request, soon=ledger.group.exact)
            pages[i] = GONE
        table.gone[number] = max(table.gone[number], unseen.stop)


def take_back(ledgers: Sequence[PageLedger], table: PageTable, length: int) -> int:
    """Share the pages again that were passed by and that a token at `length` sees.

    If one of them is lost, the same for the next shorter run of full pages; returns which length it became.
    """
    size = ledgers[0].group.layout.page_size
    while None in [node for nodes in _passed_by(ledgers, table, length) for node in nodes]:
        length = (length - 1) // size * size
    for number, nodes in enumerate(_passed_by(ledgers, table, length)):
        table.gone[number] = min(table.gone[number], -(-length // size)) - len(nodes)
        for i, node in enumerate(nodes, table.gone[number]):
            assert node is not None
            ledgers[number].share(node.page, table.request)
            table.groups[number][i] = node.page
    return length


def _passed_by(ledgers: Sequence[PageLedger], table: PageTable, length: int) -> list[list[Node | None]]:
    """Of each group the pages that a token at `length` sees and the table let go of; None for those that are lost."""
    found = []
    for ledger, gone in zip(ledgers, table.gone, strict=True):
        places = range(ledger.group.unseen(length).stop, min(gone, ledger.group.layout.pages_for(length)))
        keys = table.keys[1:]
        found.append([ledger.index.nodes.get(keys[i]) if i < len(keys) else None for i in places])
    return found
