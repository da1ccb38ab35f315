"""KVzip (Kim et al. 2025): what the model looks at when it repeats the text.

The prompt is followed by an instruction to repeat it and then by the prompt itself again, a chunk at a time; an entry
gets the most attention that any of these rows and any head of its group gives it. So it is asked what is needed to say
everything again, not what one question needs. It costs two more readings of the prompt.

Two things are ours, chosen on documents and pass keys of `kvist eval` (SmolLM2-135M, half kept). A head that repeats a
text looks with all its might at every token in its turn, and the paper's score does not tell these apart: here a row
counts the square root of how surprising (in nats) the token that it comes to was at first, for what can be guessed
without looking need not be kept. And the score of an entry is multiplied by the length of its value: what weighs
nothing is not missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvist.cache.score.base import Array, Pass, Prompt, Seen, Watch, lengths

INSTRUCTION = "\n\nRepeat the previous context exactly."
CHUNK = 2048

LONGEST = 64
"""Tokens of the instruction, at most."""


@dataclass(frozen=True, slots=True)
class KVzip:
    """See the module."""

    watch: ClassVar[Watch] = "max"
    ahead: ClassVar[int] = 0
    surprised: ClassVar[bool] = True

    def beyond(self, positions: int) -> int:
        """See `Score`."""
        return min(positions, CHUNK) + LONGEST

    def passes(self, prompt: Prompt) -> Iterator[Pass]:
        """See `Score`. The instruction's rows count nothing, nor does the last of the prompt: nothing follows it."""
        instruction, tokens = prompt.instruction[:LONGEST], prompt.tokens
        counts = np.append(np.sqrt(prompt.surprisals), 0).astype(np.float32)
        for start in range(0, len(tokens), CHUNK):
            own = counts[start : start + CHUNK]
            yield Pass(
                [*instruction, *tokens[start : start + CHUNK]], len(tokens),
                np.concatenate([np.zeros(len(instruction), np.float32), own]),
            )  # fmt: skip

    def importance(self, seen: Seen) -> Array:
        """See `Score`."""
        assert seen.attention is not None
        scores: Array = seen.attention * lengths(seen.values)
        return scores


SCORE = KVzip()
