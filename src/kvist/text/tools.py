"""Tool calls: how a model's chat template writes them, and what makes an answer be one.

::

    template ── tool_format ──► ToolFormat ──► ToolCallParser      text of an answer -> content and calls (`tool_calls`)
                                          └──► tool_grammar        what forces the model to call

Formats, as the models' own templates have them::

    hermes    <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>      one block a call (Qwen, Hermes)
    mistral   [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]
    phi       <|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|>
    granite   <|tool_call|>[{"name": ..., "arguments": {...}}]
    llama     {"name": ..., "parameters": {...}}                   the whole answer; several with ; (Llama 3.1 and on)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kvist.errors import UsageError
from kvist.structured import StructuredOutputs
from kvist.text.grammars import quoted, schema_rule

Tool = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How calls stand in an answer: `begin`, `gap`, JSON, `end` ("": to the end of the answer).

    arguments: the key they have beside "name". listed: the JSON is a list of calls. bare: an answer that begins with a
    brace is one as well, and `begin` is not what the model usually writes.
    """

    name: str
    begin: str
    gap: str
    end: str
    arguments: str = "arguments"
    listed: bool = False
    bare: bool = False


HERMES = ToolFormat("hermes", "<tool_call>", "\n", "</tool_call>")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", " ", "", listed=True)
PHI = ToolFormat("phi", "<|tool_call|>", "", "<|/tool_call|>", listed=True)
GRANITE = ToolFormat("granite", "<|tool_call|>", "", "", listed=True)
LLAMA = ToolFormat("llama", "<|python_tag|>", "", "", arguments="parameters", bare=True)

_SIGNS: tuple[tuple[ToolFormat, tuple[str, ...], tuple[str, ...]], ...] = (
    (MISTRAL, ("[TOOL_CALLS]",), ("[ARGS]", "[CALL_ID]")),  # newer ones write names and arguments apart
    (PHI, ("<|tool_call|>", "<|/tool_call|>"), ()),
    (GRANITE, ("<|tool_call|>",), ()),
    (HERMES, ("<tool_call>", "</tool_call>"), ("<function=", "<arg_key>")),  # which is not JSON
    (LLAMA, ('{"name": ', '"parameters": '), ("<tool_call>", "[TOOL_CALLS]")),
)
"""Formats with what their templates have in them, and what they have not. The first that fits is it."""


@lru_cache(maxsize=8)
def takes_tools(template: str) -> bool:
    """Whether a chat template does anything with tools. UsageError where it is broken."""
    from jinja2 import TemplateError
    from jinja2.meta import find_undeclared_variables

    from kvist.text.sandbox import ChatEnvironment

    try:
        return "tools" in find_undeclared_variables(ChatEnvironment().parse(template))
    except (TemplateError, RecursionError) as error:
        raise UsageError(
            f"the chat template is broken ({' '.join(str(error).split())[:200]}): use another one"
        ) from error


def tool_format(template: str | None) -> ToolFormat | None:
    """How a template that takes tools writes calls; None where it takes none, or in a way that is not known."""
    if template is None or not takes_tools(template):
        return None
    text = template.replace('\\"', '"')
    for made, signs, others in _SIGNS:
        if all(sign in text for sign in signs) and not any(other in text for other in others):
            return made
    return None


def tool_names(tools: Sequence[Tool]) -> list[str]:
    """The functions' names. UsageError for what is no list of {"type": "function", "function": {"name": ...}}."""
    names = []
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise UsageError(
                'each of the tools must be {"type": "function", "function": {"name": ..., "parameters": ...}}'
            )
        parameters = function.get("parameters") or {}
        if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
            raise UsageError(f"the parameters of tool {function['name']!r} must be a JSON schema of an object")
        names.append(function["name"])
    if len(set(names)) < len(names):
        raise UsageError("two tools have the same name: give each its own")
    return names


def tool_grammar(
    made: ToolFormat, tools: Sequence[Tool], choice: object, special_tokens: Mapping[str, int] | None = None
) -> StructuredOutputs | None:
    """What makes an answer keep to a tool_choice: None for "auto" and "none", which leave the model free.

    "required": one call or more; {"type": "function", "function": {"name": ...}}: one of that function. special_tokens:
    the tokenizer's; a marker that is one of them is asked for as that token. UsageError for any other choice.
    """
    names = tool_names(tools)
    if choice in ("auto", "none", None):
        return None
    if choice != "required":
        function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if name not in names:
            raise UsageError(
                f'tool_choice is {choice!r:.200}: give "none", "auto", "required", or '
                '{"type": "function", "function": {"name": ...}} with the name of one of the tools'
            )
        tools = [tools[names.index(name)]]
    if not tools:
        raise UsageError('tool_choice is "required" and there are no tools: give some')
    return StructuredOutputs(grammar=_lark(made, tools, choice == "required", special_tokens or {}))


def _lark(made: ToolFormat, tools: Sequence[Tool], several: bool, special: Mapping[str, int]) -> str:
    begin, end = (
        f" <[{special[marker]}]> " if marker in special else quoted(marker) if marker else ""
        for marker in (made.begin, made.end)
    )
    gap = quoted(made.gap) if made.gap else ""
    if made.listed:
        more = '(", " call)*' if several else ""
        rules = [f'start: {begin} {gap} "[" call {more} "]" {end}']
    elif made.bare:
        rules = ["start: call" + (' ("; " call)*' if several else "")]
    else:
        rules = ["start: block" + (' ("\\n" block)*' if several else ""), f"block: {begin} {gap} call {gap} {end}"]
    rules.append("call: " + " | ".join(f"tool_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        function = tool["function"]
        head = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "{made.arguments}": '
        schema = {"type": "object", **(function.get("parameters") or {})}
        rules.append(f"tool_{i}: {quoted(head)} {schema_rule(schema)} {quoted('}')}")
    return "\n".join(rules)
