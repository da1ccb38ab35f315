"""KVzip (Kim et al. 2025): what the model looks at when it repeats the text.

The prompt is followed by an instruction to repeat it and then by the prompt itself again, a chunk at a time; an entry
gets the most attention that any of these rows and any head of its group gives it. So it is asked what is needed to say
everything again, not what one question needs. It costs a second reading of the prompt.

An entry that gets less than 0.6 of what one of its 4 neighbours on either side gets is taken for that much: heads that
repeat a text look at single tokens, and what else is asked about a place needs more of it. This is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvist.cache.score.base import Array, Pass, Seen, Watch, of_neighbours

INSTRUCTION = "\n\nRepeat the previous context exactly."
CHUNK = 2048
NEIGHBOURS, SHARE = 4, 0.6
"""Chosen by `kvist eval` on 29 pass keys and 4 documents (SmolLM2-135M, half kept): 0.4 finds fewer keys."""

LONGEST = 64
"""Tokens of the instruction, at most."""


@dataclass(frozen=True, slots=True)
class KVzip:
    """See the module."""

    watch: ClassVar[Watch] = "max"
    ahead: ClassVar[int] = 0

    def beyond(self, positions: int) -> int:
        """See `Score`."""
        return min(positions, CHUNK) + LONGEST

    def passes(self, prompt: Sequence[int], instruction: Sequence[int]) -> Iterator[Pass]:
        """See `Score`."""
        for start in range(0, len(prompt), CHUNK):
            yield Pass([*instruction[:LONGEST], *prompt[start : start + CHUNK]], len(prompt))

    def importance(self, seen: Seen) -> Array:
        """See `Score`."""
        assert seen.attention is not None
        near = of_neighbours(seen.attention, NEIGHBOURS).max(-1)
        scores: Array = np.maximum(seen.attention, np.float32(SHARE) * near)
        return scores


SCORE = KVzip()
