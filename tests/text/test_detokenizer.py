"""The incremental detokenizer: pieces are whole characters, and together they are the decoded text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.text import Detokenizer, Tokenizer

quick = settings(max_examples=300, deadline=None, derandomize=True)


def pieces(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = True, continues: bool = False) -> list[str]:
    stream = Detokenizer(tokenizer, skip_special=skip_special, continues=continues)
    return [*(stream.add(i) for i in ids), stream.finish()]


def test_holds_back_an_incomplete_character(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a\u20ac\U0001f600")
    assert pieces(byte_level, ids) == ["a", "", "", "\u20ac", "", "", "", "\U0001f600", ""]
    assert pieces(byte_level, ids[:3]) == ["a", "", "", "\ufffd"]
    assert pieces(byte_level, [*ids[1:3], ids[0]]) == ["", "", "\ufffda", ""]


def test_special_tokens_and_unknown_ids(byte_level: Tokenizer) -> None:
    ids = [1, *byte_level.encode("the"), 10**6, 0]
    assert pieces(byte_level, ids) == ["", "the", "", "", ""]
    assert "".join(pieces(byte_level, ids, skip_special=False)) == "<|start|>the<|end|>"


def test_leading_space(sentence_piece: Tokenizer) -> None:
    ids = sentence_piece.encode("hello", add_special=False)
    assert pieces(sentence_piece, ids) == ["hell", "o", ""]
    assert pieces(sentence_piece, ids, continues=True) == [" hell", "o", ""]
    two = sentence_piece.encode("  ", add_special=False)
    assert "".join(pieces(sentence_piece, two)) == "  "


def check(tokenizer: Tokenizer, ids: list[int], skip: bool, continues: bool) -> None:
    found = "".join(pieces(tokenizer, ids, skip_special=skip, continues=continues))
    assert found == tokenizer.decode(ids, skip, continues=continues)


@quick
@given(ids=st.lists(st.integers(0, 262), max_size=40), skip=st.booleans(), continues=st.booleans())
def test_made_tokenizers(
    byte_level: Tokenizer, sentence_piece: Tokenizer, ids: list[int], skip: bool, continues: bool
) -> None:
    check(byte_level, ids, skip, continues)
    check(sentence_piece, ids, skip, continues)


@pytest.mark.model
@quick
@given(ids=st.lists(st.integers(0, 49151), max_size=60), skip=st.booleans(), continues=st.booleans())
def test_real_tokenizer(smollm2: Tokenizer, ids: list[int], skip: bool, continues: bool) -> None:
    check(smollm2, ids, skip, continues)


@pytest.mark.model
@quick
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
def test_real_text_comes_out_whole(smollm2: Tokenizer, lost: set[int], text: str) -> None:
    text = "".join(character for character in text if not lost & set(character.encode()))
    parts = pieces(smollm2, smollm2.encode(text), skip_special=False)
    assert "".join(parts) == text
    assert "\ufffd" in text or not any("\ufffd" in part for part in parts)
