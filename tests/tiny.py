"""Tiny random models (see `tiny_models`) as files: the same weights as a Hugging Face folder and as a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tiny_gguf import gguf_tensors, write_gguf
from tiny_models import LLAMA3, MODELS, ODD, Tiny, config, digest, tensors
from tiny_tokens import TEMPLATE, tokens
from tiny_weights import Tensors

__all__ = [
    "LLAMA3", "MODELS", "ODD", "TEMPLATE", "Tensors", "Tiny", "config", "digest", "gguf_tensors", "tensors", "tokenizer",
    "write_folder", "write_gguf",
]  # fmt: skip

# --- a Hugging Face folder
# ----------------------------------------------------------------------------------------------


def tokenizer(tiny: Tiny) -> Tokenizer:
    """The tokenizer that tokenizer.json holds."""
    vocab, merges = tokens(tiny)
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in vocab[:2]])
    return made


def write_folder(tiny: Tiny, folder: Path, weights: Tensors | None = None, **changes: Any) -> Path:
    """config.json (with `changes`), model.safetensors, tokenizer.json, tokenizer_config.json; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config(tiny), **changes}, indent=1))
    save_file(tensors(tiny) if weights is None else weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer(tiny).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|end|>",
        "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return folder
