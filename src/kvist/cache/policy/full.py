"""Every token sees what the model lets it see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvist.cache.policy.base import Choice, Span
from kvist.errors import UsageError


@dataclass(frozen=True, slots=True)
class Full:
    """The policy that changes nothing."""

    name: ClassVar[str] = "full"
    endless: ClassVar[bool] = False
    paged: ClassVar[bool] = False

    @classmethod
    def parse(cls, arguments: str) -> Full:
        """It takes no arguments."""
        if arguments:
            raise UsageError(f"policy full:{arguments[:40]}: full takes nothing behind it")
        return cls()

    def span(self, window: int | None) -> Span:
        """See `Policy`."""
        return Span(window)

    def choice(self, layer: int) -> Choice | None:
        """See `Policy`."""
        return None

    def takes(self, page_size: int) -> bool:
        """See `Policy`."""
        return True

    def check(self, page_size: int, trained: int) -> None:
        """See `Policy`."""
