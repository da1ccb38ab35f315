"""The tiny models' vocabulary and chat template."""

from __future__ import annotations

from typing import Any

from tokenizers import pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tokens(tiny: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """A byte-level vocabulary (two special tokens, 256 bytes, then merges) and its merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = ["<|start|>", "<|end|>", *letters]
    pairs = [(left, right) for left in "Ġtheaoinsr" for right in "theaoinsr" if left != right]
    merges = pairs[: tiny.vocab - len(vocab)]
    return vocab + [left + right for left, right in merges], merges
