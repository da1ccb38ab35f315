"""`POST /live/compare`: a real answer twice, with the cache and without it, a step of each in turn, as events.

Both sides are engines of their own over the model that is loaded (see `sides`). Each step is one call into the engine's
thread, so what else is asked goes on in between. ::

    {"event": "begin", "prompt": [{"id", "text"}, ...], "modes": [...]}
    {"event": "step", "mode", "step", "position", "token_id", "token", "text", "projected": [...], ...}   one a token
    {"event": "end", "equal": true, "sides": {"cached": {...}, "uncached": {...}}}
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from kvist.engine.params import SamplingParams
from kvist.llm import LLM
from kvist.server.failures import ApiError
from kvist.server.schema import Asked, Message, Name
from kvist.server.service import Service
from kvist.server.sides import MOST_TOKENS, Mode, Side, token_text
from kvist.server.stream import EventStream
from kvist.server.words import words
from kvist.server.worker import UnavailableError

MOST_NEW = 64


class CompareRequest(Asked):
    """What is answered: one of prompt, messages and a session (with messages behind it), and how.

    without: messages at the end of the session that are left out, so that its last answer can be made again. singly:
    read the prompt a token at a time too (see `sides`). modes: the sides that are run.
    """

    prompt: str | None = None
    messages: list[Message] | None = None
    session: Name | None = None
    without: Annotated[int, Field(ge=0)] = 0
    max_tokens: Annotated[int, Field(ge=1, le=MOST_NEW)] = 16
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    ignore_eos: bool = False
    singly: bool = False
    modes: Annotated[list[Mode], Field(min_length=1, max_length=2)] = Field(default=["uncached", "cached"])


def routes(service: Service) -> APIRouter:
    """The route."""
    router, comparisons = APIRouter(include_in_schema=False), _Comparisons(service)

    @router.post("/live/compare")
    async def compare(request: Request, asked: Annotated[CompareRequest, Body()]) -> Response:
        return await comparisons.begin(request, asked)

    return router


class _Comparisons:
    """Those of a server: one at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._open: list[Side] | None = None  # of the one that runs
        self._closing: set[asyncio.Task[None]] = set()

    async def begin(self, request: Request, asked: CompareRequest) -> Response:
        """Start one; ApiError 429 while another runs, 400 for one that is too long."""
        if self._open is not None:
            raise ApiError(429, "a comparison is running: wait for its end", code="comparison_running")
        sides: list[Side] = []
        self._open = sides
        try:
            ids = await words(self._service, request, asked.prompt, asked.messages, asked.session, asked.without)
            _check_length(ids, asked.max_tokens)
            params = SamplingParams(
                temperature=asked.temperature, max_tokens=asked.max_tokens, seed=asked.seed, ignore_eos=asked.ignore_eos
            )
            for mode in dict.fromkeys(asked.modes):

                def made(llm: LLM, mode: Mode = mode) -> None:
                    sides.append(Side(llm, mode, ids, params, singly=asked.singly))

                await self._service.worker.call(made)
        except BaseException:
            await asyncio.shield(self._end(sides))
            raise

        def leave() -> None:
            self._end(sides)

        return EventStream(self._events(ids, sides), leave)

    async def _events(self, prompt: Sequence[int], sides: list[Side]) -> AsyncIterator[list[dict[str, Any]]]:
        """What a client gets."""
        call, llm = self._service.worker.call, self._service.llm
        named = [{"id": token, "text": token_text(llm, token)} for token in prompt]
        yield [{"event": "begin", "prompt": named, "modes": [side.mode for side in sides]}]
        while any(not side.done for side in sides):
            for side in sides:
                while not side.done:
                    told = await call(partial(_advance, side))
                    if told is not None:
                        yield [told]
                        break
        equal = all(side.tokens == sides[0].tokens for side in sides) if len(sides) > 1 else None
        end = {"event": "end", "equal": equal, "sides": {side.mode: side.totals() for side in sides}}
        await self._end(sides)  # before the client hears of it: it may ask for the next one at once
        yield [end]

    def _end(self, sides: list[Side]) -> asyncio.Task[None]:
        """Free the engines, in their thread, after the step that may be running there; idempotent."""

        def close(llm: LLM) -> None:
            while sides:
                sides.pop().close()

        async def end() -> None:
            with suppress(UnavailableError):  # then all memory goes
                await self._service.worker.call(close)
            if self._open is sides:
                self._open = None

        task = asyncio.ensure_future(end())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task


def _advance(side: Side, _: LLM) -> dict[str, Any] | None:
    return side.advance()


def _check_length(ids: Sequence[int], max_tokens: int) -> None:
    if len(ids) + max_tokens > MOST_TOKENS:
        raise ApiError(
            400, f"{len(ids)} tokens and {max_tokens} more: a comparison takes {MOST_TOKENS} together, for without a "
            "cache each step reads all of them again", "max_tokens", "context_length_exceeded",
        )  # fmt: skip
