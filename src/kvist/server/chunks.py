"""A chat's answer as OpenAI's chunks, and the whole answer folded from the very same chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kvist.engine.params import RequestMetrics
from kvist.outputs import Logprob, TextChunk
from kvist.server.reports import extension, usage, usage_so_far
from kvist.server.schema import StreamOptions
from kvist.server.wanted import Reader, ToolUse
from kvist.text.tokenizer import Tokenizer
from kvist.text.tool_calls import ToolCall

Chunk = dict[str, Any]


def new_id(prefix: str) -> str:
    """An id that nobody has."""
    return f"{prefix}-{secrets.token_hex(12)}"


class ChatChunks:
    """Makes the chunks of one answer. One id and model for the whole stream; the role comes first."""

    def __init__(
        self, request_id: str, model: str, tokenizer: Tokenizer, n: int, *, told: StreamOptions | None = None,
        token_ids: bool = False, top_logprobs: int = 0,
        tools: ToolUse | None = None,
    ) -> None:  # fmt: skip
        self.id, self.created = request_id, int(time.time())
        self.model = model
        self._top = top_logprobs
        self.metrics: RequestMetrics | None = None
        self._tokenizer, self._token_ids = tokenizer, token_ids
        self._told = told or StreamOptions()
        self._n = self._open = n
        self._readers = [Reader(tools) for _ in range(n)]
        self._called = [False] * n

    def first(self) -> list[Chunk]:
        """The chunks before any token: who speaks."""
        return [self._chunk(index, {"role": "assistant", "content": ""}, None, None) for index in range(self._n)]

    def feed(self, came: Sequence[TextChunk]) -> list[Chunk]:
        """The chunks of what came."""
        made: list[Chunk] = []
        for item in came:
            self.metrics = item.metrics
            made += self._of(item)
        return made

    def last(self) -> list[Chunk]:
        """The usage chunk, where it is asked for."""
        if not self._told.include_usage or self.metrics is None:
            return []
        return [{**self._head(), "choices": [], "usage": usage([self.metrics]), "kvist": extension([self.metrics])}]

    def _of(self, item: TextChunk) -> list[Chunk]:
        made: list[Chunk] = []
        text, calls = self._readers[item.index].feed(item)
        logprobs = None if item.logprobs is None else {"content": [self._logprob(item.logprobs)], "refusal": None}
        delta: Chunk = {"content": text} if text or logprobs is not None else {}
        if calls:
            self._called[item.index] = True
            delta["tool_calls"] = [self._call(call) for call in calls]
        reason: str | None = item.finish_reason
        if reason == "stop" and self._called[item.index]:
            reason = "tool_calls"
        if delta or reason is not None or self._token_ids:
            chunk = self._chunk(item.index, delta, logprobs, reason, item)
            if reason is not None:
                self._open -= 1
                if not self._open:
                    chunk["kvist"] = extension([item.metrics])
            made.append(chunk)
        return made

    def _call(self, call: ToolCall) -> Chunk:
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": call.index, "id": new_id("call"), "type": "function", "function": function}

    def _chunk(
        self, index: int, delta: Chunk, logprobs: Chunk | None, reason: str | None, item: TextChunk | None = None
    ) -> Chunk:
        choice: Chunk = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        if item is not None and reason is not None:
            choice["stop_reason"] = item.stop_reason
        if item is not None and self._token_ids:
            choice["token_ids"] = [] if item.token_id is None else [item.token_id]
        so_far = usage_so_far(self._told, None if item is None else [item.metrics])
        return {**self._head(), "choices": [choice], **so_far}

    def _head(self) -> Chunk:
        return {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}

    def _logprob(self, found: Mapping[int, Logprob]) -> Chunk:
        """OpenAI's shape: the token that stands there, and the likeliest."""
        named = [
            {"token": one.decoded_token, "logprob": one.logprob, "bytes": list(self._tokenizer.token_bytes(token))}
            for token, one in found.items()
        ]
        likeliest = sorted(zip(found.values(), named, strict=True), key=lambda pair: pair[0].rank)
        return {**named[0], "top_logprobs": [one for rated, one in likeliest if rated.rank <= self._top]}


def fold_chat(chunks: Sequence[Chunk], metrics: RequestMetrics) -> Chunk:
    """The whole answer that a stream of chunks stands for."""
    choices: dict[int, Chunk] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        whole = choices.setdefault(
            choice["index"],
            {
                "index": choice["index"],
                "message": {"role": "assistant", "content": None},
                "logprobs": None,
                "finish_reason": None,
            },
        )
        _add(whole, choice)
    for whole in choices.values():
        message = whole["message"]
        if message["content"] is None and "tool_calls" not in message:
            message["content"] = ""
    return {
        "id": chunks[0]["id"], "object": "chat.completion", "created": chunks[0]["created"],
        "model": chunks[0]["model"], "choices": [choices[index] for index in sorted(choices)],
        "usage": usage([metrics]), "kvist": extension([metrics]),
    }  # fmt: skip


def _add(whole: Chunk, choice: Chunk) -> None:
    message, delta = whole["message"], choice["delta"]
    if delta.get("content"):
        message["content"] = (message["content"] or "") + delta["content"]
    for call in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            calls.append({"id": call["id"], "type": "function", "function": {"name": "", "arguments": ""}})
        function = calls[call["index"]]["function"]
        for name in ("name", "arguments"):
            function[name] += call["function"].get(name) or ""
    if choice["logprobs"] is not None:
        if whole["logprobs"] is None:
            whole["logprobs"] = {"content": [], "refusal": None}
        whole["logprobs"]["content"] += choice["logprobs"]["content"]
    if "token_ids" in choice:
        whole.setdefault("token_ids", []).extend(choice["token_ids"])
    if choice["finish_reason"] is not None:
        whole["finish_reason"], whole["stop_reason"] = choice["finish_reason"], choice.get("stop_reason")
