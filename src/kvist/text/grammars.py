"""`StructuredOutputs` as llguidance takes them, with what its own limits do not catch refused first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from kvist.errors import RequestError
from kvist.structured import StructuredOutputs

MOST_TEXT = 64 << 10  # bytes of a schema, a grammar, all choices
MOST_MULTIPLE = 10_000  # llguidance makes a state for each remainder, and takes their square in time
MOST_DEPTH = 100
MOST_TOGETHER = 64  # members of allOf, & in a grammar: patterns that must all be met take the cube of that in time

JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON is written in one line, as Python's `json.dumps` does: a small model never ends where any blank may follow."""


def grammar_text(wanted: StructuredOutputs, most: int = MOST_TEXT) -> str:
    """The grammar as llguidance's constructors take it. RequestError where it is too large or no JSON schema."""
    from llguidance import LLMatcher  # a library of 8 MB that only guided answers need

    kind, text = wanted.kind, wanted.text
    if (size := len(text.encode())) > most:
        raise RequestError(f"{kind} has {size:,} bytes, over {most:,}: give a smaller one")
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(quoted, json.loads(text))))
    if kind == "grammar":
        if (count := text.count("&")) > MOST_TOGETHER:
            raise RequestError(f"the grammar has {count} times &: give at most {MOST_TOGETHER}")
        for found in re.finditer(r"%json\s*", text):
            _check(_json_at(text, found.end()))
        return LLMatcher.grammar_from_lark(text)
    schema = json.loads(text)
    _check(schema)
    if not isinstance(schema, dict):
        text = json.dumps({"anyOf": [schema]})  # options go into an object
    try:
        return LLMatcher.grammar_from_json_schema(text, defaults=JSON_OPTIONS)  # type: ignore[arg-type]
    except ValueError as error:
        raise RequestError(f"the JSON schema is refused: {error}") from error


def quoted(text: str) -> str:
    """A string of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def schema_rule(schema: dict[str, Any]) -> str:
    """A JSON schema inside a Lark grammar."""
    return "%json " + json.dumps({**schema, "x-guidance": JSON_OPTIONS}, allow_nan=False)


def _json_at(text: str, start: int) -> object:
    """The JSON value that begins there; None where there is none, which llguidance says better."""
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None


def _check(schema: object) -> None:
    """Refuse what would take llguidance more time or memory than its limits say."""
    together = 0
    for key, value in _entries(schema):
        if key == "allOf" and isinstance(value, list):
            together += len(value)
        if key == "multipleOf" and isinstance(value, (int, float)) and not isinstance(value, bool):
            digits = Decimal(str(value)).normalize().as_tuple().digits
            if int("".join(map(str, digits))) > MOST_MULTIPLE:
                raise RequestError(f"multipleOf is {value}: give one of at most {MOST_MULTIPLE}, or leave it out")
    if together > MOST_TOGETHER:
        raise RequestError(f"allOf has {together} members in all: give at most {MOST_TOGETHER}")


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """Keys and values of all objects in a JSON value."""
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise RequestError(f"the JSON schema is nested more than {MOST_DEPTH} deep: give a flatter one")
        if isinstance(one, dict):
            yield from one.items()
            waiting += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            waiting += [(inner, depth + 1) for inner in one]
