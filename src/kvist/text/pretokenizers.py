"""How byte-level vocabularies cut a text into words before merging: GGUF names the way, this table has the rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

from kvist.errors import UnsupportedModelError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
GPT4O = (
    rf"{_CASED}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_CASED}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
TEKKEN = rf"{_CASED}{_UPPER}*{_LOWER}+|{_CASED}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting. `pattern` None means GPT-2's own rule; `digits` cuts every digit off first."""

    pattern: str | None = None
    digits: bool = False
    whole_words: bool = False  # a word that is a token is not merged from its parts
    add_bos: bool = False  # where the file does not say
    nfc: bool = False  # Unicode is composed first

    def build(self) -> Any:
        """The `tokenizers` pre-tokenizer."""
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None)
        if self.digits:
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if self.pattern is None:
            return byte_level
        split = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated")
        return pre_tokenizers.Sequence([split, byte_level])


_GPT2 = PreTokenizer()
_DIGITS = PreTokenizer(digits=True)
_LLAMA3 = PreTokenizer(LLAMA3, whole_words=True, add_bos=True)
_QWEN2 = PreTokenizer(QWEN2, nfc=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _GPT2,  # what files from before the key existed have
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "codeshell": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": PreTokenizer(LLAMA3),
    "smaug-bpe": PreTokenizer(LLAMA3),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": PreTokenizer(QWEN2),
    "gpt-4o": PreTokenizer(GPT4O),
    "tekken": PreTokenizer(TEKKEN, whole_words=True, add_bos=True),
}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The way of cutting called `name` in ``tokenizer.ggml.pre``. Raises UnsupportedModelError, listing the known."""
    found = PRE_TOKENIZERS.get(name)
    if found is None:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UnsupportedModelError(f"the tokenizer's pre-tokenizer {name[:80]!r} is not known: kvist has {known}")
    return found
