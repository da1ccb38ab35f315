"""The newest positions and the first few: text without end in constant memory (StreamingLLM, Xiao et al. 2023).

``window:1024+4``: a token sees the 1,024 newest positions, its own included, and the first 4, the sinks, which soak up
the attention that a head has no use for; without them quality collapses when the first positions leave the window.

Positions are counted inside the cache: the sinks are seen as if they stood right before the window, so no distance is
larger than the window and the sinks together, and texts may be longer than what a model was trained for. A layer whose
own window is not larger keeps its own, and no sinks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from kvist.cache.policy.base import Policy, Span
from kvist.errors import UsageError

MOST = 1 << 24
DEFAULT_SINKS = 4


@dataclass(frozen=True, slots=True)
class Window(Policy):
    """See the module."""

    window: int
    sinks: int
    endless: ClassVar[bool] = True

    @classmethod
    def parse(cls, arguments: str) -> Window:
        """From ``1024+4``, or ``1024``, which means 4 sinks as well."""
        match = re.fullmatch(r"(\d{1,9})(?:\+(\d{1,9}))?", arguments, re.ASCII)
        if match is None:
            raise UsageError(
                f"policy window:{arguments[:40]}: give positions, and sinks behind a plus, as in window:1024+4"
            )
        window, sinks = int(match[1]), int(match[2] or DEFAULT_SINKS)
        if not 1 <= window <= MOST:
            raise UsageError(f"policy window:{arguments}: the window is {window}; give 1 to {MOST} positions")
        if sinks > window:
            raise UsageError(f"policy window:{arguments}: {sinks} sinks are more than the window of {window}")
        return cls(window, sinks)

    @property
    def name(self) -> str:
        """See `Policy`."""
        return f"window:{self.window}+{self.sinks}"

    def span(self, window: int | None) -> Span:
        """See `Policy`."""
        return Span(window) if window is not None and window <= self.window else Span(self.window, self.sinks)

    def takes(self, page_size: int) -> bool:
        """See `Policy`."""
        return page_size <= self.window

    def check(self, page_size: int, trained: int) -> None:
        """See `Policy`."""
        if not self.takes(page_size):
            raise UsageError(
                f"policy {self.name}: the window is smaller than a page of {page_size}; give a window of at least "
                f"{page_size} or smaller pages"
            )
        if self.window + self.sinks > trained:
            raise UsageError(
                f"policy {self.name}: {self.window + self.sinks} positions are seen at once, and this model was "
                f"trained for {trained}; give a smaller window"
            )
