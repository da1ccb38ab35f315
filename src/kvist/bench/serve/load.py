"""Two passes of the same requests: the first makes the conversations, the second sends the same bytes again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kvist.bench.serve.answer import Answer, Failure, read
from kvist.bench.serve.http import Client, TransportError
from kvist.bench.serve.work import Conversation, Plan

Ask = Callable[[bytes], Awaitable[Answer | Failure]]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request's body, and what came of it."""

    body: bytes
    found: Answer | Failure


@dataclass(frozen=True, slots=True)
class Pass:
    """All exchanges, conversation by conversation. Seconds from the first request to the last answer.

    cpu_seconds: processor time that this process took meanwhile.
    """

    conversations: list[list[Exchange]]
    seconds: float
    cpu_seconds: float

    @property
    def exchanges(self) -> list[Exchange]:
        """One after another."""
        return [exchange for each in self.conversations for exchange in each]


async def ask(client: Client, body: bytes) -> Answer | Failure:
    """One streaming chat completion."""
    try:
        return read(await client.post("/v1/chat/completions", body))
    except TransportError as error:
        return Failure(error.kind, error.detail)


def encoded(model: str, plan: Plan, messages: Sequence[dict[str, str]], tokens: int) -> bytes:
    """A request's body: greedy, streamed, with usage."""
    body = {
        "model": model, "messages": messages, "max_tokens": tokens, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    return json.dumps(body | ({"ignore_eos": True} if plan.ignore_eos else {})).encode()


async def cold_pass(asking: Ask, model: str, plan: Plan, texts: Sequence[Conversation]) -> Pass:
    """Every conversation from its beginning on; each turn brings what the server answered before."""

    async def converse(turns: Conversation) -> list[Exchange]:
        messages: list[dict[str, str]] = []
        exchanges: list[Exchange] = []
        for text in turns:
            messages.append({"role": "user", "content": text})
            body = encoded(model, plan, messages, plan.output_tokens)
            exchanges.append(Exchange(body, found := await asking(body)))
            if isinstance(found, Failure):
                break  # there is no answer to go on from
            messages.append({"role": "assistant", "content": found.text})
        return exchanges

    return await _all(plan, [partial(converse, turns) for turns in texts])


async def warm_pass(asking: Ask, plan: Plan, before: Pass) -> Pass:
    """The requests of another pass once more, byte by byte, in the same order, arriving in the same way."""

    async def repeat(exchanges: list[Exchange]) -> list[Exchange]:
        return [Exchange(exchange.body, await asking(exchange.body)) for exchange in exchanges]

    return await _all(plan, [partial(repeat, exchanges) for exchanges in before.conversations])


async def _all(plan: Plan, jobs: Sequence[Callable[[], Awaitable[list[Exchange]]]]) -> Pass:
    gate = asyncio.Semaphore(plan.at_once or len(jobs))
    cpu, begin = time.process_time(), time.perf_counter()

    async def run(job: Callable[[], Awaitable[list[Exchange]]], at: float) -> list[Exchange]:
        await asyncio.sleep(at - (time.perf_counter() - begin))
        async with gate:
            return await job()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(job, at)) for job, at in zip(jobs, plan.arrivals(len(jobs)), strict=True)]
    return Pass([task.result() for task in tasks], time.perf_counter() - begin, time.process_time() - cpu)
