"""What an answer must look like: a JSON schema, any JSON object, a regular expression, one of some texts, a grammar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from json import dumps, loads
from typing import Any

from kvist.errors import UsageError, unknown_name

MOST_CHOICES = 4096


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """Exactly one of these; names as in vLLM.

    json: a JSON schema, as an object or as JSON text (it is kept as text, with its keys in their order, in which the
    answer has them too). json_object: True for any JSON object. regex: of the whole answer, in the syntax of Rust's
    regex crate. choice: the answer is one of these texts. grammar: in llguidance's dialect of Lark, from `start`.
    """

    json: str | Mapping[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: tuple[str, ...] | list[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        names = [field.name for field in fields(self)]
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"structured_outputs has {' and '.join(given) or 'nothing'}: give exactly one of {', '.join(names)}"
            )
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.json_object is not None and self.json_object is not True:
            raise UsageError(f"json_object is {self.json_object!r}: give True, or leave it out")
        for name in ("regex", "grammar"):
            text = getattr(self, name)
            if text is not None and not isinstance(text, str):
                raise UsageError(f"{name} is a {type(text).__name__}: give text")
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{given[0]} is not valid Unicode (a lone surrogate?): give proper text") from error

    @property
    def kind(self) -> str:
        """The name of the one that was given."""
        return next(field.name for field in fields(self) if getattr(self, field.name) is not None)

    @property
    def text(self) -> str:
        """What was given, as text."""
        if self.json_object:
            return '{"type": "object"}'
        return dumps(self.choice, ensure_ascii=False) if self.choice else str(getattr(self, self.kind))


def structured_outputs(value: object) -> StructuredOutputs:
    """From a JSON object with one of the fields of `StructuredOutputs`."""
    if not isinstance(value, Mapping):
        raise UsageError(f"structured_outputs is a {type(value).__name__}: give an object")
    names = [field.name for field in fields(StructuredOutputs)]
    for name in value:
        if name not in names:
            raise unknown_name("field of structured_outputs", str(name), names)
    return StructuredOutputs(**value)


def _schema_text(schema: object) -> str:
    """A schema as JSON text."""
    try:
        if not isinstance(schema, str):
            return dumps(schema if isinstance(schema, dict) else dict(schema), allow_nan=False)  # type: ignore[call-overload]
        if not isinstance(loads(schema), (dict, bool)):
            raise UsageError("json is JSON text, but no schema: give an object")
    except UsageError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UsageError(f"json is no JSON schema ({cause}): give a JSON object") from error
    return schema


def _choices(choice: object) -> tuple[str, ...]:
    if not isinstance(choice, (tuple, list)) or not 0 < len(choice) <= MOST_CHOICES:
        raise UsageError(f"choice: give a list of 1 to {MOST_CHOICES} texts")
    if not all(isinstance(text, str) and text for text in choice):
        raise UsageError("choice has something that is no text, or an empty one: give texts")
    return tuple(choice)
