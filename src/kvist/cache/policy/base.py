"""What a policy is: a rule for which positions a query may read."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Span(NamedTuple):
    """What a token of a layer sees: itself and window - 1 positions before it (None: all), and the first `sinks`."""

    window: int | None = None
    sinks: int = 0


class Policy(Protocol):
    """Which positions a query may read. It is a part of what pages are: those of another policy are never found."""

    @property
    def name(self) -> str:
        """How it is written, in one way only: ``window:1024+4``."""

    def span(self, window: int | None) -> Span:
        """What a token sees in a layer whose own window, as the model has it, is `window`."""

    @property
    def endless(self) -> bool:
        """Whether positions beyond those a model was trained for can be run, since no token sees so far."""

    def takes(self, page_size: int) -> bool:
        """Whether it works with pages of this size."""

    def check(self, page_size: int, trained: int) -> None:
        """Refuse pages, or a model trained for so many positions, that it cannot work with: `UsageError`."""
