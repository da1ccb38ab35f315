"""Every token sees what the model lets it see."""

from __future__ import annotations

from dataclasses import dataclass

from kvist.cache.policy.base import Policy
from kvist.errors import UsageError


@dataclass(frozen=True, slots=True)
class Full(Policy):
    """The policy that changes nothing."""

    @classmethod
    def parse(cls, arguments: str) -> Full:
        """It takes no arguments."""
        if arguments:
            raise UsageError(f"policy full:{arguments[:40]}: full takes nothing behind it")
        return cls()

    @property
    def name(self) -> str:
        """See `Policy`."""
        return "full"
