"""What a policy is: a rule for which positions a query may read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

WHOLE = 10_000
"""The share that is all pages."""

ALWAYS = 3
"""Pages that a token reads wherever it chooses: the first, its own, the one before."""


class Span(NamedTuple):
    """What a token of a layer sees: itself and window - 1 positions before it (None: all), and the first `sinks`."""

    window: int | None = None
    sinks: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """How many pages a token reads: `share` ten-thousandths of those up to its own, but `least`, or all there are.

    Page 0, its own and the one before are always among them; of the others those that a kernel finds best.
    """

    share: int
    least: int

    def count(self, pages: int) -> int:
        """Pages that a token reads where it is in the last one of `pages`."""
        return min(pages, max(self.least, -(-pages * self.share // WHOLE)))


class Policy(ABC):
    """Which positions a query may read. It is a part of what pages are: those of another policy are never found.

    endless: positions beyond those a model was trained for can be run, since no token sees so far. paged: what a token
    sees goes by pages, so that their size changes answers, and there must be a cache.

    What a policy says nothing of is as if there were none.
    """

    __slots__ = ()
    endless: ClassVar[bool] = False
    paged: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def parse(cls, arguments: str) -> Self:
        """From what is written behind its name and a colon; `UsageError` for what cannot be meant."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How it is written, in one way only: ``window:1024+4``."""

    def span(self, window: int | None) -> Span:
        """What a token sees in a layer whose own window, as the model has it, is `window`."""
        return Span(window)

    def choice(self, layer: int, page_size: int) -> Choice | None:
        """How many pages of a size a token chooses to read in a layer; None: all it sees."""
        return None

    def takes(self, page_size: int) -> bool:
        """Whether it works with pages of this size."""
        return True

    def check(self, page_size: int, trained: int) -> None:  # noqa: B027 - most work with anything
        """Refuse pages, or a model trained for so many positions, that it cannot work with: `UsageError`."""
