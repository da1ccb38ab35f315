"""The pages that matter most to a token: it saves reading, not memory.

``topk:0.25``: of the pages up to its own a token reads a quarter, in each layer and KV head those it chooses, but at
least 1,024 positions, for a quarter of a short text is little and saves little; ``topk:0.25+3p``: at least 3 pages;
``topk:64p``: 64 pages, however many there are.

When a page is full, a sketch of its keys is kept, about two bits a number (see `cache.sketch`): their mean, and a sign
for each dim of what they are away from it. From it a query guesses what attention each page would get, and
those with the largest sum over the query heads that share a KV head are read, the earlier one of equals. Page 0
(the sinks), the token's own page and the one before are always read, and in the first layer, where attention is spread
widely, all pages.

Quest (Tang et al. 2024) keeps the smallest and the largest number of each dim instead, as many bytes. But no key is
near all of its page's bounds, and many a page seems to matter that does not.

Pages may be packed: sketches are made of what a page held before, and lie where it is packed to.

What a token reads depends on the tokens before it and its position alone, so hit = miss and batch = alone as ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from kvist.cache.policy.base import ALWAYS, WHOLE, Choice, Policy, Span
from kvist.errors import UsageError

MOST = 1 << 20
DIGITS = 4
LEAST = 1024
"""Positions that a token reads at least, where nothing else is asked for."""

FULL_LAYERS = 1
"""Layers at the beginning that read all pages. Quest has two."""


@dataclass(frozen=True, slots=True)
class Topk(Policy):
    """See the module. share: in ten-thousandths, 0 for a fixed number of pages, which is `least` (None: `LEAST`)."""

    share: int
    least: int | None
    paged: ClassVar[bool] = True

    @classmethod
    def parse(cls, arguments: str) -> Topk:
        """From a share, ``0.25``, or a number of pages, ``64p``."""
        match = re.fullmatch(r"(\d{1,9})p|([01]?)(?:\.(\d{1,4}))?(?:\+(\d{1,9})p)?", arguments, re.ASCII)
        if match is None or not arguments:
            raise UsageError(
                f"policy topk:{arguments[:40]}: give a share of the pages with at most {DIGITS} decimals, as in "
                "topk:0.25, a number of pages, as in topk:64p, or a share and the least, as in topk:0.25+64p"
            )
        given, share = match[1] or match[4], 0
        pages = int(given) if given else None
        if pages is not None and not ALWAYS <= pages <= MOST:
            raise UsageError(
                f"policy topk:{arguments}: the first page, a token's own and the one before are always read; give "
                f"{ALWAYS} to {MOST} pages"
            )
        if not match[1]:
            share = int(match[2] or "0") * WHOLE + int((match[3] or "").ljust(DIGITS, "0"))
            if not 0 < share <= WHOLE:
                raise UsageError(
                    f"policy topk:{arguments}: a token reads some pages and at most all; give a share up to 1"
                )
        return cls(share, pages)

    @property
    def name(self) -> str:
        """See `Policy`."""
        if not self.share:
            return f"topk:{self.least}p"
        return f"topk:{self.share / WHOLE:g}" + ("" if self.least is None else f"+{self.least}p")

    def span(self, window: int | None) -> Span:
        """See `Policy`."""
        if window is not None:
            raise UsageError(
                f"policy {self.name}: this model's layers have windows of their own, and what a window leaves is small "
                "already; give policy full"
            )
        return Span()

    def choice(self, layer: int, page_size: int) -> Choice | None:
        """See `Policy`."""
        least = max(ALWAYS, LEAST // page_size) if self.least is None else self.least
        return None if layer < FULL_LAYERS else Choice(self.share, least)
