"""What a proposer is, and how far it was right."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Tokens
from typing import Protocol

from kvist.engine.sequence import Sequence


class Proposer(Protocol):
    """Guesses how sequences go on. A guess may be wrong, short or missing; it changes no answer."""

    @property
    def free(self) -> bool:
        """Whether proposals cost (next to) nothing, so that making one that is not run is no waste."""

    @property
    def seconds(self) -> float:
        """Seconds that a further token costs, for all sequences of a step together; 0 while it is not known."""

    def propose(self, limits: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """Guess the next tokens of sequences, at most limits[sequence] (1 or more); without a guess it is left out.

        Nothing about a sequence but its tokens has to be told: what was accepted is in them the next time.
        """

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence; nothing is kept for an unknown one."""

    def close(self) -> None:
        """Give memory back. Nothing else may be called afterwards."""


def agreed(guess: Tokens[int], tokens: Tokens[int]) -> int:
    """Length of the common prefix of a guess and what came."""
    count = 0
    for guessed, came in zip(guess, tokens, strict=False):
        if guessed != came:
            break
        count += 1
    return count
