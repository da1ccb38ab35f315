"""Read one JSON object from a file of unknown origin, with a size limit and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

from kvist.errors import ModelFileError

MAX_BYTES = 256 << 20  # tokenizer.json of a 260k-token vocabulary is about 35 MB


def parse_json_object(text: str | bytes, where: str, *, unique: bool = False) -> dict[str, object]:
    """The JSON object in `text`; `where` names it in errors. With `unique`, a repeated key is an error.

    Raises ModelFileError where the text is not JSON, not UTF-8, nested too deeply or not an object.
    """

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(items)
        if unique and len(found) != len(items):
            raise ModelFileError(f"{where} names something twice: the file is damaged, get it again")
        return found

    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} is not valid JSON ({error}): the file is damaged, get it again") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{where} holds a JSON {type(value).__name__}, not an object: get the file again")
    return value


def read_json_object(path: Path, *, unique: bool = False) -> dict[str, object]:
    """The JSON object in the file at `path`, at most 256 MiB.

    Raises ModelFileError where the file is missing, unreadable, too large or not a JSON object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelFileError(f"{path} has {size:,} bytes, more than any JSON file of a model: get it again")
        text = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error
    return parse_json_object(text, str(path), unique=unique)
