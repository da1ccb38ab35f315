"""Tokenizers from GGUF metadata: made ones in detail, the real one by round trips."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.errors import ModelFileError, UnsupportedModelError, UsageError
from kvist.text import Tokenizer, tokenizer_from_gguf
from kvist.text.pieces import BYTE_OF
from kvist.text.pretokenizers import PRE_TOKENIZERS

Metadata = dict[str, dict[str, object]]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
quick = settings(max_examples=200, deadline=None, derandomize=True)


def test_byte_level(byte_level: Tokenizer) -> None:
    the = byte_level.encode("the")
    assert [byte_level.token_text(i) for i in the] == ["the"]
    assert [byte_level.token_text(i) for i in byte_level.encode(" 12")] == ["Ġ", "1", "2"]
    assert byte_level.encode("a<|end|>")[1] == 0
    assert (byte_level.bos_id, byte_level.bos_token, byte_level.eos_ids, byte_level.eos_token) == (
        1,
        "<|start|>",
        (0,),
        "<|end|>",
    )
    assert byte_level.vocab_size == 261
    assert byte_level.special_tokens == {"<|end|>": 0, "<|start|>": 1}
    assert byte_level.is_special(0) and not byte_level.is_special(260)
    tool = byte_level.encode("x<tool é>y")
    assert tool[1] == 260 and len(tool) == 3
    assert byte_level.decode([0, *the, 1]) == "the"
    assert byte_level.decode([0, *the, 1], skip_special=False) == "<|end|>the<|start|>"
    assert (
        byte_level.decode([-5, 10**9]) == "" and byte_level.token_text(-1) == "" and byte_level.token_bytes(999) == b""
    )


def test_sentence_piece(sentence_piece: Tokenizer) -> None:
    ids = sentence_piece.encode("hello")
    assert [sentence_piece.token_text(i) for i in ids] == ["<s>", "▁hell", "o"]
    assert sentence_piece.encode("hello", add_special=False) == ids[1:]
    assert sentence_piece.decode(ids) == "hello"
    assert sentence_piece.decode(ids[1:], continues=True) == " hello"
    assert sentence_piece.decode(sentence_piece.encode("h\nё")) == "h\nё"


def test_merges_follow_scores(gguf_metadata: Metadata) -> None:
    metadata = gguf_metadata["llama"]
    scores = metadata["tokenizer.ggml.scores"]
    assert isinstance(scores, np.ndarray)
    first = tokenizer_from_gguf(metadata)
    assert [first.token_text(i) for i in first.encode("hello", add_special=False)] == ["▁hell", "o"]
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    tokens += ["ello", "el", "lo"]
    metadata["tokenizer.ggml.scores"] = np.array([*scores, -0.3, -0.1, -0.2], np.float32)
    metadata["tokenizer.ggml.token_type"] = np.ones(len(tokens), np.int32)
    second = tokenizer_from_gguf(metadata)
    assert [second.token_text(i) for i in second.encode("hello", add_special=False)] == ["▁", "h", "ello"]


def test_beginning_and_end_tokens(gguf_metadata: Metadata) -> None:
    metadata = gguf_metadata["gpt2"]
    assert tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_bos_token": True}).encode("the")[0] == 1
    both = {**metadata, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    assert tokenizer_from_gguf(both).encode("") == [1, 0]
    ends = tokenizer_from_gguf({**metadata, "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 0})
    assert ends.eos_ids == (0, 5)
    assert tokenizer_from_gguf({**gguf_metadata["llama"], "tokenizer.ggml.add_bos_token": False}).encode("o")[0] != 1


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_loses_nothing(name: str, gguf_metadata: Metadata) -> None:
    tokenizer = tokenizer_from_gguf({**gguf_metadata["gpt2"], "tokenizer.ggml.pre": name})
    text = "It's 12345 o'CLOCK,\r\n\n  été \u4f60\u597d\u3002 \U0001f600\t x  "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pre_tokenizers_cut_numbers_their_way(gguf_metadata: Metadata) -> None:
    def cut(name: str, text: str) -> list[str]:
        return [piece for piece, _ in PRE_TOKENIZERS[name].build().pre_tokenize_str(text)]

    assert cut("gpt-2", "ab 1234's") == ["ab", "Ġ1234", "'s"]
    assert cut("smollm", "ab 1234's") == ["ab", "Ġ", "1", "2", "3", "4", "'s"]
    assert cut("llama-bpe", "ab 1234'S") == ["ab", "Ġ", "123", "4", "'S"]
    assert cut("qwen2", "ab 12'S") == ["ab", "Ġ", "1", "2", "'S"]
    assert cut("gpt-4o", "abCde's") == ["ab", "Cde's"]
    assert cut("tekken", "abCde12") == ["ab", "Cde", "1", "2"]


@pytest.mark.parametrize(
    ("kind", "change", "error", "cause"),
    [
        ("gpt2", {"tokenizer.ggml.model": "bert"}, UnsupportedModelError, "kvist has gpt2 and llama"),
        ("gpt2", {"tokenizer.ggml.model": 3}, ModelFileError, "carries no tokenizer"),
        ("gpt2", {"tokenizer.ggml.pre": "odd"}, UnsupportedModelError, "'odd' is not known: kvist has codeshell"),
        ("gpt2", {"tokenizer.ggml.tokens": ["a", "a"]}, ModelFileError, "twice"),
        ("gpt2", {"tokenizer.ggml.tokens": []}, ModelFileError, "empty"),
        ("gpt2", {"tokenizer.ggml.tokens": [1]}, ModelFileError, "tokenizer.ggml.tokens"),
        ("gpt2", {"tokenizer.ggml.merges": ["zz yy"]}, ModelFileError, "merges do not fit"),
        ("gpt2", {"tokenizer.ggml.merges": ["nospace"]}, ModelFileError, "merges do not fit"),
        ("gpt2", {"tokenizer.ggml.eos_token_id": 10**6}, ModelFileError, "outside the vocabulary"),
        ("gpt2", {"tokenizer.ggml.token_type": np.ones(3, np.int32)}, ModelFileError, "no type for each token"),
        ("llama", {"tokenizer.ggml.scores": np.ones(3, np.float32)}, ModelFileError, "no score for each token"),
        ("llama", {"tokenizer.ggml.scores": None}, ModelFileError, "no score for each token"),
    ],
)
def test_bad_metadata(
    gguf_metadata: Metadata, kind: str, change: dict[str, object], error: type[Exception], cause: str
) -> None:
    with pytest.raises(error, match=cause) as caught:
        tokenizer_from_gguf({**gguf_metadata[kind], **change})
    assert "\n" not in str(caught.value)


def test_lone_surrogate(byte_level: Tokenizer) -> None:
    with pytest.raises(UsageError, match="valid Unicode"):
        byte_level.encode("\ud800")


@quick
@given(text=texts)
def test_made_tokenizers_round_trip(byte_level: Tokenizer, sentence_piece: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text), skip_special=False) == text
    plain = text.replace("▁", "")
    assert sentence_piece.decode(sentence_piece.encode(plain, add_special=False), skip_special=False) == plain


@pytest.mark.model
@quick
@given(text=texts)
def test_real_tokenizer_round_trips(smollm2: Tokenizer, lost: set[int], text: str) -> None:
    text = "".join(character for character in text if not lost & set(character.encode()))
    assert smollm2.decode(smollm2.encode(text), skip_special=False) == text


@pytest.mark.model
def test_bytes_the_real_vocabulary_lacks(smollm2: Tokenizer, lost: set[int]) -> None:
    assert {byte for character, byte in BYTE_OF.items() if smollm2._inner.token_to_id(character) is None} == lost


@pytest.mark.model
@quick
@given(ids=st.lists(st.integers(0, 49151), max_size=60), skip=st.booleans())
def test_real_tokenizer_decodes_as_the_library(smollm2: Tokenizer, ids: list[int], skip: bool) -> None:
    assert smollm2.decode(ids, skip) == smollm2._inner.decode(ids, skip_special_tokens=skip)


@pytest.mark.model
def test_real_tokenizer(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert (smollm2.bos_token, smollm2.eos_token, smollm2.eos_ids) == ("<|im_start|>", "<|im_end|>", (2,))
    assert smollm2.encode("Hello 123 <|im_start|>x") == [19556, 216, 33, 34, 35, 216, 1, 104]
    assert smollm2.chat_template is not None and "im_start" in smollm2.chat_template
