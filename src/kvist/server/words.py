"""The tokens that a request of the live page is about: a text, a conversation, or a session and what is said next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import Request

from kvist.server.failures import ApiError
from kvist.server.schema import Message
from kvist.server.service import Service, plain_message, tenant_of


async def words(
    service: Service, request: Request, text: str | None, messages: Sequence[Message] | None, session: str | None,
    without: int = 0,
) -> list[int]:  # fmt: skip
    """Its tokens. With a session, without so many messages at its end, messages may come; it stays as it is.

    ApiError 400 where nothing is asked about.
    """
    if (text is not None) == (messages is not None or session is not None):
        raise ApiError(400, "give one of: a text, messages, a session")
    if text is not None:
        return await asyncio.to_thread(service.llm.tokenizer.encode, text)
    if session is None:
        return await service.chat_ids(messages or [])
    other = service.sessions.idle(tenant_of(request), session).session.fork()
    if without:
        other.drop(without)
    if messages:
        await asyncio.to_thread(other.append, [plain_message(message) for message in messages])
    return other.token_ids
