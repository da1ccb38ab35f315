"""The door: who may come in, how large a request may be, what it is called, and a line of log when it leaves.

Plain ASGI: to the layers of the framework it adds one function that a token passes on its way out, and no task.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvist.server.failures import ApiError, response, told
from kvist.server.login import LOGIN_PAGE
from kvist.server.logs import log
from kvist.server.settings import ServerSettings

COOKIE = "kvist-key"
OPEN = frozenset({"/health"})  # what needs no key
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def tenant(key: str) -> str:
    """What a key's holder is called inside: nothing that the key could be read from."""
    return hashlib.sha256(b"kvist tenant\0" + key.encode()).hexdigest()[:16]


class Front:
    """Around the whole application. Puts `tenant` and `request_id` into a request's state."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        watch = _Outgoing(send, name)
        try:
            await self._enter(scope, headers, _Incoming(receive, headers, self._settings.max_body_bytes), watch, name)
        except Exception as error:
            refused = told(error)
            if refused.status == 500:
                log("request failed", level="error", request_id=name, path=scope["path"][:256], exc_info=error)
            if not watch.status:
                await response(refused)(scope, receive, watch)
            elif not watch.ended:
                raise  # something of the answer is out: the connection ends, so that nobody takes it for whole
        finally:
            if scope["path"] not in OPEN:
                watch.note(scope)

    async def _enter(self, scope: Scope, headers: Headers, receive: _Incoming, send: _Outgoing, name: str) -> None:
        receive.check()
        who = self._tenant(scope, headers)
        if who is None and scope["path"] == "/login" and scope["method"] == "POST":
            await self._login(scope, receive, send)
            return
        if who is None and scope["path"] not in OPEN:
            if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                await HTMLResponse(LOGIN_PAGE, 401)(scope, receive, send)
                return
            raise ApiError(
                401, "a valid API key is needed: send it as `Authorization: Bearer KEY`", code="invalid_api_key"
            )
        scope.setdefault("state", {}).update(tenant=who or "", request_id=name)
        await self._app(scope, receive, send)

    def _tenant(self, scope: Scope, headers: Headers) -> str | None:
        """Whose key a request brings; "" where none is needed, None where it brings none that is right."""
        if not self._settings.api_keys:
            return ""
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else _cookie(headers.get("cookie", ""))
        return self._known(given)

    def _known(self, given: str) -> str | None:
        found = None
        for key in self._settings.api_keys:  # all of them: time tells nothing
            if hmac.compare_digest(key.encode(), given.encode()):
                found = tenant(key)
        return found

    async def _login(self, scope: Scope, receive: _Incoming, send: _Outgoing) -> None:
        """Take a key from the page's form and keep it in a cookie that no script reads and no other site sends."""
        data = b""
        while (message := await receive())["type"] == "http.request":
            data += message.get("body", b"")
            if not message.get("more_body"):
                break
        key = parse_qs(data.decode("utf-8", "replace")).get("key", [""])[0]
        if self._known(key) is None:
            await HTMLResponse(LOGIN_PAGE.replace("<!--message-->", "That is not a key of this server."), 401)(
                scope, receive, send
            )
            return
        leave = RedirectResponse("/", 303)
        leave.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=scope["scheme"] == "https")
        await leave(scope, receive, send)


class _Incoming:
    """A request's body, up to a size."""

    def __init__(self, receive: Receive, headers: Headers, most: int) -> None:
        self._receive, self._most, self._came = receive, most, 0
        length = headers.get("content-length", "")
        self._announced = int(length) if length.isascii() and length.isdecimal() else 0

    def check(self) -> None:
        """Refuse what says that it is too large, before it comes."""
        if max(self._announced, self._came) > self._most:
            raise ApiError(413, f"the body is larger than {self._most:,} bytes: send less", code="body_too_large")

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._came += len(message.get("body", b""))
            self.check()
        return message


class _Outgoing:
    """What is sent, with the request's id in its head, and its status remembered."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.status, self.ended = 0, False
        self._send, self._id, self._begin = send, request_id, time.monotonic()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", self._id.encode())]}
        elif not message.get("more_body"):
            self.ended = True
        await self._send(message)

    def note(self, scope: Scope) -> None:
        """Write the line of log."""
        took = round(time.monotonic() - self._begin, 4)
        fields: dict[str, Any] = {"method": scope["method"], "path": scope["path"][:256], "status": self.status}
        log("request", request_id=self._id, **fields, seconds=took, tenant=scope.get("state", {}).get("tenant") or None)


def _cookie(header: str) -> str:
    """The key in a request's cookies."""
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
