"""What may follow an answer's tokens so far, asked anew before each token: the engine's side of guided decoding.

Masks are applied before anything else is chosen (`sampling.masks`). Drafts are checked on a fork of the guide, row by
row, so a guide only ever sees tokens that were chosen, and a guided answer has the same tokens with drafts and without.
A preempted sequence keeps its guide, as it keeps its tokens. The engine knows no grammar and no text: who makes guides
does (`text.guided`).
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint32]
"""A bit for each token of the vocabulary, the lowest first; 1: it may follow."""


class Guide(Protocol):
    """One answer's. `mask`, and with it what is answered, depends on nothing but the accepted tokens."""

    @property
    def ended(self) -> bool:
        """Whether the answer was ended by its last token."""

    @property
    def failure(self) -> str | None:
        """Why it cannot go on though the answer has not ended: known once `mask` or `accept` has found it out."""

    def mask(self) -> Bits:
        """The tokens that may follow, at least one; the caller's to keep. Means nothing where there is a failure."""

    def accept(self, token: int) -> bool:
        """Go on with a token. Whether it may follow; if not, this guide is of no use any more."""

    def fork(self) -> Guide:
        """Another one that has accepted the same tokens."""


def masks(guide: Guide, drafts: Tokens[int]) -> list[Bits]:
    """Of the next row and of each behind a draft, as far as drafts may follow. None if the guide has failed."""
    found = [guide.mask()]
    if guide.failure is not None:
        return []
    ahead = guide.fork() if drafts else guide
    for draft in drafts:
        if not ahead.accept(draft) or ahead.ended:
            break
        mask = ahead.mask()
        if ahead.failure is not None:
            break
        found.append(mask)
    return found
