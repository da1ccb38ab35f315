"""A response as events, and the object that they build up: its output is messages and calls of functions, in turn.

::

    created, in_progress
      output_item.added (message), content_part.added, output_text.delta ..., output_text.done, content_part.done,
      output_item.done
      output_item.added (function_call), function_call_arguments.delta, function_call_arguments.done, output_item.done
    completed, or incomplete
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import JSONResponse

from kvist.engine.params import RequestMetrics
from kvist.outputs import TextChunk
from kvist.server.answering import Answering
from kvist.server.chunks import new_id
from kvist.server.mailbox import Item
from kvist.server.reports import extension
from kvist.server.schema import ResponsesRequest
from kvist.server.wanted import Reader, ToolUse
from kvist.text.tool_calls import ToolCall

PLAIN = {"format": {"type": "text"}}
Event = dict[str, Any]


class ResponseEvents:
    """Of one response."""

    def __init__(self, name: str, model: str, asked: ResponsesRequest, use: ToolUse | None) -> None:
        self._name, self._model, self._asked = name, model, asked
        self._created, self._number = int(time.time()), 0
        self._reader = Reader(use)
        self._output: list[dict[str, Any]] = []  # the items; the last one is open while it is a message in progress
        self._text = ""  # of the message that is open
        self._status = "in_progress"
        self._metrics: RequestMetrics | None = None

    async def stream(self, answering: Answering) -> AsyncIterator[list[Event]]:
        """The events, a batch at a time."""
        yield [self._event(f"response.{kind}", response=self._object()) for kind in ("created", "in_progress")]
        async for items in answering.items():
            if events := self._take(items):
                yield events
        yield self._end()

    async def whole(self, answering: Answering) -> JSONResponse:
        """The object, once all has come."""
        try:
            async for _ in self.stream(answering):
                pass
        finally:
            answering.close()
        return JSONResponse(self._object())

    def _take(self, items: Sequence[Item]) -> list[Event]:
        """The events of what came."""
        made: list[Event] = []
        for _, item in items:
            if not isinstance(item, TextChunk):
                continue
            text, calls = self._reader.feed(item)
            if text:
                made += [] if self._is_open() else self._open()
                self._text += text
                made.append(self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[]))
            for call in calls:
                made += self._close("completed") + self._call(call)
            self._metrics = item.metrics
            if item.finish_reason is not None:
                self._status = "incomplete" if item.finish_reason == "length" else "completed"
        return made

    def _end(self) -> list[Event]:
        made = [] if self._output else self._open()  # there is always some output
        made += self._close(self._status)
        return [*made, self._event(f"response.{self._status}", response=self._object())]

    def _is_open(self) -> bool:
        return bool(self._output) and self._output[-1]["status"] == "in_progress"

    def _open(self) -> list[Event]:
        """Begin a message."""
        self._text = ""
        added = self._add({"id": new_id("msg"), "type": "message", "role": "assistant", "content": []})
        return [added, self._event("response.content_part.added", **self._place(), part=_content(""))]

    def _close(self, status: str) -> list[Event]:
        """End the message that is open, if one is."""
        if not self._is_open():
            return []
        part = _content(self._text)
        return [
            self._event("response.output_text.done", **self._place(), text=self._text, logprobs=[]),
            self._event("response.content_part.done", **self._place(), part=part),
            self._done(status=status, content=[part]),
        ]

    def _call(self, call: ToolCall) -> list[Event]:
        """A whole call: its arguments come in one piece, once they are known to be some."""
        item = {"id": new_id("fc"), "type": "function_call", "call_id": new_id("call"), "name": call.name}
        added = self._add({**item, "arguments": ""})
        place = {"item_id": item["id"], "output_index": len(self._output) - 1}
        arguments = "response.function_call_arguments"
        return [
            added,
            self._event(f"{arguments}.delta", **place, delta=call.arguments),
            self._event(f"{arguments}.done", **place, name=call.name, arguments=call.arguments),
            self._done(status="completed", arguments=call.arguments),
        ]

    def _add(self, item: dict[str, Any]) -> Event:
        self._output.append({**item, "status": "in_progress"})
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=self._output[-1])

    def _done(self, **fields: Any) -> Event:
        self._output[-1] = {**self._output[-1], **fields}
        return self._event("response.output_item.done", output_index=len(self._output) - 1, item=self._output[-1])

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _object(self) -> dict[str, Any]:
        asked, m, usage = self._asked, self._metrics, None
        over = self._status != "in_progress"
        if over and m is not None:
            usage = {
                "input_tokens": m.prompt_tokens,
                "input_tokens_details": {"cached_tokens": m.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": m.generated_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": m.prompt_tokens + m.generated_tokens,
            }
        return {
            "id": self._name, "object": "response", "created_at": self._created, "status": self._status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens, "model": self._model,
            "output": list(self._output), "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None, "store": False, "temperature": asked.temperature, "top_p": asked.top_p,
            "text": asked.text or PLAIN, "tool_choice": asked.tool_choice or "auto", "tools": asked.tools or [],
            "truncation": "disabled", "metadata": {}, "usage": usage,
            **({"kvist": extension([m])} if over and m is not None else {}),
        }  # fmt: skip


def _content(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
