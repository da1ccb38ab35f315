"""What all routes share: the engine's thread, the settings, and who may see what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.requests import Request

from kvist.engine.guide import Guide
from kvist.engine.params import SamplingParams
from kvist.llm import LLM
from kvist.server.failures import ApiError
from kvist.server.metrics import ServerMetrics
from kvist.server.schema import Asked, Message
from kvist.server.sessions import SessionStore
from kvist.server.settings import ServerSettings
from kvist.server.worker import EngineWorker
from kvist.text.sandbox import TemplateSlowError
from kvist.text.tools import Tool

SHORT = 4096  # characters of a conversation whose tokens are found where everybody waits: a millisecond
QUICK = 0.002  # seconds that its template may take there


class Service:
    """Of one server."""

    def __init__(self, worker: EngineWorker, settings: ServerSettings, metrics: ServerMetrics) -> None:
        self.worker, self.settings, self.metrics = worker, settings, metrics
        self.sessions = SessionStore(settings.max_sessions)
        self.started = int(time.time())

    @property
    def llm(self) -> LLM:
        """The model; UnavailableError, which clients see as 503, where it is not ready."""
        return self.worker.llm

    def check(self, asked: Asked) -> None:
        """Refuse what asks for another model, or for what is not supported."""
        model = getattr(asked, "model", None)
        if model is not None and model != self.settings.name:
            raise ApiError(
                404, f"the model {model[:80]!r} is not here: this server has {self.settings.name!r}", "model",
                "model_not_found",
            )  # fmt: skip
        asked.refuse_unsupported()

    def salt(self, request: Request, cache_salt: str | None) -> str | None:
        """What a request's pages are found under: its tenant's, and among these those of its own salt."""
        who = tenant_of(request)
        return f"{who}\0{cache_salt or ''}" if who else cache_salt

    async def guide(self, params: SamplingParams) -> Guide | None:
        """What makes an answer keep to what is asked for. Grammars are compiled in threads, with limits."""
        if params.structured_outputs is None:
            return None
        return await asyncio.to_thread(self.llm.guides.guide, params.structured_outputs)

    async def chat_ids(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> list[int]:
        """The tokens of a conversation: a short one here, if its template is quick.

        Else in a thread of its own: templates come from anywhere, texts may be long, and others wait for this thread.
        """
        plain, llm = [plain_message(message) for message in messages], self.llm
        if not plain:
            raise ApiError(400, "messages is empty: give at least one", "messages")
        texts = [message.content for message in messages if isinstance(message.content, str)]
        if not tools and len(texts) == len(messages) and sum(map(len, texts)) < SHORT:
            with suppress(TemplateSlowError):
                return llm.chat_ids(plain, seconds=QUICK)
        return await asyncio.to_thread(llm.chat_ids, plain, tools)


def tenant_of(request: Request) -> str:
    """Whose request it is; "" where there are no keys."""
    who: str = request.state.tenant
    return who


def plain_message(message: Message) -> dict[str, Any]:
    """A message as the template takes it: what was given, and nothing that was not."""
    return message.model_dump(exclude_unset=True)
