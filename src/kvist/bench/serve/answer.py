"""What a server answered, read once all of it is there: the text, when it came, and what the server counted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kvist.bench.serve.http import Reply
from kvist.bench.serve.sse import events

REASONING = "reasoning", "reasoning_content"
"""What servers call thoughts that are no part of the answer: vLLM the first, others the second; some send both."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. Times are seconds from sending on; token counts are the server's, None where it tells none.

    times: of each chunk that brings text, at least one; usually but not always a token each. seconds: until the last
    chunk of the answer, which may be one that brings no text.
    """

    text: str
    reasoning: str
    times: tuple[float, ...]
    seconds: float
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def ttft(self) -> float:
        """Seconds to the first text."""
        return self.times[0]

    @property
    def gaps(self) -> list[float]:
        """Seconds between one chunk of text and the next."""
        return [after - before for before, after in pairwise(self.times)]

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first one; None where nobody knows."""
        made = self.completion_tokens
        return None if made is None or made < 2 else (self.seconds - self.ttft) / (made - 1)


@dataclass(frozen=True, slots=True)
class Failure:
    """No whole answer. kind: one of few, to be counted; detail: what the server said, if it said something."""

    kind: str
    detail: str


def read(reply: Reply) -> Answer | Failure:
    """A reply to a streaming chat completion."""
    if reply.status != 200:
        return Failure(f"http {reply.status}", said(reply.body))
    if not reply.content_type.startswith("text/event-stream"):
        return Failure("no event stream", f"{reply.content_type or 'no content type'}: {said(reply.body)}")
    parts: dict[str, list[str]] = {name: [] for name in ("content", *REASONING)}
    times, usage, last, done = list[float](), dict[str, Any](), reply.sent, False
    for at, data in events(reply.arrivals):
        if data == b"[DONE]":
            done = True
            break
        chunk = parsed(data)
        if not chunk or chunk.get("error") is not None:
            return Failure("error event" if chunk else "bad event", said(data))
        usage = _fields(chunk.get("usage")) or usage
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            continue  # the chunk of usage, say
        choice = _fields(choices[0])
        delta, last = _fields(choice.get("delta")), at
        told = {name: text for name in parts if isinstance(text := delta.get(name), str) and text}
        for name, text in told.items():
            parts[name].append(text)
        if told:
            times.append(at - reply.sent)
        done |= choice.get("finish_reason") is not None
    if not done:
        return Failure("broken", "the stream ended before the answer")
    if not times:
        return Failure("no text", "an answer without any text")
    prompt, made = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    cached = _count(_fields(usage.get("prompt_tokens_details")), "cached_tokens")
    text, *thoughts = ("".join(part) for part in parts.values())
    return Answer(text, next(filter(None, thoughts), ""), tuple(times), last - reply.sent, prompt, made, cached)


def said(body: bytes) -> str:
    """The message of an error, or else how it begins; printable, on one line."""
    found = parsed(body)
    error = found.get("error", found)
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else body.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else " " for letter in text[:200]).strip()


def parsed(data: bytes) -> dict[str, Any]:
    """A JSON object; empty where it is none."""
    try:
        return _fields(json.loads(data))
    except (ValueError, RecursionError):
        return {}


def _fields(value: object) -> dict[str, Any]:
    """Servers are many: what should be an object may be null, or anything."""
    return value if isinstance(value, dict) else {}


def _count(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    return value if isinstance(value, int) else None
