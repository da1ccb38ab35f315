"""What an answer must look like, as requests say it: `response_format`, `structured_outputs`, `tool_choice`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvist.server.failures import ApiError
from kvist.server.schema import ChatRequest
from kvist.structured import StructuredOutputs, structured_outputs
from kvist.text.tokenizer import Tokenizer
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


def tool_use(tokenizer: Tokenizer, asked: ChatRequest) -> ToolUse | None:
    """The tools that the model is told of, None where there are none. UsageError for what is no tool, or no choice."""
    if not asked.tools or asked.tool_choice == "none":
        if asked.tool_choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice asks for a call and there are no tools: give some", "tool_choice")
        return None
    names, made = tool_names(asked.tools), tool_format(tokenizer.chat_template)
    single, choice, grammar = asked.parallel_tool_calls is False, asked.tool_choice or "auto", None
    if choice != "auto":
        if made is None:
            raise ApiError(
                400, "this model's chat template declares no format of tool calls: none can be forced", "tool_choice"
            )
        grammar = tool_grammar(made, asked.tools, choice, tokenizer.special_tokens)
    return ToolUse(asked.tools, frozenset(names), made, grammar, single)


def structured(asked: ChatRequest, use: ToolUse | None) -> StructuredOutputs | None:
    """The one form that is asked for, if any is."""
    found = [
        ("tool_choice", None if use is None else use.grammar),
        ("response_format", from_response_format(asked.response_format)),
        ("structured_outputs", from_fields(asked.structured_outputs)),
    ]
    given = [(name, one) for name, one in found if one is not None]
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
