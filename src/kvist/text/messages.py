"""Messages as clients send them -> as chat templates want them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvist.errors import UsageError

Message = Mapping[str, object]


def for_template(messages: Sequence[Message]) -> list[dict[str, object]]:
    """The same messages with plain content, and arguments of tool calls as objects.

    Content that is a list of {"type": "text", "text": ...} becomes its texts, a line each; None becomes "". tool_calls
    that are None or empty are left out. UsageError for parts of other types, and for arguments that are no object.
    """
    made = []
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise UsageError('each message must be an object with "role" and "content"')
        one = dict(message)
        if "content" in one or one.get("tool_calls"):
            one["content"] = _content(one.get("content"))
        calls = one.pop("tool_calls", None)
        if calls:
            one["tool_calls"] = _calls(calls)
        made.append(one)
    return made


def _content(content: object) -> object:
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UsageError(f'content has a part of type {kind!r:.40}: only {{"type": "text", "text": ...}} is known')
        texts.append(part["text"])
    return "\n".join(texts)


def _calls(calls: object) -> list[dict[str, Any]]:
    wrong = 'each of tool_calls must be {"type": "function", "function": {"name": ..., "arguments": ...}}'
    if not isinstance(calls, list):
        raise UsageError(wrong)
    made = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UsageError(wrong)
        made.append({**call, "function": {**function, "arguments": _arguments(function)}})
    return made


def _arguments(function: Mapping[str, object]) -> object:
    """An object, also where it is its JSON text."""
    given = function.get("arguments")
    try:
        arguments = json.loads(given or "{}") if isinstance(given, str) else {} if given is None else given
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, Mapping):
        raise UsageError(f"the arguments of the call of {function['name']!r} are no JSON object: give one, or its text")
    return arguments
