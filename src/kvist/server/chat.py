"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kvist.engine.params import BeamSearchParams, SamplingParams
from kvist.outputs import TextChunk
from kvist.server.answering import Answering
from kvist.server.beams import beam_chat
from kvist.server.chunks import ChatChunks, Chunk, fold_chat, new_id
from kvist.server.failures import ApiError
from kvist.server.mailbox import Item
from kvist.server.sampling import Wish, parameters
from kvist.server.schema import ChatRequest
from kvist.server.service import Service, plain_message, tenant_of
from kvist.server.sessions import Kept
from kvist.server.stream import EventStream, unless_gone
from kvist.server.wanted import ToolUse, from_fields, from_response_format, the_one, tool_use
from kvist.server.worker import Order


async def chat(service: Service, request: Request, asked: ChatRequest) -> Response:
    """Answer a conversation, streaming or not."""
    _check(service, asked)
    most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    rated = (asked.top_logprobs or 0) if asked.logprobs else None
    use = tool_use(service.llm.tokenizer, asked.tools, asked.tool_choice, asked.parallel_tool_calls)
    form = the_one({
        "tool_choice": None if use is None else use.grammar,
        "response_format": from_response_format(asked.response_format),
        "structured_outputs": from_fields(asked.structured_outputs),
    })  # fmt: skip
    wish = Wish(most, logprobs=rated, structured=form, special_tokens=use is not None and use.made is not None)
    params = parameters(asked, wish, service.settings)
    kept = None
    if asked.session is not None:
        kept = service.sessions.idle(tenant_of(request), asked.session)
        kept.begin()
    try:
        return await _begin(service, request, asked, params, use, kept)
    except BaseException:
        if kept is not None and kept.busy:
            kept.abandon()
        raise


async def _begin(
    service: Service, request: Request, asked: ChatRequest, params: SamplingParams | BeamSearchParams,
    use: ToolUse | None, kept: Kept | None,
) -> Response:  # fmt: skip
    if kept is None:
        ids = await service.chat_ids(asked.messages, None if use is None else use.tools)
        salt = service.salt(request, asked.cache_salt)
    else:
        ids, salt = await asyncio.to_thread(_continued, kept, asked), kept.cache_salt
    guide = None if isinstance(params, BeamSearchParams) else await service.guide(params)
    order = Order(new_id("chatcmpl"), ids, params, None, salt, asked.priority, guide)
    if isinstance(params, BeamSearchParams):
        return await beam_chat(service, request, order)
    made = ChatChunks(
        order.request_id, service.settings.name, service.llm.tokenizer, params.n,
        token_ids=bool(asked.return_token_ids),
        told=asked.stream_options,
        top_logprobs=params.logprobs or 0,
        tools=use,
    )  # fmt: skip
    answering = await Answering.begin(service.worker, [order], service.settings, eager=bool(asked.stream))
    answer = _Answer(made, answering, kept)
    if asked.stream:
        return EventStream(answer.stream(), answer.close)
    return await unless_gone(request.receive, answer.whole())


def _check(service: Service, asked: ChatRequest) -> None:
    service.check(asked)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "top_logprobs are part of the log-probabilities: set logprobs to true", "top_logprobs")
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options are for streams: set stream to true as well", "stream_options")
    if asked.session is not None:
        for name, given in (
            ("n", (asked.n or 1) > 1),
            ("use_beam_search", asked.use_beam_search),
            ("cache_salt", asked.cache_salt),
            ("tools", asked.tools),
        ):
            if given:
                raise ApiError(400, f"{name} does not go with a session: leave it out", name)


def _continued(kept: Kept, asked: ChatRequest) -> list[int]:
    """A session's tokens, with the new messages behind them; none: the last answer is made anew, or goes on."""
    if asked.messages:
        kept.session.append([plain_message(message) for message in asked.messages])
    if not kept.session.messages:
        raise ApiError(400, "the session has no messages yet: give at least one", "messages")
    return kept.session.token_ids


class _Answer:
    """One answer under way, which its session keeps, if it has one."""

    def __init__(self, made: ChatChunks, answering: Answering, kept: Kept | None) -> None:
        self._made, self._answering, self._kept = made, answering, kept
        self._came: list[TextChunk] = []

    async def stream(self) -> AsyncIterator[list[Chunk]]:
        """Chunk by chunk."""
        yield self._made.first()
        async for items in self._answering.items():
            if chunks := self._made.feed(self._note(items)):
                yield chunks
        self.close()  # before the client hears of the end: it may go on with the session at once
        if last := self._made.last():
            yield last

    async def whole(self) -> JSONResponse:
        """The same, folded."""
        try:
            chunks = [chunk async for batch in self.stream() for chunk in batch]
        finally:
            self.close()
        assert self._made.metrics is not None
        return JSONResponse(fold_chat(chunks, self._made.metrics))

    def close(self) -> None:
        """Stop it if it runs, and keep what there is; idempotent."""
        self._answering.close()
        if self._kept is not None:
            self._kept.end(self._came)
            self._kept = None

    def _note(self, items: list[Item]) -> list[TextChunk]:
        came = [item for _, item in items if isinstance(item, TextChunk)]
        if self._kept is not None:
            self._came += came
        return came
