"""`/v1/sessions`: open, list, look, fork, roll back, delete. A chat completion with `session` answers in one."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.requests import Request

from kvist.server.failures import ApiError
from kvist.server.schema import ForkRequest, RollbackRequest, SessionRequest
from kvist.server.service import Service, plain_message, tenant_of
from kvist.server.sessions import Kept, listed


def routes(service: Service) -> APIRouter:
    """The routes. A session is its tenant's own: others get 404."""
    router, store = APIRouter(prefix="/v1/sessions", tags=["sessions"]), service.sessions

    @router.get("")
    async def all_sessions(request: Request) -> dict[str, Any]:
        return listed(store.list(tenant_of(request)))

    @router.post("")
    async def open_session(request: Request, asked: Annotated[SessionRequest, Body()]) -> dict[str, Any]:
        who, llm = tenant_of(request), service.llm
        if asked.messages and asked.prompt:
            raise ApiError(400, "a session is a conversation or a text: give one of messages and prompt", "prompt")
        kept = store.open(llm, who, asked.name, service.salt(request, asked.cache_salt))
        kept.begin()
        try:
            if asked.messages:
                await asyncio.to_thread(kept.session.append, [plain_message(message) for message in asked.messages])
            elif asked.prompt:
                await asyncio.to_thread(kept.session.append, asked.prompt)
        except BaseException:
            kept.abandon()
            store.delete(who, kept.session.name)
            raise
        kept.end([])
        most = llm.engine.limits.max_model_len
        if len(kept.session) >= most:
            tokens = len(kept.session)
            store.delete(who, kept.session.name)
            raise ApiError(400, f"{tokens} tokens leave no room for an answer within max_model_len {most}", "messages")
        return kept.as_json()

    @router.get("/{name}")
    async def one_session(request: Request, name: str) -> dict[str, Any]:
        return store.get(tenant_of(request), name).as_json()

    @router.delete("/{name}")
    async def delete_session(request: Request, name: str) -> dict[str, Any]:
        store.delete(tenant_of(request), name)
        return {"object": "session.deleted", "name": name, "deleted": True}

    @router.post("/{name}/fork")
    async def fork_session(request: Request, name: str, asked: Annotated[ForkRequest, Body()]) -> dict[str, Any]:
        return store.fork(tenant_of(request), name, asked.name).as_json()

    @router.post("/{name}/rollback")
    async def rollback_session(
        request: Request, name: str, asked: Annotated[RollbackRequest, Body()]
    ) -> dict[str, Any]:
        kept = store.idle(tenant_of(request), name)
        return _rolled_back(kept, asked)

    return router


def _rolled_back(kept: Kept, asked: RollbackRequest) -> dict[str, Any]:
    if (asked.tokens is None) == (asked.messages is None):
        raise ApiError(400, "give one of tokens and messages: how many to drop from the end", "tokens")
    if asked.tokens is not None:
        kept.session.rollback(asked.tokens)
    elif asked.messages is not None:
        kept.session.drop(asked.messages)
    return kept.as_json()
