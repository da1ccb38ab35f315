"""Groups of layers: those that see the same span of positions keep their pages for equally long.

::

    positions            0 . . . . . . . . . . . . . . . . 255 | next token
    layers that see all  [page 0] [page 1]   ...    [page 15]    all are needed
    window of 64            -        -       -   12  13  14  15  a page that no later token sees is let go of
    ... and 4 sinks      [page 0]    -       -   12  13  14  15  the first positions are seen by all tokens

Each group has a pool of its own. Group 0 sees most: if any layer sees everything, it is in group 0.

Layers whose K or V are packed lie in two groups. In the pages of the *sealed* one, by what they see, a page is packed
when it is full. The last group holds them as floats, the *exact* pages: a token reads its own page and page 0 there,
so that is a window of one position with a page of sinks. Pages between the two are let go of when they are full::

    positions             0 ........................... 111 | next token, in page 7
    sealed    int4        -  [1] [2] [3] [4] [5] [6]  -       page 0 and page 7 are never read here
    exact     f16        [0]  .   .   .   .   .   .  [7]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvist.cache.layout import PageLayout
from kvist.cache.policy import Span
from kvist.errors import UsageError


@dataclass(frozen=True)
class PageGroup:
    """`num_pages` pages of the layers in `layout`, of which a token sees its own and the window - 1 positions before.

    window: None if it sees all. sinks: positions at the beginning that every token sees as well. exact: the pages are
    those of packed layers, as floats.
    """

    layout: PageLayout
    num_pages: int
    window: int | None = None
    sinks: int = 0
    exact: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise UsageError(f"a window of {self.window} positions: it holds at least the token's own")

    @property
    def kept(self) -> int:
        """Pages at the beginning that every token reads: those of the sinks."""
        return self.layout.pages_for(self.sinks)

    @property
    def span(self) -> int | None:
        """Pages that sinks, window and the token behind it lie in at most, wherever it begins; None if all is seen."""
        return None if self.window is None else self.kept + self.layout.pages_for(self.window) + 1

    def held(self, tokens: int) -> int:
        """Pages that a sequence of `tokens` needs at a time, if it runs them one by one."""
        return min(self.layout.pages_for(tokens), self.span or tokens)

    def first_seen(self, position: int) -> int:
        """Index of the first page behind the sinks' that a token at `position`, or any after it, reads."""
        return 0 if self.window is None else max(0, position - self.window + 1) // self.layout.page_size

    def unseen(self, position: int) -> range:
        """Indices of the pages that no token at `position` or after it reads."""
        return range(self.kept, max(self.kept, self.first_seen(position)))


def page_groups(template: PageLayout, spans: Sequence[Span]) -> tuple[PageGroup, ...]:
    """Group the layers of `template` by what they see, the widest first; each group without pages as yet.

    Packed layers are in groups of their own, and all of them in one more: that of their exact pages.
    """
    kinds = [(span, bool(spec and spec.packed)) for span, spec in zip(spans, template.layers, strict=True)]
    groups = []
    for kind in sorted(set(kinds), key=_width):
        layers = tuple(spec if own == kind else None for own, spec in zip(kinds, template.layers, strict=True))
        (window, sinks), packed = kind
        groups.append(PageGroup(replace(template, layers=layers), 0, window, 0 if packed else sinks))
    exact = tuple(spec.exact if spec and spec.packed else None for spec in template.layers)
    if any(exact):
        groups.append(PageGroup(replace(template, layers=exact), 0, 1, template.page_size, exact=True))
    return tuple(groups)


def _width(kind: tuple[Span, bool]) -> tuple[bool, int, int, bool]:
    """Sorts what layers see, the most first."""
    (window, sinks), packed = kind
    return window is not None, -(window or 0), -sinks, packed


@dataclass(frozen=True)
class Sharing:
    """How groups share memory: as many pages each, but no more of a window than sequences can use.

    sequences: that run at a time; at_once: tokens they run in a step, together. A window's group has the pages for all
    of them, and as many again for what is cached.
    """

    groups: tuple[PageGroup, ...]
    sequences: int
    at_once: int

    @property
    def each(self) -> int:
        """Bytes of one page of every group."""
        return sum(group.layout.page_bytes for group in self.groups)

    def shared(self, count: int) -> tuple[PageGroup, ...]:
        """The groups with their pages, where the first has `count`."""
        others = (replace(group, num_pages=self._most(group, count)) for group in self.groups[1:])
        return replace(self.groups[0], num_pages=count), *others

    def bytes(self, count: int) -> int:
        """Bytes of all groups where the first has `count` pages."""
        return sum(group.layout.pool_bytes(group.num_pages) for group in self.shared(count))

    def useful(self, longest: int) -> int:
        """Pages of the first group that sequences of up to `longest` tokens can use."""
        first = self.groups[0]
        every = first.layout.pages_for(longest) * self.sequences
        return self._most(first, every)

    def longest(self, count: int, wanted: int) -> int:
        """Tokens, up to `wanted`, of the longest sequence that fits alone where the first group has `count` pages."""
        short = (g for g in self.shared(count) if g.held(wanted) > g.num_pages)
        return min((g.num_pages * g.layout.page_size for g in short), default=wanted)

    def _most(self, group: PageGroup, count: int) -> int:
        """Pages of a group that can be used, at most `count`."""
        if group.span is None:
            return count
        return min(count, 2 * self.sequences * group.span + group.layout.pages_for(self.at_once))


def most_pages(sharings: Sequence[Sharing], budget: int) -> int:
    """The most pages that the first group of each can have in a budget of bytes."""
    low, high = 0, budget // sum(sharing.groups[0].layout.page_bytes for sharing in sharings)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(s.bytes(middle) for s in sharings) <= budget else (low, middle - 1)
    return low
