"""A conversation as tokens: kept while the template shows the same text, encoded again from where it does not."""

from itertools import pairwise

import pytest

from kvist.errors import UsageError
from kvist.text import Tokenizer
from kvist.text.history import History, Piece, encode_behind, said_tokens

END = "<|end|>"


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text byte by byte, as encoding would never give it."""
    of = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size)) if not tokenizer.is_special(i)}
    return [of[bytes([byte])] for byte in text.encode()]


def rendered(messages, begun=True, strip=False):
    text = "".join(f"[{m['content'].strip() if strip else m['content']}{END}" for m in messages)
    return text + "[" if begun else text


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("strip", [False, True])
def test_an_answers_tokens_stay(byte_level, strip):
    first = History().with_messages(byte_level, [user("q")], rendered([user("q")]))
    own = spelled(byte_level, " the the\n")
    second = first.with_answer(own, " the the\n")
    messages = [user("q"), said(" the the\n"), user("r")]
    third = second.with_messages(byte_level, messages[2:], rendered(messages, strip=strip))
    assert third.token_ids == [*second.token_ids, *byte_level.encode(f"{END}[r{END}[", add_special=False)]
    assert third.messages == tuple(messages)
    assert byte_level.encode(rendered(messages), add_special=False) != third.token_ids
    assert [piece.messages for piece in third.pieces] == [1, 2, 3]


def test_from_what_is_shown_otherwise_on_it_is_encoded_again(byte_level):
    history = History().with_messages(byte_level, [user("q")], "[q[")
    history = history.with_answer(spelled(byte_level, "the"), "the")
    history = history.with_messages(byte_level, [user("r")], "[q[the[r[").with_answer(spelled(byte_level, "end"), "end")
    for text, kept in (("[q[the[r[end[s[", 4), ("[q[the[r[and[s[", 3), ("[q[THE[r[end[s[", 1), ("x", 0)):
        new = history.with_messages(byte_level, [user("s")], text)
        assert new.pieces[:kept] == history.pieces[:kept]
        assert len(new.pieces) == kept + 1 and byte_level.decode(new.token_ids) == text
        assert len(new.messages) == 5


def test_every_cut_of_a_text(byte_level):
    history = History((Piece((1, 2, 3)), Piece((4, 5)), Piece((6,))))
    for length in range(7):
        assert history.cut(byte_level, length).token_ids == [1, 2, 3, 4, 5, 6][:length]


def test_every_cut_of_a_conversation(byte_level):
    history = History().with_messages(byte_level, [user("q"), user("p")], "[q[p[")
    history = history.with_answer(spelled(byte_level, "the é"), "the é")
    history = history.with_messages(byte_level, [user("r")], "[q[p[the é[r[")
    edges = [0, 5, 11, 14]
    assert history.length == 14
    for length in range(15):
        inside = next((pair for pair in pairwise(edges) if pair[0] < length < pair[1]), None)
        if inside and inside[0] != 5:
            with pytest.raises(UsageError, match=f"roll back to {inside[0]} or {inside[1]} tokens"):
                history.cut(byte_level, length)
            continue
        cut = history.cut(byte_level, length)
        assert cut.token_ids == history.token_ids[:length]
        answer = byte_level.decode(cut.token_ids[5:11], continues=True)
        wanted = (user("q"), user("p"), said(answer), user("r"))
        assert cut.messages == wanted[: 0 if length < 5 else 2 if length == 5 else 3 if length < 14 else 4]


def test_no_space_comes_before_what_goes_on(sentence_piece, byte_level):
    for tokenizer in (sentence_piece, byte_level):
        ids = encode_behind(tokenizer, "hello")
        assert tokenizer.decode(ids, continues=True).lstrip(" ") == "hello"
        end = tokenizer.token_text(tokenizer.eos_ids[0])
        whole = tokenizer.encode(f"{end}hello", add_special=False)
        assert whole == [tokenizer.eos_ids[0], *ids]  # as if it stood behind a control token
        assert encode_behind(tokenizer, end) == [tokenizer.eos_ids[0]]
        assert encode_behind(tokenizer, "") == []


def test_tokens_of_a_text_that_a_stop_string_cut(byte_level):
    ids = byte_level.encode("the e the e", add_special=False)
    for count in range(len(ids) + 1):
        assert said_tokens(byte_level, ids, byte_level.decode(ids[:count], continues=True)) == ids[:count]
    cut = said_tokens(byte_level, ids, "th")  # inside the first token
    assert byte_level.decode(cut) == "th"
