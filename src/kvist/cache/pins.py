"""Pinned prefixes: pages that stay, whoever needs room, until they are unpinned.

A pin names a prefix by the content keys of its full pages, so it can be made before they are computed. The board holds
a reference on each of those pages that is there, from when it is published (or from the pin on), so that it is live and
never evicted; prefixes that are pinned twice are held once. A pinned page's parents are pinned with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from kvist.errors import RequestError, UsageError


class PinBoard:
    """Who pinned what. `held` are the pages a reference is held on, by key. `limit`: pages that may be pinned at most.

    The manager takes and gives the references.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: dict[bytes, int] = {}
        self._pins: dict[str, tuple[bytes, ...]] = {}
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """Pages that are pinned or will be, once they are computed."""
        return len(self._counts)

    def __contains__(self, key: bytes) -> bool:
        return key in self._counts

    @property
    def names(self) -> list[str]:
        """The names of all pins, oldest first."""
        return list(self._pins)

    def beside(self, keys: Iterable[bytes]) -> int:
        """Pinned pages that are none of these."""
        return len(self._counts) - sum(key in self._counts for key in set(keys))

    def add(self, name: str, keys: Sequence[bytes]) -> None:
        """Pin a prefix. Raises UsageError for a name that is taken, RequestError beyond the limit."""
        if name in self._pins:
            raise UsageError(f"{name} has a pin already: unpin it, or give another id")
        wanted = self.beside(keys) + len(keys)
        if wanted > self.limit:
            raise RequestError(
                f"pinning {len(keys)} pages beside {len(self)} would make {wanted}, and {self.limit} may be pinned: "
                "unpin others or raise max_pinned_share"
            )
        self._pins[name] = tuple(keys)
        self._counts.update(keys)

    def remove(self, name: str) -> list[int]:
        """Take a pin away; the pages whose reference is to be given back, the prefix's last first."""
        pages = []
        for key in reversed(self._pins.pop(name, ())):
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
                if key in self.held:
                    pages.append(self.held.pop(key))
        return pages
