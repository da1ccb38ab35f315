"""Tool calls: formats found in templates of the usual shapes, answers taken apart however they are cut, grammars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.errors import RequestError, UsageError
from kvist.text import Tokenizer, render
from kvist.text.guided import Guides
from kvist.text.tool_calls import ToolCall, ToolCallParser
from kvist.text.tools import (
    GRANITE,
    HERMES,
    LLAMA,
    MISTRAL,
    PHI,
    ToolFormat,
    takes_tools,
    tool_format,
    tool_grammar,
    tool_names,
)

QWEN = r"""
{%- if tools %}{{- '<|im_start|>system\n# Tools\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
{%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}{%- endif %}
{%- for message in messages %}
{%- if message.role == "assistant" %}{{- '<|im_start|>assistant' }}{%- if message.content %}{{- '\n' + message.content }}{%- endif %}
{%- for tool_call in message.tool_calls %}{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\n<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif message.role == "tool" %}{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
LLAMA_3 = r"""{{- bos_token }}{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if tools is not none %}{{- 'Given the following functions, please respond with a JSON for a function call.\n\n' }}
{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. Do not use variables.\n\n' }}
{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}{%- endif %}
{%- for message in messages %}{%- if 'tool_calls' in message %}{%- set tool_call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}{{- "<|eot_id|>" }}
{%- else %}{{- message.role + ': ' + message.content }}{%- endif %}{%- endfor %}"""
MISTRAL_7B = r"""{{- bos_token }}{%- for message in messages %}{%- if message.tool_calls is defined and message.tool_calls is not none %}{{- "[TOOL_CALLS] [" }}
{%- for tool_call in message.tool_calls %}{{- tool_call.function | tojson }}{%- if not loop.last %}{{- ", " }}{%- endif %}{%- endfor %}{{- "]" + eos_token }}
{%- else %}{%- if tools is not none %}{{- "[AVAILABLE_TOOLS] " }}{{- tools | tojson }}{{- "[/AVAILABLE_TOOLS]" }}{%- endif %}{{- "[INST] " + message.content + "[/INST]" }}{%- endif %}{%- endfor %}"""
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


TOOLS = [tool("weather", city={"type": "string", "maxLength": 20}), tool("add", a={"type": "integer"}, b={"$ref": "#/$defs/n"})]
TOOLS[1]["function"]["parameters"]["$defs"] = {"n": {"type": "integer"}}
ALL = [HERMES, MISTRAL, PHI, GRANITE, LLAMA]


# --- formats


@pytest.mark.parametrize(
    ("template", "made"),
    [
        (QWEN, HERMES), (LLAMA_3, LLAMA), (MISTRAL_7B, MISTRAL), (CHATML, None), (CHATML + "{{ tools }}", None), (None, None),
        ("{{ tools }}<|tool_call|>[", GRANITE), ("{{ tools }}<|tool_call|>[<|/tool_call|>", PHI),
        (QWEN + "<tool_call>\n<function=example>", None), (MISTRAL_7B + "[ARGS]", None),
        (CHATML + "<tool_call></tool_call>", None),  # the text alone is no declaration
        ("{% set tools = [] %}{{ tools }}<tool_call></tool_call>", None),
    ],
)  # fmt: skip
def test_formats_are_found_in_templates(template: str | None, made: ToolFormat | None) -> None:
    assert tool_format(template) is made


def test_templates_that_take_tools() -> None:
    for template in (QWEN, LLAMA_3, MISTRAL_7B, "{{ tools }}", "{% for tool in tools %}x{% endfor %}"):
        assert takes_tools(template)
    for template in (CHATML, "tools", "{{ messages[0].tools }}", "{% set tools = [] %}{{ tools }}"):
        assert not takes_tools(template)


def test_a_broken_template_says_so() -> None:
    with pytest.raises(UsageError, match="broken"):
        takes_tools("{% if %}")


def test_messages_with_tools_render_as_the_model_knows_them() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "å"}'}}
    messages: list[dict[str, object]] = [
        {"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "å?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
        {"role": "assistant", "content": "3.", "tool_calls": None},
    ]
    text = render(QWEN, messages, bos_token="<s>", eos_token="</s>", tools=TOOLS)
    assert '\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "å"}}\n</tool_call><|im_end|>\n' in text
    assert "<|im_start|>user\n1 + \nå?<|im_end|>\n" in text
    assert "<tool_response>\n3\n</tool_response>" in text and "<|im_start|>assistant\n3.<|im_end|>" in text
    assert '{"type": "function", "function": {"name": "weather"' in text
    assert messages[1]["content"] is None and call["function"]["arguments"] == '{"a": 1, "b": "å"}', "they stay as they are"
    text = render(LLAMA_3, messages, bos_token="<s>", eos_token="</s>", tools=TOOLS)
    assert '{"name": "add", "parameters": {"a": 1, "b": "å"}}<|eot_id|>' in text
    assert "assistant: 3." in text, "tool_calls that are null are none"
    text = render(MISTRAL_7B, messages, bos_token="<s>", eos_token="</s>", tools=TOOLS)
    assert '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": "å"}}]</s>' in text
    given = {"role": "assistant", "tool_calls": [{"function": {"name": "now"}}, {"function": {"name": "add", "arguments": {"a": 2}}}]}
    text = render(QWEN, [given], bos_token="<s>", eos_token="</s>")
    assert '{"name": "now", "arguments": {}}' in text and '"arguments": {"a": 2}}' in text


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "part of type 'image_url'"),
        ({"role": "user", "content": ["x"]}, "part of type None"),
        ({"role": "user", "content": [{"type": "text"}]}, "part of type 'text'"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "each of tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "each of tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "[1]"}}]}, "call of 'add' are no JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "{"}}]}, "call of 'add' are no JSON"),
    ],
)
def test_messages_that_no_template_can_take_are_refused(message: dict[str, object], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        render(QWEN, [message], bos_token="", eos_token="")


def test_tools_for_a_template_without_are_refused() -> None:
    with pytest.raises(UsageError, match="takes no tools"):
        render(CHATML, [{"role": "user", "content": "x"}], bos_token="", eos_token="", tools=TOOLS)


# --- answers


def parsed(made: ToolFormat, pieces: Sequence[str], names: Sequence[str] | None = None) -> tuple[str, list[ToolCall]]:
    parser = ToolCallParser(made, names)
    deltas = [*map(parser.feed, pieces), parser.end()]
    return "".join(content for content, _ in deltas), [call for _, calls in deltas for call in calls]


ADD = ToolCall(0, "add", '{"a": 1}')
H = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
TRICKY = '<tool_call>{"name": "add", "arguments": {"a": "</tool_call> {"}}</tool_call>'
CASES: list[tuple[ToolFormat, str, str, list[ToolCall]]] = [
    (HERMES, "Hello <b> there.", "Hello <b> there.", []),
    (HERMES, H, "", [ADD]),
    (HERMES, f"Let me see. \n\n{H}\n", "Let me see.", [ADD]),
    (HERMES, f"{H}\n{H}\n\n", "", [ADD, ToolCall(1, "add", '{"a": 1}')]),
    (HERMES, f"{H} Done.\n", "Done.\n", [ADD]),
    (HERMES, TRICKY, "", [ToolCall(0, "add", '{"a": "</tool_call> {"}')]),
    (HERMES, '<tool_call>\n{"name": "add", "arguments": {"a": 1}}', "", [ADD]),  # it ended without the marker
    (HERMES, "a <tool_call>\n{oops}\n</tool_call> b", "a <tool_call>\n{oops}\n</tool_call> b", []),
    (HERMES, f"<tool_call>no {H}", "<tool_call>no", [ADD]),
    (HERMES, '<tool_call>{"name": "x</tool_call>', '<tool_call>{"name": "x</tool_call>', []),
    (HERMES, f'<tool_call>{{"name": "x</tool_call>{H}', '<tool_call>{"name": "x</tool_call>', [ADD]),
    (HERMES, "x <tool_cal", "x <tool_cal", []),
    (HERMES, "x  ", "x  ", []),
    (HERMES, '<tool_call>{"name": "add"}</tool_call>', '<tool_call>{"name": "add"}</tool_call>', []),
    (HERMES, '<tool_call>[{"name": "add", "arguments": {}}]</tool_call>', '<tool_call>[{"name": "add", "arguments": {}}]</tool_call>', []),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>', '<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": "\\ud800"}}</tool_call>', '<tool_call>{"name": "add", "arguments": {"a": "\\ud800"}}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "add", "arguments": {}} {}</tool_call>', '<tool_call>{"name": "add", "arguments": {}} {}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', []),
    (HERMES, "<tool_call>" + "[" * 5000 + "</tool_call>", "<tool_call>" + "[" * 5000 + "</tool_call>", []),
    (MISTRAL, '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, {"name": "weather", "arguments": {"city": "Malmö"}, "id": "x"}]', "", [ADD, ToolCall(1, "weather", '{"city": "Malmö"}')]),
    (MISTRAL, "Yes [TOOL_CALLS] [oops]", "Yes [TOOL_CALLS] [oops]", []),
    (MISTRAL, "[TOOL_CALLS] []", "[TOOL_CALLS] []", []),
    (MISTRAL, '[TOOL_CALLS] {"name": "add", "arguments": {"a": 1}}', '[TOOL_CALLS] {"name": "add", "arguments": {"a": 1}}', []),
    (PHI, 'So: <|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|>', "So:", [ADD]),
    (GRANITE, '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}]\n', "", [ADD]),
    (LLAMA, '{"name": "add", "parameters": {"a": 1}}', "", [ADD]),
    (LLAMA, ' \n{"name": "add", "parameters": {"a": 1}}; {"name": "add", "parameters": {}}\n', "", [ADD, ToolCall(1, "add", "{}")]),
    (LLAMA, '<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", [ADD]),
    (LLAMA, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    (LLAMA, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA, '{not json} <|python_tag|>{"name": "add", "parameters": {"a": 1}}', "{not json}", [ADD]),
    (LLAMA, 'It is {"name": "add", "parameters": {"a": 1}}', 'It is {"name": "add", "parameters": {"a": 1}}', []),
    (LLAMA, "", "", []),
    (LLAMA, "  ", "  ", []),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CASES)))
def test_an_answer_is_taken_apart_whole_and_by_characters(case: int) -> None:
    made, text, content, calls = CASES[case]
    assert parsed(made, [text], ["add", "weather"]) == (content, calls)
    assert parsed(made, list(text), ["add", "weather"]) == (content, calls)


PARTS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|tool_call|>", "<|/tool_call|>", "<|python_tag|>", "{", "}", "[", "]", ";", '"', "\\", " ", "\n", "x", "<", "<tool",
         '{"name": "add", "arguments": {"a": 1}}', '{"name": "add", "parameters": {"a": 1}}', ' [{"name": "add", "arguments": {}}]', '{"name": "add", "arguments": {"a": "</tool_call>"}}']  # fmt: skip


