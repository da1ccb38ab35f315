"""Prompt lookup: propose what followed when the last few tokens appeared before (Saxena 2023).

Copies are common in summaries, edits of code, extraction, and in loops. Of the longest suffix (longest .. shortest
tokens) that appeared before, the most recent appearance counts::

    tokens   the  quick  fox  .  then  the  quick  | ?
             └───  2-gram ─┘               └───┘       proposal: fox . then the quick fox . then ...
                         end = 2

A proposal that reaches the end of the sequence goes on with itself, so a loop of one token is proposed as a loop.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvist.engine.sequence import Sequence


class NgramIndex:
    """Where each n-gram of one growing list of tokens was last seen.

    A token costs one entry for each size, and a lookup one for each size, however long the list is.
    """

    def __init__(self, longest: int, shortest: int) -> None:
        self._ends: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in range(longest, shortest - 1, -1)}
        self._read = 0  # n-grams that end at or before this position are in

    def propose(self, tokens: list[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow; none without an earlier appearance."""
        self._read_up_to(tokens, len(tokens) - 1)  # the suffix itself is no earlier appearance
        for n, ends in self._ends.items():
            end = ends.get(tuple(tokens[-n:]))
            if end is not None:
                followed = tokens[end : end + limit]
                return (followed * (limit // len(followed) + 1))[:limit]
        return []

    def _read_up_to(self, tokens: list[int], stop: int) -> None:
        """Enter all n-grams that end at or before `stop`; later ones replace earlier ones. In C, for long prompts."""
        for n, ends in self._ends.items():
            first = max(self._read + 1, n)
            if first <= stop:
                grams = zip(*(tokens[first - n + i : stop - n + i + 1] for i in range(n)), strict=True)
                ends.update(zip(grams, range(first, stop + 1), strict=True))
        self._read = max(stop, self._read)


class NgramProposer:
    """Proposes from each sequence's own prompt and output."""

    free = True
    seconds = 0.0

    def __init__(self, longest: int, shortest: int) -> None:
        self._longest, self._shortest = longest, shortest
        self._indexes: dict[Sequence, NgramIndex] = {}

    def propose(self, limits: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """See `Proposer`."""
        proposals = {}
        for sequence, limit in limits.items():
            index = self._indexes.get(sequence)
            if index is None:
                index = self._indexes[sequence] = NgramIndex(self._longest, self._shortest)
            if proposal := index.propose(sequence.tokens, limit):
                proposals[sequence] = proposal
        return proposals

    def forget(self, sequence: Sequence) -> None:
        """See `Proposer`."""
        self._indexes.pop(sequence, None)

    def close(self) -> None:
        """See `Proposer`."""
        self._indexes.clear()
