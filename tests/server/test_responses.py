"""Functions in `/v1/responses`: items in and out, their events, and OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import openai
import pytest

import serving
from kvist.engine.params import RequestMetrics
from kvist.outputs import TextChunk
from kvist.server.failures import ApiError
from kvist.server.mailbox import Item
from kvist.server.response_events import Event, ResponseEvents
from kvist.server.responses import conversation
from kvist.server.schema import ResponsesRequest
from kvist.server.service import plain_message
from kvist.server.wanted import ToolUse
from kvist.text.tools import HERMES

WEATHER, CLOCK = ({"type": "function", **tool["function"]} for tool in (serving.WEATHER, serving.CLOCK))
CALL = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "%s"}}\n</tool_call>'


@dataclass
class Came:
    """An answer of these texts, a chunk each."""

    texts: list[str]
    reason: str = "stop"
    closed: bool = False

    async def items(self) -> AsyncIterator[list[Item]]:
        for number, text in enumerate(self.texts, 1):
            reason = self.reason if number == len(self.texts) else None
            yield [(0, TextChunk("a", text, number, reason, RequestMetrics(5, generated_tokens=number)))]

    def close(self) -> None:
        self.closed = True


def made(came: Came, single: bool = False) -> tuple[list[Event], dict[str, object]]:
    """The events of an answer's stream, and the object of the same answer in whole."""
    use = ToolUse([CLOCK], frozenset({"get_time"}), HERMES, None, single)
    asked = ResponsesRequest(input="Hi", tools=[CLOCK])

    async def run() -> tuple[list[Event], bytes]:
        streamed = ResponseEvents("resp-1", "tiny", asked, use).stream(came)
        events = [event async for batch in streamed for event in batch]
        return events, (await ResponseEvents("resp-1", "tiny", asked, use).whole(came)).body

    events, body = asyncio.run(run())
    assert came.closed and [event["sequence_number"] for event in events] == list(range(len(events)))
    return events, json.loads(body)


def bare(items: list[dict[str, object]]) -> list[dict[str, object]]:
    """Items without what is drawn by lot."""
    return [{name: item[name] for name in item if name not in ("id", "call_id")} for item in items]


MESSAGE = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done", "output_item.done"]  # fmt: skip
FUNCTION = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]


def test_text_and_calls_are_items_in_turn() -> None:
    events, whole = made(Came(["Well.", CALL % "CET", "And", CALL % "GMT"]))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == ["created", "in_progress", *MESSAGE, *FUNCTION, *MESSAGE, *FUNCTION, "completed"]
    output = events[-1]["response"]["output"]
    assert output == [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert bare(output) == bare(whole["output"])
    assert [item["type"] for item in output] == ["message", "function_call"] * 2
    assert [item["content"][0]["text"] for item in output[::2]] == ["Well.", "And"]
    assert [json.loads(item["arguments"]) for item in output[1::2]] == [{"zone": "CET"}, {"zone": "GMT"}]
    assert {item["status"] for item in output} == {"completed"}
    assert len({item["id"] for item in output} | {item["call_id"] for item in output[1::2]}) == 6
    for event in events:
        if "output_index" in event:
            assert event.get("item_id", output[event["output_index"]]["id"]) == output[event["output_index"]]["id"]
    assert (whole["status"], whole["usage"]["total_tokens"]) == ("completed", 9)


def test_how_an_answer_ends() -> None:
    _, one = made(Came([CALL % "CET", CALL % "GMT"]), single=True)
    assert [item["type"] for item in one["output"]] == ["function_call"]
    events, cut = made(Came(["Well. ", (CALL % "CET")[:20]], reason="length"))
    assert cut["status"] == "incomplete" and cut["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in cut["output"]] == ["incomplete"]
    assert cut["output"][0]["content"][0]["text"] == "Well. " + (CALL % "CET")[:20]
    assert events[-1]["type"] == "response.incomplete"
    events, empty = made(Came([""]))
    assert [item["content"][0]["text"] for item in empty["output"]] == [""]
    assert "response.output_text.delta" not in [event["type"] for event in events]


def test_items_as_messages() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "get_time", "arguments": "{}", "id": "fc-1"}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well."}]}
    items = [
        {"role": "user", "content": "When?"}, said, call, {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c2", "output": "Noon."},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "Night."}]},
        {**call, "call_id": "c3"}, {"role": "developer", "content": "Go on."},
    ]  # fmt: skip

    def called(*names: str) -> list[dict[str, object]]:
        return [{"id": name, "type": "function", "function": {"name": "get_time", "arguments": "{}"}} for name in names]

    assert [plain_message(message) for message in conversation("Be brief.", items)] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "Well.", "tool_calls": called("c1", "c2")},
        {"role": "tool", "content": "Noon.", "tool_call_id": "c2"},
        {"role": "tool", "content": "Night.", "tool_call_id": "c1"},
        {"role": "assistant", "content": None, "tool_calls": called("c3")},
        {"role": "system", "content": "Go on."},
    ]
    with pytest.raises(ApiError, match="not before it"):
        conversation(None, items[4:])


