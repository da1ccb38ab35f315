"""The tokenizer inside a GGUF file: its vocabulary, merges or scores, and token types, as metadata."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Inner

from kvist.errors import ModelFileError, UnsupportedModelError
from kvist.text.pretokenizers import pre_tokenizer
from kvist.text.tokenizer import Tokenizer

CONTROL, USER_DEFINED = 3, 4
"""Token types that are matched in a text as a whole; a control token is also left out of decoded text."""

END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
Metadata = Mapping[str, object]


def tokenizer_from_gguf(metadata: Metadata) -> Tokenizer:
    """Build the tokenizer that a GGUF file's metadata describe: byte-level ("gpt2") or SentencePiece-like ("llama").

    Raises ModelFileError where something is missing or contradicts, UnsupportedModelError for another kind (known ones
    are listed).
    """
    kind = _text(metadata, "model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModelError(f"the tokenizer model {kind[:80]!r} is not supported: kvist has gpt2 and llama")
    tokens = _strings(metadata, "tokens")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or not tokens:
        raise ModelFileError("the file's vocabulary is empty or has a token twice: get the file again")
    inner, add_bos = _byte_level(metadata, vocab) if kind == "gpt2" else _sentence_piece(metadata, tokens, vocab)
    _add_special(inner, metadata, tokens)
    bos = _id(metadata, "bos_token_id", tokens)
    ends = [i for i in (_id(metadata, key, tokens) for key in END_KEYS) if i is not None]
    first = bos if metadata.get("tokenizer.ggml.add_bos_token", add_bos) else None
    last = ends[0] if ends and metadata.get("tokenizer.ggml.add_eos_token", False) else None
    _add_around(inner, first, last)
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        inner,
        bos_id=bos,
        eos_ids=tuple(dict.fromkeys(ends)),
        chat_template=template if isinstance(template, str) else None,
    )


def _byte_level(metadata: Metadata, vocab: dict[str, int]) -> tuple[Inner, bool]:
    """GPT-2's kind: bytes as characters, merges listed in order. Also whether a beginning token is usual."""
    cut = pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "default")))
    merges: list[tuple[str, str]] = []
    for merge in _strings(metadata, "merges"):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    try:
        inner = Inner(models.BPE(vocab, merges, ignore_merges=cut.whole_words))
    except Exception as error:  # the library raises plain Exception for a merge whose parts are no tokens
        raise ModelFileError(f"the file's merges do not fit its vocabulary ({error}): get the file again") from error
    if cut.nfc:
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = cut.build()
    inner.decoder = decoders.ByteLevel()
    return inner, cut.add_bos


def _sentence_piece(metadata: Metadata, tokens: list[str], vocab: dict[str, int]) -> tuple[Inner, bool]:
    """Llama's kind: spaces as ``▁``, bytes as ``<0x0A>``, merges in the order of their result's score."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
        raise ModelFileError("the file's vocabulary has no score for each token: get the file again")
    unknown = _id(metadata, "unknown_token_id", tokens)
    inner = Inner(
        models.BPE(
            vocab,
            _merges_by_score(tokens, vocab, scores.tolist()),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return inner, True


def _merges_by_score(tokens: list[str], vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third; the best result first, then by the parts' ids."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, min(len(token), 64)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-score, vocab[left], vocab[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_special(inner: Inner, metadata: Metadata, tokens: list[str]) -> None:
    """Make control and user-defined tokens match as a whole, ahead of all merging."""
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise ModelFileError("the file's vocabulary has no type for each token: get the file again")
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        chosen = [tokens[int(i)] for i in np.flatnonzero(types == kind)]
        inner.add_tokens([AddedToken(token, special=special, normalized=False) for token in chosen if token])


def _add_around(inner: Inner, first: int | None, last: int | None) -> None:
    """Let `encode` put a beginning and an end token around a text."""
    named = [(name, i) for name, i in (("first", first), ("last", last)) if i is not None]
    if named:
        parts = [*(["first"] if first is not None else []), "$A", *(["last"] if last is not None else [])]
        inner.post_processor = processors.TemplateProcessing(single=parts, special_tokens=named)


def _text(metadata: Metadata, key: str) -> str:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, str):
        raise ModelFileError(f"the file has no tokenizer.ggml.{key}: it carries no tokenizer, get a complete GGUF file")
    return value


def _strings(metadata: Metadata, key: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelFileError(f"the file has no tokenizer.ggml.{key}: it carries no tokenizer, get a complete GGUF file")
    return value


def _id(metadata: Metadata, key: str, tokens: list[str]) -> int | None:
    """The token id under `key`; None where it is absent. Raises ModelFileError where it is outside the vocabulary."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < len(tokens):
        raise ModelFileError(f"tokenizer.ggml.{key} is {value!r}, outside the vocabulary: get the file again")
    return value
