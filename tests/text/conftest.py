"""Tokenizers for the text tests: the real model's, and tiny made ones of both kinds."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kvist.models.aliases import ALIASES
from kvist.models.weights import GgufFile
from kvist.paths import models_dir
from kvist.text import Tokenizer, tokenizer_from_gguf
from kvist.text.pieces import BYTE_OF


@cache
def real_metadata() -> dict[str, object] | None:
    path: Path = models_dir() / "smollm2" / ALIASES["smollm2"].file
    return GgufFile(path).metadata if path.is_file() else None


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
    metadata = real_metadata()
    if metadata is None:
        pytest.skip("needs the default model: run `kvist pull smollm2`")
    return tokenizer_from_gguf(metadata)


def lost_bytes() -> set[int]:
    """Bytes that the real model's vocabulary has no token for: six control characters and planes 4 to 11 of Unicode."""
    return {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}


@pytest.fixture(scope="session")
def lost() -> set[int]:
    return lost_bytes()


def byte_level_metadata() -> dict[str, object]:
    """All bytes, two merges, two control tokens, one user-defined token."""
    tokens = ["<|end|>", "<|start|>", *BYTE_OF, "th", "the", "<tool é>"]
    types = [3, 3] + [1] * 258 + [4]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }


def sentence_piece_metadata() -> dict[str, object]:
    """Llama's kind: unknown, two control tokens, all bytes, a few pieces with scores."""
    pieces = {
        "▁": -9.0,
        "h": -9.0,
        "e": -9.0,
        "l": -9.0,
        "o": -9.0,
        "he": -1.0,
        "ll": -2.0,
        "hell": -3.0,
        "▁hell": -4.0,
    }
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *pieces]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([0.0] * 259 + [*pieces.values()], np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return tokenizer_from_gguf(byte_level_metadata())


@pytest.fixture(scope="session")
def sentence_piece() -> Tokenizer:
    return tokenizer_from_gguf(sentence_piece_metadata())


@pytest.fixture
def gguf_metadata() -> dict[str, dict[str, object]]:
    return {"gpt2": byte_level_metadata(), "llama": sentence_piece_metadata()}
