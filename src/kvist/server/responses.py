"""`POST /v1/responses`: OpenAI's newer interface, for text. Nothing is stored: a request brings its whole input."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kvist.engine.params import BeamSearchParams, RequestMetrics
from kvist.outputs import TextChunk
from kvist.server.answering import Answering
from kvist.server.chunks import new_id
from kvist.server.failures import ApiError
from kvist.server.reports import extension
from kvist.server.sampling import Wish, parameters
from kvist.server.schema import Message, ResponsesRequest, Sampling
from kvist.server.service import Service
from kvist.server.stream import EventStream, unless_gone
from kvist.server.wanted import from_response_format
from kvist.server.worker import Order
from kvist.structured import StructuredOutputs

PLAIN = {"format": {"type": "text"}}
TEXTS = ("input_text", "output_text", "text")


async def responses(service: Service, request: Request, asked: ResponsesRequest) -> Response:
    """Answer, streaming or not."""
    service.check(asked)
    sampled = Sampling(temperature=asked.temperature, top_p=asked.top_p)
    params = parameters(sampled, Wish(asked.max_output_tokens, structured=_form(asked)), service.settings)
    assert not isinstance(params, BeamSearchParams)
    ids, guide = await service.chat_ids(_messages(asked)), await service.guide(params)
    order = Order(new_id("resp"), ids, params, None, service.salt(request, asked.cache_salt), asked.priority, guide)
    answering = await Answering.begin(service.worker, [order], service.settings, eager=bool(asked.stream))
    made = _Response(order.request_id, service.settings.name, asked)
    if asked.stream:
        return EventStream(made.stream(answering), answering.close, done=False, name=lambda event: str(event["type"]))
    return await unless_gone(request.receive, made.whole(answering))


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


def _messages(asked: ResponsesRequest) -> list[Message]:
    """The input as a conversation."""
    given = asked.input
    items: list[dict[str, Any]] = [{"role": "user", "content": given}] if isinstance(given, str) else given
    found = [Message(role="system", content=asked.instructions)] if asked.instructions else []
    for item in items:
        kind, role, content = item.get("type", "message"), item.get("role"), item.get("content")
        if kind != "message" or not isinstance(role, str) or not isinstance(content, str | list):
            raise ApiError(
                400, f"input has an item that is no message ({str(kind)[:40]}): give role and content", "input"
            )
        if isinstance(content, list):
            content = "".join(_part(part) for part in content)
        found.append(Message(role="system" if role == "developer" else role, content=content))
    return found


def _part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") not in TEXTS or not isinstance(part.get("text"), str):
        raise ApiError(400, "input has content that is no text: this model reads text only", "input")
    return str(part["text"])


class _Response:
    """One response as events, and the object that they build up."""

    def __init__(self, name: str, model: str, asked: ResponsesRequest) -> None:
        self._name, self._model, self._asked = name, model, asked
        self._created, self._message = int(time.time()), new_id("msg")
        self._number = 0
        self._text = ""
        self._reason: str | None = None
        self._metrics: RequestMetrics | None = None

    async def stream(self, answering: Answering) -> AsyncIterator[list[dict[str, Any]]]:
        """The events, a batch at a time, in OpenAI's order."""
        place = {"item_id": self._message, "output_index": 0, "content_index": 0}
        yield [
            self._event("response.created", response=self._object("in_progress")),
            self._event("response.in_progress", response=self._object("in_progress")),
            self._event("response.output_item.added", output_index=0, item=self._item("in_progress", [])),
            self._event("response.content_part.added", **place, part=self._content("")),
        ]
        async for items in answering.items():
            came = [item for _, item in items if isinstance(item, TextChunk)]
            deltas = [text for item in came if (text := self._take(item))]
            if deltas:
                yield [self._event("response.output_text.delta", **place, delta=text, logprobs=[]) for text in deltas]
        status = self._status()
        yield [
            self._event("response.output_text.done", **place, text=self._text, logprobs=[]),
            self._event("response.content_part.done", **place, part=self._content(self._text)),
            self._event(
                "response.output_item.done", output_index=0, item=self._item(status, [self._content(self._text)])
            ),
            self._event(f"response.{status}", response=self._object(status)),
        ]

    async def whole(self, answering: Answering) -> JSONResponse:
        """The object, once all has come."""
        try:
            async for items in answering.items():
                for _, item in items:
                    if isinstance(item, TextChunk):
                        self._take(item)
        finally:
            answering.close()
        return JSONResponse(self._object(self._status()))

    def _take(self, item: TextChunk) -> str:
        self._text += item.text
        self._metrics, self._reason = item.metrics, item.finish_reason
        return item.text

    def _status(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _content(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._message, "type": "message", "role": "assistant", "status": status, "content": content}

    def _object(self, status: str) -> dict[str, Any]:
        m, over = self._metrics, status != "in_progress"
        usage = None
        if over and m is not None:
            usage = {
                "input_tokens": m.prompt_tokens,
                "input_tokens_details": {"cached_tokens": m.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": m.generated_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": m.prompt_tokens + m.generated_tokens,
            }
        return {
            "id": self._name, "object": "response", "created_at": self._created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self._asked.instructions, "max_output_tokens": self._asked.max_output_tokens,
            "model": self._model, "output": [self._item(status, [self._content(self._text)])] if over else [],
            "parallel_tool_calls": True, "previous_response_id": None, "store": False,
            "temperature": self._asked.temperature, "top_p": self._asked.top_p, "text": self._asked.text or PLAIN,
            "tool_choice": "auto", "tools": [], "truncation": "disabled", "metadata": {}, "usage": usage,
            **({"kvist": extension([m])} if over and m is not None else {}),
        }  # fmt: skip
