"""Pinned prefixes: pages that stay, whoever needs room, until they are unpinned.

A pin names a prefix by the content keys of its full pages, so it can be made before they are computed. The board holds
a reference on each of those pages that is there, from when it is published (or from the pin on), so that it is live and
never evicted; prefixes that are pinned twice are held once. A pinned page's parents are pinned with it, but for those
that no token behind the prefix sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kvist.errors import RequestError, UsageError

if TYPE_CHECKING:
    from kvist.cache.ledger import PageLedger


class PinBoard:
    """Who pinned what. `held` are the pages of each group of layers that a reference is held on, by key.

    limit: pages of group 0 that may be pinned at most.
    """

    def __init__(self, ledgers: Sequence[PageLedger], limit: int) -> None:
        self.limit = limit
        self.held: tuple[dict[bytes, int], ...] = tuple({} for _ in ledgers)
        self._ledgers = ledgers
        self._pins: dict[str, tuple[list[bytes], ...]] = {}  # keys of each group
        self._counts: tuple[Counter[bytes], ...] = tuple(Counter() for _ in ledgers)

    def __len__(self) -> int:
        """Pages of group 0 that are pinned or will be, once they are computed."""
        return len(self._counts[0])

    @property
    def names(self) -> list[str]:
        """The names of all pins, oldest first."""
        return list(self._pins)

    def keys(self, number: int) -> set[bytes]:
        """The keys that are pinned in a group."""
        return set(self._counts[number])

    def kept(self, keys: Sequence[bytes]) -> tuple[list[bytes], ...]:
        """Which of the keys of a prefix a pin of it keeps in each group: those that a token behind it sees."""
        end = len(keys) * self._ledgers[0].group.layout.page_size
        unseen = [ledger.group.unseen(end) for ledger in self._ledgers]
        return tuple([key for i, key in enumerate(keys) if i not in places] for places in unseen)

    def beside(self, number: int, keys: Iterable[bytes]) -> int:
        """Pinned pages of a group that are none of these."""
        return len(self._counts[number]) - sum(key in self._counts[number] for key in set(keys))

    def add(self, name: str, keys: Sequence[bytes]) -> None:
        """Pin a prefix by the keys of its pages. UsageError for a name that is taken, RequestError beyond the limit."""
        if name in self._pins:
            raise UsageError(f"{name} has a pin already: unpin it, or give another id")
        groups = self.kept(keys)
        wanted = self.beside(0, groups[0]) + len(groups[0])
        if wanted > self.limit:
            raise RequestError(
                f"pinning {len(groups[0])} pages beside {len(self)} would make {wanted}, and {self.limit} may be "
                "pinned: unpin others or raise max_pinned_share"
            )
        self._pins[name] = groups
        for number, ledger in enumerate(self._ledgers):
            self._counts[number].update(groups[number])
            for key in groups[number]:
                if key in ledger.index.nodes:
                    self.hold(number, key, ledger.index.nodes[key].page, name)

    def hold(self, number: int, key: bytes, page: int, request: str | None) -> None:
        """A page of a group is there: take a reference on it, if its key is pinned and none is held."""
        if key in self._counts[number] and key not in self.held[number]:
            self._ledgers[number].share(page, request)
            self.held[number][key] = page

    def remove(self, name: str) -> int:
        """Take a pin away, and the references that no other pin needs; how many of group 0 those were."""
        before = len(self.held[0])
        for number, keys in enumerate(self._pins.pop(name, ())):
            counts, held = self._counts[number], self.held[number]
            for key in reversed(keys):
                counts[key] -= 1
                if not counts[key]:
                    del counts[key]
                    if key in held:
                        self._ledgers[number].drop(held.pop(key), name)
        return before - len(self.held[0])
