"""Forms of answers and calls of tools, through OpenAI's own client."""

from __future__ import annotations

import json

import openai
import pytest

from serving import CLOCK, WEATHER

pytestmark = pytest.mark.model

MESSAGES = [{"role": "user", "content": "Describe a birch as data."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "height": {"type": "integer"}, "green": {"type": "boolean"}},
    "required": ["name", "height", "green"],
    "additionalProperties": False,
}


def checked(text: str) -> None:
    found = json.loads(text)
    assert set(found) == {"name", "height", "green"}
    assert isinstance(found["name"], str) and type(found["height"]) is int and isinstance(found["green"], bool)


def test_a_json_schema_is_kept_to(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "tree", "strict": True, "schema": SCHEMA}}
    asked = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 120, "response_format": wanted}
    for sampling in ({"temperature": 0}, {"temperature": 1.2, "seed": 4}):
        whole = client.chat.completions.create(**asked, **sampling)
        assert whole.choices[0].finish_reason == "stop"
        checked(whole.choices[0].message.content)
        chunks = client.chat.completions.create(**asked, **sampling, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    for choice in client.chat.completions.create(**asked, temperature=1.0, seed=1, n=3).choices:
        checked(choice.message.content)


def test_the_clients_own_parsing(client: openai.OpenAI) -> None:
    from pydantic import BaseModel, Field

    class Tree(BaseModel):
        name: str = Field(max_length=12)
        height: int

    found = client.chat.completions.parse(
        model="smollm2", messages=MESSAGES, max_tokens=120, temperature=0, response_format=Tree
    )
    assert isinstance(found.choices[0].message.parsed, Tree)


def test_json_mode_choices_and_expressions(client: openai.OpenAI) -> None:
    asked = {
        "model": "smollm2", "messages": [{"role": "user", "content": 'Give {"tree": "birch"} as JSON.'}],
        "max_tokens": 60, "temperature": 0,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked, response_format={"type": "json_object"}).choices[0]
    assert whole.finish_reason == "stop" and json.loads(whole.message.content) == {"tree": "birch"}
    free = client.chat.completions.create(**asked).choices[0]
    assert not free.message.content.startswith("{"), "else this shows nothing"
    for form, allowed in [
        ({"choice": ["birch", "oak"]}, lambda text: text in ("birch", "oak")),
        ({"regex": "[0-9]{3}-[a-c]{1,3}!"}, lambda text: text[:3].isdigit() and text.endswith("!")),
        ({"grammar": 'start: "yes" | "no"'}, lambda text: text in ("yes", "no")),
    ]:
        for create in (
            lambda extra: client.completions.create(
                model="smollm2", prompt="Say:", max_tokens=30, temperature=0, extra_body=extra
            ).choices[0].text,
            lambda extra: client.chat.completions.create(
                model="smollm2", messages=MESSAGES, max_tokens=30, temperature=0, extra_body=extra
            ).choices[0].message.content,
        ):  # fmt: skip
            assert allowed(create({"structured_outputs": form})), form
    responded = client.responses.create(
        model="smollm2", input="A birch as data.", max_output_tokens=120, temperature=0,
        text={"format": {"type": "json_schema", "name": "tree", "schema": SCHEMA}},
    )  # fmt: skip
    checked(responded.output_text)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no such type"}}}},
        {"structured_outputs": {"yaml": "x"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"json_object": True}, "response_format": {"type": "json_object"}},
        {"structured_outputs": {"grammar": "start: " + "x" * 10**6}},
        {"response_format": {"type": "json_object"}, "use_beam_search": True, "max_tokens": 3},
        {"tools": [{"type": "function"}]},
        {"tools": [WEATHER]},  # this model's template takes none
        {"tool_choice": "required"},
    ],
)
def test_what_is_no_form(client: openai.OpenAI, fields: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="smollm2", messages=MESSAGES, extra_body=fields)


def test_a_tool_that_must_be_called_is_called(tool_client: openai.OpenAI) -> None:
    asked = {
        "model": "smollm2", "messages": [{"role": "user", "content": "How is the weather in Oslo?"}], "max_tokens": 80,
        "temperature": 0, "tools": [WEATHER, CLOCK],
    }  # fmt: skip
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        whole = tool_client.chat.completions.create(**asked, tool_choice=choice)
        message = whole.choices[0].message
        assert whole.choices[0].finish_reason == "tool_calls" and message.content is None
        assert message.tool_calls[0].type == "function" and message.tool_calls[0].id
        assert message.tool_calls[0].function.name in ("get_weather", "get_time")
        if message.tool_calls[0].function.name == "get_weather":
            assert json.loads(message.tool_calls[0].function.arguments)["city"] in ("Oslo", "Umea")
        calls: dict[int, list[str]] = {}
        reasons = []
        for chunk in tool_client.chat.completions.create(**asked, tool_choice=choice, stream=True):
            reasons.append(chunk.choices[0].finish_reason)
            for call in chunk.choices[0].delta.tool_calls or ():
                found = calls.setdefault(call.index, ["", ""])
                found[0] += call.function.name or ""
                found[1] += call.function.arguments or ""
        assert reasons[-1] == "tool_calls"
        assert list(calls.values()) == [[call.function.name, call.function.arguments] for call in message.tool_calls]
    one = tool_client.chat.completions.create(**asked, tool_choice="required", parallel_tool_calls=False)
    assert len(one.choices[0].message.tool_calls) == 1


def test_a_conversation_with_calls_in_it(tool_client: openai.OpenAI) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    whole = tool_client.chat.completions.create(
        model="smollm2", max_tokens=8, temperature=0, tools=[WEATHER], tool_choice="auto",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "How is the weather in Oslo?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call-1", "content": "Rain, 7 degrees."},
        ],
    )  # fmt: skip
    assert whole.choices[0].message.content
    none = tool_client.chat.completions.create(
        model="smollm2", max_tokens=4, temperature=0, tools=[WEATHER], tool_choice="none", messages=MESSAGES
    )
    plain = tool_client.chat.completions.create(model="smollm2", max_tokens=4, temperature=0, messages=MESSAGES)
    assert none.choices[0].message.content == plain.choices[0].message.content
