"""What an answer must look like, as requests say it: `response_format`, `structured_outputs`, `tool_choice`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvist.outputs import TextChunk
from kvist.server.failures import ApiError
from kvist.structured import StructuredOutputs, structured_outputs
from kvist.text.tokenizer import Tokenizer
from kvist.text.tool_calls import ToolCall, ToolCallParser
from kvist.text.tools import Tool, ToolFormat, tool_format, tool_grammar, tool_names


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request. made: how the model's template writes calls (None: they stay text). single: one at most.

    grammar: what forces a call, where one is asked for.
    """

    tools: Sequence[Tool]
    names: frozenset[str]
    made: ToolFormat | None
    grammar: StructuredOutputs | None
    single: bool


class Reader:
    """One answer's content and calls, as its chunks come."""

    def __init__(self, use: ToolUse | None) -> None:
        self._parser = None if use is None or use.made is None else ToolCallParser(use.made, use.names)
        self._single = use is not None and use.single

    def feed(self, item: TextChunk) -> tuple[str, list[ToolCall]]:
        """The content and the calls that became certain with a chunk."""
        if self._parser is None:
            return item.text, []
        text, calls = self._parser.feed(item.text)
        if item.finish_reason is not None:
            rest, late = self._parser.end()
            text, calls = text + rest, [*calls, *late]
        return text, [call for call in calls if not (self._single and call.index)]


def tool_use(
    tokenizer: Tokenizer, tools: Sequence[Tool] | None, choice: Mapping[str, Any] | str | None, parallel: bool | None
) -> ToolUse | None:
    """The tools that the model is told of, None where there are none. UsageError for what is no tool, or no choice."""
    if not tools or choice == "none":
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice asks for a call and there are no tools: give some", "tool_choice")
        return None
    names, made, grammar = tool_names(tools), tool_format(tokenizer.chat_template), None
    if choice not in (None, "auto"):
        if made is None:
            raise ApiError(
                400, "this model's chat template declares no format of tool calls: none can be forced", "tool_choice"
            )
        grammar = tool_grammar(made, tools, choice, tokenizer.special_tokens)
    return ToolUse(tools, frozenset(names), made, grammar, parallel is False)


def the_one(forms: Mapping[str, StructuredOutputs | None]) -> StructuredOutputs | None:
    """The one form that is asked for, by its field, if any is."""
    given = [(name, one) for name, one in forms.items() if one is not None]
    if len(given) > 1:
        raise ApiError(400, f"{given[0][0]} and {given[1][0]} both say what the answer is: give one", given[1][0])
    return given[0][1] if given else None


def from_fields(given: dict[str, Any] | None) -> StructuredOutputs | None:
    """vLLM's `structured_outputs`: an object with one of its fields."""
    return None if given is None else structured_outputs(given)


def from_response_format(given: dict[str, Any] | None) -> StructuredOutputs | None:
    """OpenAI's `response_format`, and `text.format` of responses, whose schema stands one level up."""
    kind = "text" if given is None else given.get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputs(json_object=True)
    inner = given.get("json_schema", given) if kind == "json_schema" else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        known = '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": {...}}}'
        raise ApiError(400, f"response_format is one of {known}", "response_format")
    return StructuredOutputs(json=schema)