@settings(max_examples=600, deadline=None, derandomize=True)
@given(made=st.sampled_from(ALL), parts=st.lists(st.sampled_from(PARTS), max_size=9), data=st.data())
def test_how_an_answer_is_cut_makes_no_difference(made: ToolFormat, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    content, calls = parsed(made, [text])
    assert parsed(made, pieces) == parsed(made, list(text)) == (content, calls)
    assert [call.index for call in calls] == list(range(len(calls)))
    if not calls:
        assert content == text, "what is no call stays as it is"


def test_content_comes_as_soon_as_it_is_certain_and_no_marker_shows() -> None:
    parser = ToolCallParser(HERMES)
    found = [parser.feed(piece)[0] for piece in ("Hi", " ", "the", "re <", "b", "> ", "<tool", "_call", ">\n{")]
    assert found == ["Hi", "", " the", "re", " <b", ">", "", "", ""]
    content, calls = parser.feed('"name": "add", "arguments": {"a": 1}}</tool_call>')
    assert (content, calls) == ("", [ADD]), "a call is there with its end marker"


# --- choices


def test_choices_that_leave_the_model_free_and_such_as_cannot_be_meant() -> None:
    assert [tool_grammar(HERMES, TOOLS, choice) for choice in ("auto", "none", None)] == [None] * 3
    named = {"type": "function", "function": {"name": "sub"}}
    for choice in ("any", named, {"type": "function"}, 5, {"function": {"name": "add"}}):
        with pytest.raises(UsageError, match="tool_choice is"):
            tool_grammar(HERMES, TOOLS, choice)
    with pytest.raises(UsageError, match="no tools"):
        tool_grammar(HERMES, [], "required")
    assert tool_names(TOOLS) == ["weather", "add"]
    for wrong in ({}, {"type": "function"}, {"type": "function", "function": {"name": ""}}, 5):
        with pytest.raises(UsageError, match="each of the tools"):
            tool_names([wrong])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="schema of an object"):
        tool_names([{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}])
    with pytest.raises(UsageError, match="same name"):
        tool_names([TOOLS[0], TOOLS[0]])


