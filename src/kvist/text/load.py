"""The tokenizer that comes with a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvist.text.gguf_tokenizer import tokenizer_from_gguf
from kvist.text.hf_tokenizer import tokenizer_from_folder
from kvist.text.tokenizer import Tokenizer


def load_tokenizer(path: Path, metadata: Mapping[str, object] | None) -> Tokenizer:
    """Of a GGUF file from its metadata, of a folder (or a file in it) from the folder."""
    if metadata is not None:
        return tokenizer_from_gguf(dict(metadata))
    return tokenizer_from_folder(path if path.is_dir() else path.parent)
