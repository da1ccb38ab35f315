"""Prompt lookup: the index says what a reader who looks through the whole text would say."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.engine.speculative.ngram import NgramIndex


def looked_up(tokens: list[int], longest: int, shortest: int, limit: int) -> list[int]:
    """The longest suffix that appeared before, at its most recent appearance; what followed, going on with itself."""
    for n in range(longest, shortest - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                text = list(tokens)
                for i in range(limit):
                    text.append(text[end + i])
                return text[len(tokens) :]
    return []


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 9),
)
def test_the_index_equals_a_scan_however_the_text_grows(
    parts: list[list[int]], one: int, other: int, limit: int
) -> None:
    longest, shortest = max(one, other), min(one, other)
    index, tokens = NgramIndex(longest, shortest), []
    for part in parts:
        tokens += part
        assert index.propose(tokens, limit) == looked_up(tokens, longest, shortest, limit)
        assert index.propose(tokens, limit) == looked_up(tokens, longest, shortest, limit)  # asking changes nothing


def test_the_most_recent_appearance_of_the_longest_suffix() -> None:
    text = [7, 8, 1, 2, 3, 50, 2, 3, 60, 1, 2, 3]
    assert NgramIndex(3, 2).propose(text, 4) == [50, 2, 3, 60]  # 1 2 3, not the later 2 3
    assert NgramIndex(2, 2).propose(text, 4) == [60, 1, 2, 3]
    assert NgramIndex(4, 4).propose(text, 4) == []
    assert NgramIndex(2, 1).propose([5, 5], 3) == [5, 5, 5]  # a loop of one token is proposed as a loop
    assert NgramIndex(4, 2).propose([1], 3) == []


def test_a_token_costs_the_same_however_long_the_text_is() -> None:
    """What is entered for a token does not grow with the tokens before it."""
    index, tokens = NgramIndex(4, 2), [i * i % 101 for i in range(5000)]
    index.propose(tokens, 4)
    read: list[int] = []

    class Counted(list[int]):
        def __getitem__(self, at):  # type: ignore[no-untyped-def]
            found = super().__getitem__(at)
            read.append(len(found) if isinstance(at, slice) else 1)
            return found

    for token in (1, 2, 3):
        tokens = Counted([*tokens, token])
        index.propose(tokens, 4)
    assert sum(read) <= 3 * 32
