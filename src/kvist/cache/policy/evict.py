"""A share of a prompt's entries: what a score thinks least of is left out once the prompt is computed.

``evict:0.5,by=kvzip``: of a prompt (without its last token, whose logits are to come from what is left) half of the
keys and values are kept, in every layer and KV head its own, those with the highest score; the first 4 positions and
the newest 128 always. Scores are one file each in `kvist.cache.score`.

What is kept fills pages of its own, whatever their size: its count is rounded up to a multiple of 128. So a prompt is
compressed from 257 positions on, and shorter ones are left as they are. What comes behind it sees what is kept and all
that is newer; nothing more is evicted from there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kvist.cache.layout import PAGE_SIZES
from kvist.cache.policy.base import Policy
from kvist.cache.score import score
from kvist.errors import UsageError

FIRST, NEWEST = 4, 128
"""Positions that are always kept: at the beginning, at the end."""

DEFAULT = "kvzip"
WHOLE = PAGE_SIZES[-1]
"""A multiple of every page size."""


@dataclass(frozen=True, slots=True)
class Evict(Policy):
    """See the module."""

    share: float
    by: str

    @classmethod
    def parse(cls, arguments: str) -> Evict:
        """From ``0.5,by=kvzip``, or ``0.5``, which means kvzip as well."""
        match = re.fullmatch(r"(\d?\.\d{1,4}|\d)(?:,by=([a-z0-9_-]{1,20}))?", arguments, re.ASCII)
        if match is None:
            raise UsageError(
                f"policy evict:{arguments[:40]}: give the share to keep, and a score behind a comma, as in "
                f"evict:0.5,by={DEFAULT}"
            )
        share, by = float(match[1]), match[2] or DEFAULT
        if not 0 < share < 1:
            raise UsageError(f"policy evict:{arguments}: the share to keep is {match[1]}; give one between 0 and 1")
        score(by)
        return cls(share, by)

    @property
    def name(self) -> str:
        """See `Policy`."""
        return f"evict:{self.share:g},by={self.by}"

    def kept(self, positions: int) -> int:
        """How many entries are kept of so many; all where there is nothing to gain."""
        wanted = max(math.ceil(positions * self.share), FIRST + NEWEST)
        return min(-(-wanted // WHOLE) * WHOLE, positions)

    def extra(self, positions: int) -> int:
        """Slots that it takes beside a prompt's own until entries are evicted: of the kept, and what is run behind."""
        return self.kept(positions) + score(self.by).beyond(positions)