def walk(guides: Guides, wanted: Any, seed: int) -> str:
    """A text that a grammar allows, its tokens drawn at random from the masks, short ones preferred."""
    tokenizer, source = guides._tokenizer, np.random.RandomState(seed)
    guide, tokens = guides.compile(wanted).guide(), []
    while not guide.ended:
        allowed = np.unpackbits(guide.mask().view(np.uint8), bitorder="little").nonzero()[0]
        assert guide.failure is None
        closing = [token for token in allowed if tokenizer.token_bytes(int(token))[:1] in b'"}]' or token in guides._ends]
        tokens.append(int(source.choice(closing if closing and source.random_sample() < 0.6 else allowed)))
        assert guide.accept(tokens[-1])
    return tokenizer.decode(tokens[:-1], skip_special=False, continues=True)


@pytest.mark.model
@pytest.mark.parametrize("made", ALL, ids=lambda made: made.name)
def test_a_forced_call_is_one_that_the_parser_takes(smollm2: Tokenizer, made: ToolFormat) -> None:
    guides, found = Guides(smollm2, smollm2.vocab_size), set()
    for seed in range(12):
        wanted = tool_grammar(made, TOOLS, "required")
        content, calls = parsed(made, [walk(guides, wanted, seed)], tool_names(TOOLS))
        assert content == "" and calls
        found |= {(call.name, *json.loads(call.arguments)) for call in calls}
        wanted = tool_grammar(made, TOOLS, {"type": "function", "function": {"name": "add"}})
        content, (call,) = parsed(made, [walk(guides, wanted, seed)])
        assert content == "" and call.name == "add" and set(json.loads(call.arguments)) == {"a", "b"}
        assert all(type(value) is int for value in json.loads(call.arguments).values())
    assert found == {("weather", "city"), ("add", "a", "b")}


@pytest.mark.model
def test_markers_that_are_special_tokens_are_asked_for_as_such(smollm2: Tokenizer) -> None:
    """Here the end of a turn stands for a marker, as `[TOOL_CALLS]` is a token of Mistral's."""
    special = {"[TOOL_CALLS]": smollm2.special_tokens["<|im_start|>"]}
    text = walk(Guides(smollm2, smollm2.vocab_size), tool_grammar(MISTRAL, TOOLS, "required", special), 1)
    assert text.startswith('<|im_start|> [{"name": ')
    with pytest.raises(RequestError, match="65,536"):
        many = [tool(f"f{i}", text={"description": "x" * 1000}) for i in range(70)]
        Guides(smollm2, smollm2.vocab_size).compile(tool_grammar(HERMES, many, "required"))  # type: ignore[arg-type]