MODEL = pytest.mark.model


@MODEL
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_function_that_must_be_called_is_called(tool_client: openai.OpenAI, choice: object) -> None:
    asked = {
        "model": "smollm2", "input": "How is the weather in Oslo?", "max_output_tokens": 80, "temperature": 0,
        "tools": [WEATHER, CLOCK], "tool_choice": choice, "parallel_tool_calls": False,
    }  # fmt: skip
    whole = tool_client.responses.create(**asked)
    (call,) = whole.output
    assert whole.status == "completed" and call.type == "function_call" and call.status == "completed"
    assert (call.name, json.loads(call.arguments)["city"]) == ("get_weather", "Oslo")
    assert whole.parallel_tool_calls is False and whole.tools[0].name == "get_weather"
    with tool_client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        last = stream.get_final_response()
    assert kinds == [f"response.{kind}" for kind in ["created", "in_progress", *FUNCTION, "completed"]]
    assert (last.output[0].name, last.output[0].arguments) == (call.name, call.arguments)

    chat = tool_client.chat.completions.create(  # the other interface says the same
        model="smollm2", messages=[{"role": "user", "content": asked["input"]}], max_tokens=80, temperature=0,
        tools=[{"type": "function", "function": {k: tool[k] for k in tool if k != "type"}} for tool in asked["tools"]],
        tool_choice=choice if choice == "required" else {"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
    )  # fmt: skip
    assert chat.choices[0].message.tool_calls[0].function.arguments == call.arguments
    assert chat.usage.prompt_tokens == whole.usage.input_tokens


@MODEL
def test_a_conversation_goes_on_with_what_the_function_gave(tool_client: openai.OpenAI) -> None:
    asked = {"model": "smollm2", "max_output_tokens": 24, "temperature": 0, "tools": [WEATHER]}
    items = [{"role": "user", "content": "How is the weather in Oslo?"}]
    first = tool_client.responses.create(**{**asked, "max_output_tokens": 80}, input=items, tool_choice="required")
    calls = first.output
    assert {call.type for call in calls} == {"function_call"}
    told = [
        {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "Rain."} for call in calls]
    second = tool_client.responses.create(**asked, input=[*items, *calls, *outputs])
    chat = tool_client.chat.completions.create(
        model="smollm2", max_tokens=24, temperature=0,
        tools=[{"type": "function", "function": {k: WEATHER[k] for k in WEATHER if k != "type"}}],
        messages=[
            items[0], {"role": "assistant", "content": None, "tool_calls": told},
            *({"role": "tool", "tool_call_id": call.call_id, "content": "Rain."} for call in calls),
        ],
    )  # fmt: skip
    assert second.output_text == chat.choices[0].message.content != ""
    assert second.usage.input_tokens == chat.usage.prompt_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0


@MODEL
def test_what_is_no_function(tool_client: openai.OpenAI) -> None:
    for fields in (
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function"}]},
        {"tools": [WEATHER, WEATHER]},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "get_time"}},
        {"tools": [WEATHER], "tool_choice": "required", "text": {"format": {"type": "json_object"}}},
    ):
        with pytest.raises(openai.BadRequestError):
            tool_client.responses.create(model="smollm2", input="Hi", max_output_tokens=2, extra_body=fields)
    none = tool_client.responses.create(
        model="smollm2", input="Hi", max_output_tokens=4, temperature=0, tools=[WEATHER], tool_choice="none"
    )
    plain = tool_client.responses.create(model="smollm2", input="Hi", max_output_tokens=4, temperature=0)
    assert none.output_text == plain.output_text and none.usage.input_tokens == plain.usage.input_tokens
