"""Stop strings: found wherever the edges of tokens lie, and nothing is handed out that could be the beginning of one."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.text import Detokenizer, Tokenizer
from kvist.text.stops import AnswerText

quick = settings(max_examples=400, deadline=None, derandomize=True)


class Spelled:
    """A tokenizer whose token i is the i-th of some byte strings."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.leading_spaces = 0

    def is_special(self, token_id: int) -> bool:
        return False

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]


def answer(pieces: list[bytes], stops: list[str], **options: object) -> tuple[list[str], str | None, int]:
    """What came out with each token and at the end, the stop string, and how many tokens were taken."""
    text = AnswerText(Detokenizer(Spelled(pieces), continues=True), stops, **options)  # type: ignore[arg-type]
    out: list[str] = []
    for i in range(len(pieces)):
        found = text.watch(i)
        out.append(text.take())
        if found is not None:
            return out, found, i + 1
    return [*out, text.end()], None, len(pieces)


def spelled(*pieces: str) -> list[bytes]:
    return [piece.encode() for piece in pieces]


def test_a_stop_string_across_tokens() -> None:
    assert answer(spelled("the ", "E", "ND of"), ["END"]) == (["the ", "", ""], "END", 3)
    assert answer(spelled("the ", "E", "ND of"), ["END"], include=True) == (["the ", "", "END"], "END", 3)
    assert answer(spelled("the ", "E", "N", "T"), ["END"]) == (["the ", "", "", "ENT", ""], None, 4)
    assert answer(spelled("the ", "E", "N"), ["END"]) == (["the ", "", "", "EN"], None, 3)
    assert answer(spelled("aab", "aac"), ["aac"]) == (["aab", ""], "aac", 2)
    assert answer(spelled("aaa", "ac"), ["aac"]) == (["a", "a"], "aac", 2)


def test_of_several_the_first_in_the_text_then_in_the_list() -> None:
    assert answer(spelled("xabcy"), ["bc", "ab"]) == (["x"], "ab", 1)
    assert answer(spelled("xabcy"), ["abc", "ab"]) == (["x"], "abc", 1)
    assert answer(spelled("xa", "b", "cy"), ["abc", "ab"]) == (["x", ""], "ab", 2)  # it is there before the other


def test_stops_do_not_count_while_there_are_too_few_tokens() -> None:
    assert answer(spelled("END", "x", "END"), ["END"], least=1) == (["END", "x", ""], "END", 3)
    assert answer(spelled("EN", "D", "E", "ND"), ["END"], least=2) == (["", "END", "", ""], "END", 4)
    assert answer(spelled("EN", "D"), ["END"], least=1) == (["", ""], "END", 2)


def test_half_a_character_is_no_text_yet() -> None:
    euro = "€".encode()
    assert answer([b"a", euro[:1], euro[1:]], ["€"]) == (["a", "", ""], "€", 3)
    assert answer([b"a", euro[:2]], ["€"]) == (["a", "", "\ufffd"], None, 2)


@quick
@given(
    text=st.text("ab€", max_size=30), cuts=st.lists(st.integers(0, 60)), stops=st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3),
    least=st.integers(0, 6), include=st.booleans(),
)  # fmt: skip
def test_the_text_is_that_of_a_search_in_the_whole(
    text: str, cuts: list[int], stops: list[str], least: int, include: bool
) -> None:
    data = text.encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    expected, taken, reason = text, len(pieces), None
    before = 0
    for count, edge in enumerate(edges[1:], 1):
        whole = data[:edge].decode("utf-8", "ignore")  # characters that are complete
        ends = [
            (at, i)
            for i, stop in enumerate(stops)
            for at in range(len(whole))
            if whole.startswith(stop, at) and at + len(stop) > before
        ]
        if ends and count > least:
            at, i = min(ends)
            expected, taken, reason = whole[: at + (len(stops[i]) if include else 0)], count, stops[i]
            break
        before = len(whole)
    out, found, count = answer(pieces, stops, include=include, least=least)
    assert ("".join(out), found, count) == (expected, reason, taken)
    # as much as is certain was handed out with each token, and not a character more
    for i in range(1, count if reason else count + 1):
        whole, handed = data[: edges[i]].decode("utf-8", "ignore"), "".join(out[:i])
        assert whole.startswith(handed)
        held = whole[len(handed) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
        assert not any(
            stop.startswith(whole[at:]) and stop != whole[at:] for stop in stops for at in range(len(handed))
        )


@quick
@given(ids=st.lists(st.integers(0, 262), max_size=40))
def test_without_stops_it_is_the_detokenizer(byte_level: Tokenizer, ids: list[int]) -> None:
    plain, watched = Detokenizer(byte_level, continues=True), AnswerText(Detokenizer(byte_level, continues=True))
    for token in ids:
        assert watched.watch(token) is None
        assert watched.take() == plain.add(token)
    assert watched.end() == plain.finish()
