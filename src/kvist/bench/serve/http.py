"""HTTP for a client that shares a machine with the server: HTTP/1.1 by h11, connections are kept open.

Bytes get their time in the callback in which they arrive. No task is woken for them and nobody parses them while the
answer goes on: what the client computes there would be measured as the server's.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import h11

from kvist.errors import UsageError
from kvist.version import __version__

VISIBLE = re.compile("[!-~]+")
"""Characters that a request line and a header can carry."""
CLOSED = "the server closed the connection"


class TransportError(Exception):
    """A request without a whole response. kind: `unreachable`, `broken` or `timeout`; detail: for people."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


@dataclass
class Reply:
    """A response. Times are `time.perf_counter`'s: of sending, and of the arrival of each piece of the body."""

    sent: float = 0.0
    status: int = 0
    content_type: str = ""
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(piece for _, piece in self.arrivals)


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._done: asyncio.Future[None] | None = None
        self.reply = Reply()
        self.open = True

    async def ask(self, request: h11.Request, body: bytes) -> Reply:
        """Send a request and wait for the end of its response. Raises TransportError where that does not come."""
        self.reply = reply = Reply()
        self._done = asyncio.get_running_loop().create_future()
        parts = self._http.send(request), self._http.send(h11.Data(body)), self._http.send(h11.EndOfMessage())
        reply.sent = time.perf_counter()
        self._transport.writelines(part for part in parts if part)
        await self._done
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()  # the server said that it will
        return reply

    def close(self) -> None:
        """Let the connection go; idempotent."""
        self.open = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The event loop has connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """The event loop has bytes."""
        self._read(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The event loop has seen the end."""
        self.open = False
        self._read(b"")  # a body may end with its connection
        self._finish(TransportError("broken", CLOSED))

    def _read(self, data: bytes) -> None:
        now, reply = time.perf_counter(), self.reply
        try:
            self._http.receive_data(data)
            while not isinstance(event := self._http.next_event(), type):  # NEED_DATA and PAUSED are types
                if isinstance(event, h11.Data):
                    reply.arrivals.append((now, bytes(event.data)))
                elif isinstance(event, h11.Response):
                    reply.status = event.status_code
                    reply.content_type = dict(event.headers).get(b"content-type", b"").decode("latin-1")
                elif isinstance(event, h11.EndOfMessage):
                    self._finish(None)
                elif isinstance(event, h11.ConnectionClosed):
                    break
        except h11.RemoteProtocolError as error:
            self._finish(TransportError("broken", str(error) if data else CLOSED))
            self.close()

    def _finish(self, error: TransportError | None) -> None:
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)


class Client:
    """Requests to one server, each within `timeout` seconds; as many connections as requests are open at once.

    url: http://host:port or https://host, with or without /v1 at the end. Raises UsageError for anything else.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        host = parts.hostname or ""
        named = parts.scheme in ("http", "https") and host and VISIBLE.fullmatch(url)
        if not named or parts.query or parts.fragment:
            raise UsageError(f"url {url[:80]!r} names no server: give --url http://host:port")
        self._secure = parts.scheme == "https"
        self._address = host, port or (443 if self._secure else 80)
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = [("Host", parts.netloc.rpartition("@")[2]), ("User-Agent", f"kvist/{__version__}")]
        if api_key is not None:
            if not VISIBLE.fullmatch(api_key):
                raise UsageError("--api-key has characters that no header can carry: give the key alone")
            self._headers.append(("Authorization", f"Bearer {api_key}"))
        self._timeout = timeout
        self._idle: list[Connection] = []

    async def get(self, path: str) -> Reply:
        """What is at a path. Raises TransportError."""
        return await self._ask(h11.Request(method="GET", target=self._path + path, headers=self._headers), b"")

    async def post(self, path: str, body: bytes) -> Reply:
        """Send JSON. Raises TransportError."""
        headers = [*self._headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        return await self._ask(h11.Request(method="POST", target=self._path + path, headers=headers), body)

    def close(self) -> None:
        """Close all connections that no request holds."""
        while self._idle:
            self._idle.pop().close()

    async def _ask(self, request: h11.Request, body: bytes) -> Reply:
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    kept = self._kept()
                    connection = kept or await self._connect()
                    try:
                        reply = await connection.ask(request, body)
                    except TransportError:
                        if kept is None or connection.reply.status:
                            raise
                        continue  # the server had enough of an idle connection just when we wrote to it
                    except BaseException:
                        connection.close()
                        raise
                    if connection.open:
                        self._idle.append(connection)
                    return reply
        except TimeoutError as error:
            raise TransportError("timeout", f"no whole answer within {self._timeout:g} s") from error
        except (OSError, UnicodeError) as error:  # names of hosts that cannot be looked up are the latter
            raise TransportError("unreachable", _reason(error)) from error

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self._address, ssl=self._secure or None)
        return connection


def _reason(error: OSError | UnicodeError) -> str:
    """Why there is no connection: asyncio's own words would name an address instead."""
    if isinstance(error, ConnectionError) and error.errno is not None:
        return os.strerror(error.errno)
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
