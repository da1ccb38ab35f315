"""How a stream ends: it is over, its client leaves, its client takes nothing, or something breaks on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from kvist.server import stream
from kvist.server.failures import ApiError
from kvist.server.stream import EventStream, PieceStream


async def counted(pieces: int) -> AsyncIterator[bytes]:
    for number in range(pieces):
        yield b"%d" % number


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"more"
        await asyncio.sleep(0)


async def stays() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def leaves() -> Message:
    await asyncio.sleep(0.02)
    return {"type": "http.disconnect"}


async def ended(made: PieceStream, closed: list[bool], receive=stays, most: int | None = None) -> list[Message]:
    """What was sent until the stream was closed; a client that stalls takes `most` messages and then none."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        if most is not None and len(sent) >= most:
            await asyncio.Event().wait()
        sent.append(message)

    async with asyncio.timeout(5):
        await made({"type": "http"}, receive, send)
    assert closed == [True]
    return sent


def test_each_piece_is_sent_and_an_end() -> None:
    async def run() -> None:
        closed: list[bool] = []
        sent = await ended(PieceStream(counted(3), lambda: closed.append(True)), closed)
        assert [message.get("body") for message in sent] == [None, b"0", b"1", b"2", b""]
        assert [message.get("more_body") for message in sent[1:]] == [True, True, True, False]
        names = {name for name, _ in sent[0]["headers"]}
        assert b"content-length" not in names and b"cache-control" in names

    asyncio.run(run())


def test_a_client_that_leaves_ends_it() -> None:
    async def run() -> None:
        closed: list[bool] = []
        sent = await ended(PieceStream(endless(), lambda: closed.append(True)), closed, leaves)
        assert sent[-1]["more_body"]

    asyncio.run(run())


def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STALLED", 0.05)

    async def run() -> None:
        closed: list[bool] = []
        sent = await ended(PieceStream(endless(), lambda: closed.append(True)), closed, most=3)
        assert len(sent) == 3

    asyncio.run(run())


def test_a_connection_that_breaks_ends_it() -> None:
    async def run() -> None:
        closed: list[bool] = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                raise ConnectionResetError

        await PieceStream(endless(), lambda: closed.append(True))({"type": "http"}, stays, send)
        assert closed == [True]

    asyncio.run(run())


@pytest.mark.parametrize("done", [True, False])
def test_an_error_on_the_way_becomes_an_event(done: bool) -> None:
    async def broken() -> AsyncIterator[list[dict[str, object]]]:
        yield [{"a": 1}, {"a": 2}]
        raise ApiError(408, "too long", code="timeout")

    async def run() -> None:
        closed: list[bool] = []
        made = EventStream(broken(), lambda: closed.append(True), done=done, name=lambda one: f"n{one['a']}")
        first, error, *rest = (message["body"] for message in (await ended(made, closed))[1:])
        assert first == b'event: n1\ndata: {"a":1}\n\nevent: n2\ndata: {"a":2}\n\n'
        assert error.startswith(b'data: {"error":{"message":"too long"') and b'"code":"timeout"' in error
        assert rest == ([b"data: [DONE]\n\n", b""] if done else [b""])

    asyncio.run(run())
