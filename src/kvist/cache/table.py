"""What a sequence holds of the cache: a page table while it runs, a prefix match just before.

Everybody may read these; only the manager writes them. ::

    tokens    t0 t1 t2 t3 | t4 t5 t6 t7 | t8 t9              computed = 10, page_size = 4 in this drawing
    groups[0]      7            2            5        9      any ids, in the order of positions
    groups[1]     GONE          0            3        1      of layers with a window of 4: no later token sees t0..t3
    keys   root   k0           k1                            of the full pages
                                             ▲  ▲       ▲
                                   computed ─┴──┘       └─ reserved = 16: positions 10..15 may be written now
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from kvist.cache.prefix import content_key, pack, root_key

GONE = -1
"""Stands in a page table where no later token sees what the page held."""

ENTRY = -1
"""Stands for the token of a slot that holds a kept entry: another position's in every layer and KV head."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of a prompt that a policy has evicted entries of: `slots` entries of those of `tokens`.

    rule: names the policy and all that the choice depends on besides tokens and model.
    """

    tokens: tuple[int, ...]
    slots: int
    rule: bytes

    @property
    def evicted(self) -> int:
        """How many entries of each layer and KV head are gone."""
        return len(self.tokens) - self.slots

    def slot_tokens(self, tokens: Sequence[int]) -> list[int]:
        """What stands for `tokens`, which begin with its own, slot by slot."""
        return [ENTRY] * self.slots + list(tokens[len(self.tokens) :])


def table_root(identity: bytes, salt: bytes, kept: Kept | None) -> bytes:
    """Key that no page has before it: of a sequence's beginning, or of what is kept of one."""
    root = root_key(identity, salt)
    if kept is None:
        return root
    return content_key(
        content_key(root, hashlib.sha256(kept.rule).digest()), hashlib.sha256(pack(kept.tokens)).digest()
    )


@dataclass(eq=False, slots=True)
class PageTable:
    """One sequence's pages.

    `groups` are its page ids, a list for each group of layers, in order of positions; `gone` is where in each list
    those that are `GONE` end. `tokens` are the computed ones (those whose K and V are in the pages).
    Positions computed..reserved-1 may be written; `reserved` equals `computed` where nothing is promised.
    `keys` begins with the root's and goes on while full pages are published; empty without prefix caching.
    kept: where a policy has evicted entries of a prompt, what is left, which fills the first slots: `tokens` and
    `computed` count slots then, of which `positions` is ahead.
    """

    salt: bytes
    groups: list[list[int]]
    tokens: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    reserved: int = 0
    request: str | None = None  # named in events, nothing else
    kept: Kept | None = None
    gone: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.gone = [max((i + 1 for i, page in enumerate(pages) if page == GONE), default=0) for pages in self.groups]

    @property
    def computed(self) -> int:
        """Count of tokens whose K and V are in the pages."""
        return len(self.tokens)

    @property
    def evicted(self) -> int:
        """Count of tokens whose K and V were in pages and are not any more."""
        return 0 if self.kept is None else self.kept.evicted

    @property
    def positions(self) -> int:
        """Count of tokens that were computed: the position of the next one."""
        return self.computed + self.evicted

    @property
    def pages(self) -> list[int]:
        """Page ids of the first group, the one that sees most."""
        return self.groups[0]


@dataclass(frozen=True, eq=False, slots=True)
class PrefixMatch:
    """A cached prefix, locked: its pages cannot be evicted until it is opened or released.

    `groups` are the full pages of each group of layers, to be shared; `GONE` stands for those that no token behind the
    prefix sees. `partial` are one more page of each group, of which `slots` slots agree, to be copied; or None.
    `tokens` are those found, out of `asked` ones. kept: what it begins with where a policy has evicted entries of a
    prompt; all counts are of slots then. Release it, or use it in a ``with`` statement; after `open` both do
    nothing.
    """

    salt: bytes
    asked: int
    groups: tuple[tuple[int, ...], ...]
    partial: tuple[int, ...] | None
    slots: int
    tokens: tuple[int, ...]
    keys: tuple[bytes, ...] = field(repr=False)
    unlock: Callable[[PrefixMatch], None] = field(repr=False)
    kept: Kept | None = field(default=None, repr=False)

    @property
    def cached(self) -> int:
        """Count of tokens found."""
        return len(self.tokens)

    @property
    def evicted(self) -> int:
        """Count of tokens before those that need not be found."""
        return 0 if self.kept is None else self.kept.evicted

    @property
    def pages(self) -> tuple[int, ...]:
        """The full pages of the first group, the one that sees most."""
        return self.groups[0]

    @property
    def locked(self) -> tuple[tuple[int, ...], ...]:
        """The pages of each group that a reference is held on, in order of positions."""
        held = (tuple(page for page in pages if page != GONE) for pages in self.groups)
        if self.partial is None:
            return tuple(held)
        return tuple((*pages, page) for pages, page in zip(held, self.partial, strict=True))

    def release(self) -> None:
        """Give the pages back unused. Does nothing after `open` or an earlier `release`."""
        self.unlock(self)

    def __enter__(self) -> PrefixMatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
