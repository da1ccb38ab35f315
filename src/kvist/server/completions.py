"""`POST /v1/completions`: the older interface, which evaluation harnesses need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kvist.engine.params import BeamSearchParams, RequestMetrics
from kvist.llm import LLM
from kvist.outputs import BeamSearchOutput, RequestOutput
from kvist.server.answering import Answering
from kvist.server.chunks import Chunk, new_id
from kvist.server.failures import ApiError
from kvist.server.legacy import LegacyLogprobs
from kvist.server.mailbox import Ended, Item
from kvist.server.reports import extension, usage, usage_so_far
from kvist.server.sampling import Wish, parameters
from kvist.server.schema import CompletionRequest, StreamOptions
from kvist.server.service import Service
from kvist.server.stream import EventStream, unless_gone
from kvist.server.wanted import from_fields
from kvist.server.worker import Order

DEFAULT_TOKENS = 16


async def completions(service: Service, request: Request, asked: CompletionRequest) -> Response:
    """Answer prompts, streaming or not."""
    service.check(asked)
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options are for streams: set stream to true as well", "stream_options")
    prompts = await asyncio.to_thread(_prompts, service, asked)
    most = DEFAULT_TOKENS if asked.max_tokens is None else asked.max_tokens
    echoed = asked.logprobs if asked.echo else None
    # no token at all is asked for where only the prompt is to be rated: one is made, and left out
    wish = Wish(max(most, 1), asked.best_of, asked.logprobs, echoed, from_fields(asked.structured_outputs))
    params = parameters(asked, wish, service.settings)
    if asked.stream and asked.best_of is not None and asked.best_of > (asked.n or 1):
        raise ApiError(400, "best_of is decided when all answers have ended: leave stream out", "best_of")
    if asked.stream and asked.echo and asked.logprobs is not None:
        raise ApiError(400, "the echoed prompt's log-probabilities are not streamed: leave stream out", "stream")
    guides = [None if isinstance(params, BeamSearchParams) else await service.guide(params) for _ in prompts]
    name, salt = new_id("cmpl"), service.salt(request, asked.cache_salt)
    orders = [
        Order(f"{name}-{i}" if len(prompts) > 1 else name, ids, params, text, salt, asked.priority, guides[i])
        for i, (text, ids) in enumerate(prompts)
    ]
    width = 1 if isinstance(params, BeamSearchParams) else params.n
    made = _Completions(service, name, asked, orders, width, most)
    answering = await Answering.begin(service.worker, orders, service.settings, eager=bool(asked.stream))
    if asked.stream:
        return EventStream(made.stream(answering), answering.close)
    return await unless_gone(request.receive, made.whole(answering))


class _Completions:
    """The chunks and the whole of one request's answers. Choice `order * n + index` is a prompt's answer."""

    def __init__(
        self, service: Service, name: str, asked: CompletionRequest, orders: Sequence[Order], width: int, most: int
    ) -> None:
        self._tokenizer = service.llm.tokenizer
        self._asked, self._orders, self._width, self._most = asked, orders, width, most
        self._told = asked.stream_options or StreamOptions()
        self._head = {
            "id": name, "object": "text_completion", "created": int(time.time()), "model": service.settings.name,
        }  # fmt: skip
        self._rated: dict[int, LegacyLogprobs] = {}
        self._begun: set[int] = set()
        self._metrics: dict[int, RequestMetrics] = {}

    async def stream(self, answering: Answering) -> AsyncIterator[list[Chunk]]:
        """Chunk by chunk."""
        async for items in answering.items():
            if chunks := [chunk for item in items for chunk in self._chunks(item)]:
                yield chunks
        if self._told.include_usage:
            yield [{**self._head, "choices": [], **self._cost()}]

    async def whole(self, answering: Answering) -> JSONResponse:
        """All at once."""
        choices: list[Chunk] = []
        try:
            async for items in answering.items():
                for number, item in items:
                    if isinstance(item, Ended):
                        assert item.output is not None  # else `items` has raised
                        choices += self._choices(number, item.output)
                        self._metrics[number] = item.output.metrics
        finally:
            answering.close()
        choices.sort(key=lambda choice: choice["index"])
        return JSONResponse({**self._head, "choices": choices, **self._cost()})

    def _cost(self) -> Chunk:
        metrics = [self._metrics[number] for number in sorted(self._metrics)]
        cost = usage(metrics)
        if not self._most:
            cost["completion_tokens"], cost["total_tokens"] = 0, cost["prompt_tokens"]
        return {"usage": cost, "kvist": extension(metrics)}

    def _chunks(self, item: Item) -> list[Chunk]:
        number, came = item
        if isinstance(came, Ended):
            return []
        self._metrics[number] = came.metrics
        index = number * self._width + came.index
        fresh, text, logprobs = index not in self._begun, came.text if self._most else "", None
        self._begun.add(index)
        if self._asked.logprobs is not None and self._most:
            logprobs = self._rated.setdefault(index, self._legacy()).part(came.logprobs)
        if fresh and self._asked.echo:
            text = self._echo(number) + text
        if not (text or logprobs or came.finish_reason or self._asked.return_token_ids):
            return []
        choice: Chunk = {
            "index": index, "text": text, "logprobs": logprobs, "finish_reason": came.finish_reason,
            "stop_reason": came.stop_reason,
        }  # fmt: skip
        if self._asked.return_token_ids:
            choice["token_ids"] = [] if came.token_id is None or not self._most else [came.token_id]
        chunk = {**self._head, "choices": [choice]}
        return [{**chunk, **usage_so_far(self._told, self._metrics.values())}]

    def _choices(self, number: int, output: RequestOutput | BeamSearchOutput) -> list[Chunk]:
        if isinstance(output, BeamSearchOutput):
            return [self._beam(number, place, output) for place in range(len(output.sequences))]
        return [self._choice(number, output, place) for place in range(len(output.outputs))]

    def _choice(self, number: int, output: RequestOutput, place: int) -> Chunk:
        answer, logprobs = output.outputs[place], None
        if self._asked.logprobs is not None:
            logprobs = self._legacy().whole(
                output.prompt_logprobs if self._asked.echo else None, (answer.logprobs or ()) if self._most else (),
                self._orders[number].prompt_ids,
            )  # fmt: skip
        choice: Chunk = {
            "index": number * self._width + answer.index,
            "text": (self._echo(number) if self._asked.echo else "") + (answer.text if self._most else ""),
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self._asked.return_token_ids:
            choice["token_ids"] = list(answer.token_ids) if self._most else []
            choice["prompt_token_ids"] = list(output.prompt_token_ids)
        return choice

    def _beam(self, number: int, place: int, output: BeamSearchOutput) -> Chunk:
        found = output.sequences[place]
        return {
            "index": number * len(output.sequences) + place,
            "text": (self._echo(number) if self._asked.echo else "") + found.answer_text,
            "logprobs": None,
            "finish_reason": found.finish_reason,
            "stop_reason": None,
            "cumulative_logprob": found.cum_logprob,
        }

    def _echo(self, number: int) -> str:
        order = self._orders[number]
        return self._tokenizer.decode(list(order.prompt_ids)) if order.prompt is None else order.prompt

    def _legacy(self) -> LegacyLogprobs:
        return LegacyLogprobs(self._tokenizer, self._asked.logprobs or 0)


def _prompts(service: Service, asked: CompletionRequest) -> list[tuple[str | None, list[int]]]:
    """Each prompt as its text, if it has one, and its tokens."""
    llm, given = service.llm, asked.prompt
    every: Sequence[Any] = [given] if isinstance(given, str) else given
    if every and isinstance(every[0], int):
        every = [every]
    if not every or len(every) > service.settings.max_prompts:
        most = service.settings.max_prompts
        raise ApiError(400, f"prompt has {len(every)} texts: give 1 to {most}", "prompt")
    return [_tokens(llm, one, asked.add_special_tokens) for one in every]


def _tokens(llm: LLM, prompt: str | list[int], add_special: bool) -> tuple[str | None, list[int]]:
    return (prompt, llm.tokenizer.encode(prompt, add_special)) if isinstance(prompt, str) else (None, prompt)
