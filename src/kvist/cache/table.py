"""What a sequence holds of the cache: a page table while it runs, a prefix match just before.

Everybody may read these; only the manager writes them. ::

    tokens    t0 t1 t2 t3 | t4 t5 t6 t7 | t8 t9              computed = 10, page_size = 4 in this drawing
    pages          7            2            5        9      any ids, in the order of positions
    keys   root   k0           k1                            of the pages that are sealed and published
                                             ▲  ▲       ▲
                                   computed ─┴──┘       └─ reserved = 16: positions 10..15 may be written now
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType


@dataclass(eq=False, slots=True)
class PageTable:
    """One sequence's pages.

    `pages` are its page ids in order of positions, `tokens` the computed ones (those whose K and V are in the pages).
    Positions computed..reserved-1 may be written; `reserved` equals `computed` where nothing is promised.
    `keys` begins with the root's and goes on while full pages are published; empty without prefix caching.
    """

    salt: bytes
    pages: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    reserved: int = 0
    request: str | None = None  # named in events, nothing else

    @property
    def computed(self) -> int:
        """Count of tokens whose K and V are in the pages."""
        return len(self.tokens)


@dataclass(frozen=True, eq=False, slots=True)
class PrefixMatch:
    """A cached prefix, locked: its pages cannot be evicted until it is opened or released.

    `pages` are full and will be shared; `partial` is (page, slots) of one more, to be copied, or None. `tokens` are
    those found, out of `asked` ones. Release it, or use it in a ``with`` statement; after `open` both do nothing.
    """

    salt: bytes
    asked: int
    pages: tuple[int, ...]
    partial: tuple[int, int] | None
    tokens: tuple[int, ...]
    keys: tuple[bytes, ...] = field(repr=False)
    unlock: Callable[[PrefixMatch], None] = field(repr=False)

    @property
    def cached(self) -> int:
        """Count of tokens found."""
        return len(self.tokens)

    @property
    def locked(self) -> tuple[int, ...]:
        """The pages a reference is held on, in order of positions."""
        return (*self.pages, self.partial[0]) if self.partial else self.pages

    def release(self) -> None:
        """Give the pages back unused. Does nothing after `open` or an earlier `release`."""
        self.unlock(self)

    def __enter__(self) -> PrefixMatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
