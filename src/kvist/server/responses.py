"""`POST /v1/responses`: OpenAI's newer interface, for text and functions. Nothing is stored: requests bring all input.

::

    input items ── conversation ──► messages ──► tokens ──► chunks ──► ResponseEvents ──► output items
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvist.engine.params import BeamSearchParams
from kvist.server.answering import Answering
from kvist.server.chunks import new_id
from kvist.server.failures import ApiError
from kvist.server.response_events import ResponseEvents
from kvist.server.sampling import Wish, parameters
from kvist.server.schema import Message, ResponsesRequest, Sampling
from kvist.server.service import Service
from kvist.server.stream import EventStream, unless_gone
from kvist.server.wanted import from_response_format, the_one, tool_use
from kvist.server.worker import Order
from kvist.structured import StructuredOutputs
from kvist.text.tools import Tool

TEXTS = ("input_text", "output_text", "text")


async def responses(service: Service, request: Request, asked: ResponsesRequest) -> Response:
    """Answer, streaming or not."""
    service.check(asked)
    use = tool_use(service.llm.tokenizer, _tools(asked), _choice(asked), asked.parallel_tool_calls)
    form = the_one({"tool_choice": None if use is None else use.grammar, "text": _form(asked)})
    wish = Wish(asked.max_output_tokens, structured=form, special_tokens=use is not None and use.made is not None)
    params = parameters(Sampling(temperature=asked.temperature, top_p=asked.top_p), wish, service.settings)
    assert not isinstance(params, BeamSearchParams)
    ids = await service.chat_ids(conversation(asked.instructions, asked.input), None if use is None else use.tools)
    guide, salt = await service.guide(params), service.salt(request, asked.cache_salt)
    order = Order(new_id("resp"), ids, params, None, salt, asked.priority, guide)
    answering = await Answering.begin(service.worker, [order], service.settings, eager=bool(asked.stream))
    made = ResponseEvents(order.request_id, service.settings.name, asked, use)
    if asked.stream:
        return EventStream(made.stream(answering), answering.close, done=False, name=lambda event: str(event["type"]))
    return await unless_gone(request.receive, made.whole(answering))


def _tools(asked: ResponsesRequest) -> list[Tool]:
    """The functions as chat completions have them: what stands beside the type is in an object of its own."""
    for tool in asked.tools or ():
        if tool.get("type") != "function" or not isinstance(tool.get("name"), str):
            wrong = 'each of the tools must be {"type": "function", "name": ..., "parameters": ...}: no others are here'
            raise ApiError(400, wrong, "tools")
    return [
        {"type": "function", "function": {name: tool[name] for name in tool if name != "type"}}
        for tool in asked.tools or ()
    ]


def _choice(asked: ResponsesRequest) -> dict[str, Any] | str | None:
    choice = asked.tool_choice
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        wrong = 'tool_choice is "none", "auto", "required" or {"type": "function", "name": ...}'
        raise ApiError(400, wrong, "tool_choice")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _form(asked: ResponsesRequest) -> StructuredOutputs | None:
    text = asked.text or {}
    if text.get("verbosity") not in (None, "medium"):
        raise ApiError(
            400, "text.verbosity is not supported here: leave it out", "text.verbosity", "unsupported_parameter"
        )
    form = text.get("format")
    if form is not None and not isinstance(form, dict):
        raise ApiError(400, 'text is {"format": {"type": ...}}', "text")
    return from_response_format(form)


def conversation(instructions: str | None, given: str | Sequence[dict[str, Any]]) -> list[Message]:
    """The input as messages of a chat. Calls belong to what the assistant said before them; outputs follow by their id.

    ApiError for an item that is none of these, and for the output of a call that is not there.
    """
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    found: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    calls: list[str] = []
    for item in items:
        kind, role, name = item.get("type", "message"), item.get("role"), item.get("call_id")
        if kind == "function_call":
            if not found or found[-1]["role"] != "assistant":
                found.append({"role": "assistant", "content": None})
            found[-1].setdefault("tool_calls", []).append(_call(item))
            calls.append(item["call_id"])
        elif kind == "function_call_output":
            if name not in calls:
                raise ApiError(400, f"input has the output of a call that is not before it ({name!r:.80})", "input")
            found.append({"role": "tool", "content": _text(item.get("output")), "tool_call_id": name})
        elif kind == "message" and isinstance(role, str) and 0 < len(role) <= 64:
            found.append({"role": "system" if role == "developer" else role, "content": _text(item.get("content"))})
        else:
            known = "a message with role and content, a function_call or its function_call_output"
            raise ApiError(400, f"input has an item of type {str(kind)[:40]}: give {known}", "input")
    return [Message.model_validate(message) for message in found]


def _call(item: dict[str, Any]) -> dict[str, Any]:
    """A call as messages have it."""
    name, call_id, arguments = (item.get(field) for field in ("name", "call_id", "arguments"))
    if not (isinstance(name, str) and isinstance(call_id, str) and isinstance(arguments, str)):
        raise ApiError(400, "input has a function_call without call_id, name and arguments, each a text", "input")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _text(content: object) -> str:
    """A text, or the texts of parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.get("type") in TEXTS and isinstance(part.get("text"), str) for part in parts
    ):
        raise ApiError(400, "input has content that is no text: this model reads text only", "input")
    return "".join(part["text"] for part in parts)
