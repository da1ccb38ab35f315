"""KVzip (Kim et al. 2025): what the model looks at when it repeats the text.

The prompt is followed by an instruction to repeat it and then by the prompt itself again, a chunk at a time; an entry's
score is the most attention that it, or one of its 4 neighbours on either side, gets from any of these rows and any
head of its group. So it asks what is needed to say everything again, not what one question needs. The neighbours are
ours: heads that repeat a text look at single tokens, and what else is asked about a place needs more of it (of 20 pass
keys in 1,000 tokens SmolLM2-135M finds 10 without them, and 20 with them). It costs a second reading of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvist.cache.score.base import Array, Pass, Seen, Watch, of_neighbours

INSTRUCTION = "\n\nRepeat the previous context exactly."
CHUNK = 2048
NEIGHBOURS = 4
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
        scores: Array = of_neighbours(seen.attention, NEIGHBOURS).max(-1)
        return scores


SCORE = KVzip()
