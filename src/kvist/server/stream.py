"""Server-sent events: chunks as they come, until the end or until nobody reads any more."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvist.server.failures import body, told
from kvist.server.logs import log

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
STALLED = 60.0  # seconds in which a client takes nothing at all, after which it is gone


encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""JSON as it goes over the wire. One encoder: `json.dumps` would make one for every token."""


class ClientGoneError(Exception):
    """The client closed the connection."""


async def gone(receive: Receive) -> None:
    """Return once the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Awaitable[T], *ends: Awaitable[None]) -> T:
    """The result of some work, which is cancelled when the client leaves, or one of `ends` comes (ClientGoneError)."""
    task = asyncio.ensure_future(work)
    others = [asyncio.ensure_future(end) for end in (gone(receive), *ends)]
    try:
        await asyncio.wait((task, *others), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for one in (task, *others):
            one.cancel()
        await asyncio.gather(task, *others, return_exceptions=True)


class PieceStream(Response):
    """A stream of events, already written, each piece sent as it comes until nobody reads any more.

    close: called when the client has all, has left, or has taken nothing for `STALLED` seconds.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._pieces, self._close = pieces, close
        self._since: float | None = None  # when what is being sent was begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with suppress(ClientGoneError, OSError):  # nobody reads
                await unless_gone(receive, self._send(send), self._stall())
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        async for piece in self._pieces:
            self._since = time.monotonic()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self._since = None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stall(self) -> None:
        """Return once the client has taken nothing for so long. One timer a stream: one a token would cost more."""
        while self._since is None or time.monotonic() - self._since < STALLED:
            await asyncio.sleep(STALLED / 2)


class EventStream(PieceStream):
    """A stream of JSON objects, each batch of them a piece. Errors on the way become an event.

    done: whether `[DONE]` ends it. name: of an object's event, where the events have names.
    """

    def __init__(
        self, batches: AsyncIterator[list[dict[str, Any]]], close: Callable[[], None], *, done: bool = True,
        name: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(self._written(batches), close)
        self._done, self._name = DONE if done else b"", name

    async def _written(self, batches: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
        try:
            async for batch in batches:
                yield "".join(self._event(one) for one in batch).encode()
        except Exception as error:
            failure = told(error)
            log(
                "stream failed",
                level="error" if failure.status >= 500 else "info",
                error=failure.message,
                exc_info=error,
            )
            event = body(failure.status, failure.message, failure.param, failure.code)
            yield f"data: {encoded(event)}\n\n".encode()
        if self._done:
            yield self._done

    def _event(self, one: dict[str, Any]) -> str:
        named = "" if self._name is None else f"event: {self._name(one)}\n"
        return f"{named}data: {encoded(one)}\n\n"
