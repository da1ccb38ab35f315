"""How long pages live and how long they lie before they are used again, for who sets limits by it."""

from __future__ import annotations

import time
from collections.abc import Callable

Observe = Callable[[float], None]


class PageAges:
    """Of the pages of one group of layers. Told what becomes of a page; tells seconds to who observes.

    on_lifetime: from a page's sealing to its eviction. on_gap: from when its last owner left to the next one.
    """

    def __init__(self, on_lifetime: Observe, on_gap: Observe) -> None:
        self._on_lifetime, self._on_gap = on_lifetime, on_gap
        self._sealed: dict[int, float] = {}
        self._left: dict[int, float] = {}

    def sealed(self, page: int) -> None:
        """It is full and published."""
        self._sealed[page] = time.monotonic()

    def left(self, page: int) -> None:
        """Nobody owns it. A lookup that came to nothing in between does not count as an owner."""
        self._left.setdefault(page, time.monotonic())

    def shared(self, page: int) -> None:
        """It has one more owner."""
        left = self._left.pop(page, None)
        if left is not None:
            self._on_gap(time.monotonic() - left)

    def forgotten(self, page: int) -> None:
        """Its content is lost."""
        self._left.pop(page, None)
        sealed = self._sealed.pop(page, None)
        if sealed is not None:
            self._on_lifetime(time.monotonic() - sealed)
