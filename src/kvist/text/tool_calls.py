"""The text of an answer, as it comes, apart into content and tool calls.

A call is given once its JSON is complete; what turns out to be none stays content. So nothing is taken back, and how
the text was cut into pieces makes no difference.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from kvist.text.tools import ToolFormat


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call: its number in the answer, the function's name, its arguments as a JSON object's text."""

    index: int
    name: str
    arguments: str


Delta = tuple[str, list[ToolCall]]


class ToolCallParser:
    """Reads one answer; its special tokens must be in the text (`skip_special_tokens=False`).

    names: of the tools there are; a call of another one is content (None: any). Content that may be the beginning of a
    marker is held back, with the blanks before it, and blanks around calls are dropped.
    """

    def __init__(self, made: ToolFormat, names: Collection[str] | None = None) -> None:
        self._format, self._names = made, names
        self._text = ""  # not given yet; while a call is open it begins with the marker
        self._open: str | None = None  # the marker of the call that is open, "" of a bare one
        self._blanks = ""  # before that marker
        self._looked = 0  # characters of the text that no end marker begins in
        self._bare = made.bare  # whether a brace would begin a call: only at the very beginning
        self._calls = 0
        self._after_call = False

    def feed(self, text: str) -> Delta:
        """Go on with some text; the content and the calls that became certain."""
        self._text += text
        return self._read(False)

    def end(self) -> Delta:
        """The answer is over: what is left."""
        return self._read(True)

    def _read(self, last: bool) -> Delta:
        content: list[str] = []
        calls: list[ToolCall] = []
        while (self._open is not None or self._begin(content, last)) and self._close(content, calls, last):
            pass
        return "".join(content), calls

    def _begin(self, content: list[str], last: bool) -> bool:
        """Look for a marker, and give the content before it. Whether a call is open now."""
        text, marker = self._text, self._format.begin
        start, opened = text.find(marker), marker
        if self._bare and (first := len(text) - len(text.lstrip())) < len(text):
            self._bare = False
            if text[first] == "{":
                start, opened = first, ""
        if start < 0:
            keep = 0 if last else _held(text, marker)
            self._say(content, text[: len(text) - keep])
            self._text = text[len(text) - keep :]
            return False
        before = text[:start].rstrip()
        self._say(content, before)
        self._blanks, self._text, self._open = text[len(before) : start], text[start:], opened
        self._looked = len(opened)
        return True

    def _close(self, content: list[str], calls: list[ToolCall], last: bool) -> bool:
        """Look for the end of the call that is open. Whether there is more to read."""
        opened, text, marker = self._open or "", self._text, self._format.end
        at = text.find(marker, self._looked) if marker else -1
        if at < 0 and not last:
            self._looked = max(self._looked, len(text) - len(marker) + 1)
            return False
        found, in_string = self._parse(text[len(opened) : at] if at >= 0 else text[len(opened) :])
        if in_string and at >= 0:  # the marker is part of an argument
            self._looked = at + len(marker)
            return True
        self._open = None
        if found:
            self._text, self._after_call = text[at + len(marker) :] if at >= 0 else "", True
            calls += [ToolCall(self._calls + i, name, arguments) for i, (name, arguments) in enumerate(found)]
            self._calls += len(found)
        else:  # go on behind the beginning: a call may stand in there
            self._say(content, self._blanks + opened)
            self._text = text[len(opened) :]
        return True

    def _say(self, content: list[str], text: str) -> None:
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        content.append(text)

    def _parse(self, body: str) -> tuple[list[tuple[str, str]], bool]:
        """Names and arguments of the calls in it, none if it is malformed; whether it ends within a string."""
        values: list[object] = []
        try:
            decoder, start = json.JSONDecoder(parse_constant=_refuse), len(body) - len(body.lstrip())
            while start < len(body):
                value, start = decoder.raw_decode(body, start)
                values.append(value)
                rest = body[start:].lstrip()
                if rest and self._format.bare and rest[0] == ";":
                    rest = rest[1:].lstrip()
                elif rest:
                    return [], False
                start = len(body) - len(rest)
            if self._format.listed:
                values = values[0] if len(values) == 1 and isinstance(values[0], list) else []
            elif not self._format.bare and len(values) != 1:
                return [], False
            return [self._call(value) for value in values], False
        except json.JSONDecodeError as error:
            return [], error.msg.startswith("Unterminated string")
        except (ValueError, RecursionError):
            return [], False

    def _call(self, value: object) -> tuple[str, str]:
        """A call's name and arguments; ValueError where it is none."""
        name = value.get("name") if isinstance(value, dict) else None
        arguments = value.get(self._format.arguments) if isinstance(value, dict) else None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError("no call")
        if self._names is not None and name not in self._names:
            raise ValueError("an unknown tool")
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + text).encode()  # a lone surrogate is a ValueError
        return name, text


def _held(text: str, marker: str) -> int:
    """Characters at the end of a text that may belong to a marker: its beginning, and blanks before that."""
    most = min(len(marker) - 1, len(text))
    begun = next(count for count in range(most, -1, -1) if text.endswith(marker[:count]))
    return len(text) - len(text[: len(text) - begun].rstrip())


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")
