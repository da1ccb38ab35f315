"""The tokenizer of a Hugging Face folder: tokenizer.json, and what the files around it say of special tokens."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from kvist.errors import ModelFileError, UnsupportedModelError
from kvist.jsonfile import MAX_BYTES, read_json_object
from kvist.text.tokenizer import Tokenizer

MAX_TEMPLATE_BYTES = 1 << 20


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """Read tokenizer.json, tokenizer_config.json, generation_config.json, config.json and chat_template.jinja.

    Only the first must exist. What a text gets added (a beginning token) is what tokenizer.json's post-processor says.
    Raises ModelFileError where a file is missing or damaged, UnsupportedModelError for a tokenizer of another kind.
    """
    inner = _read_tokenizer(folder)
    config = _optional(folder / "tokenizer_config.json")
    generation = _optional(folder / "generation_config.json")
    model = _optional(folder / "config.json")
    bos = _token_ids(inner, config.get("bos_token")) or _ids(generation, "bos_token_id") or _ids(model, "bos_token_id")
    eos = [
        *_token_ids(inner, config.get("eos_token")),
        *_ids(generation, "eos_token_id"),
        *([] if "eos_token_id" in generation else _ids(model, "eos_token_id")),
    ]
    return Tokenizer(
        inner,
        bos_id=bos[0] if bos else None,
        eos_ids=tuple(dict.fromkeys(eos)),
        chat_template=_chat_template(folder, config),
    )


def _read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        if (folder / "tokenizer.model").is_file() or (folder / "vocab.json").is_file():
            raise UnsupportedModelError(
                f"{folder} has only an old tokenizer: make tokenizer.json once with transformers' "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        raise ModelFileError(f"{path} is missing: pull the model again, or copy tokenizer.json beside the weights")
    if path.stat().st_size > MAX_BYTES:
        raise ModelFileError(f"{path} has more than {MAX_BYTES:,} bytes: it is no tokenizer, get it again")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        cause = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path} is damaged or too new ({cause}): get it again, or update `tokenizers`") from error


def _optional(path: Path) -> dict[str, object]:
    return read_json_object(path) if path.is_file() else {}


def _token_ids(inner: tokenizers.Tokenizer, token: object) -> list[int]:
    """The id of a token written as a string or as an AddedToken object, as a list of one; else empty."""
    text = token.get("content") if isinstance(token, dict) else token
    found = inner.token_to_id(text) if isinstance(text, str) else None
    return [] if found is None else [found]


def _ids(config: dict[str, object], key: str) -> list[int]:
    """The ids under `key`: a number, a list of numbers, or nothing."""
    value = config.get(key)
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool) and i >= 0]


def _chat_template(folder: Path, config: dict[str, object]) -> str | None:
    """chat_template.jinja, else the template in tokenizer_config.json (of several: the one named "default")."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ModelFileError(f"{path} has over {MAX_TEMPLATE_BYTES:,} bytes: it is no chat template, get it again")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{path} is not UTF-8: get it again") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
