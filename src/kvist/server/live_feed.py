"""`GET /live/feed`: the engine as it is, and then what changes, ten times a second, to whoever looks.

::

    engine's thread                      event loop
    Tracker.tell  ◄── call, every 0.1 s ─── Broadcaster ──► Viewer.queue ──► client 1    each at its own pace:
                                               one for all  └► Viewer.queue ──► client 2    who is late starts anew

Nothing listens and nothing is asked while nobody looks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from kvist.engine.checks import salt_bytes
from kvist.llm import LLM
from kvist.server.failures import ApiError
from kvist.server.live_tracker import Telling, Tracker
from kvist.server.logs import log
from kvist.server.service import Service
from kvist.server.stream import PieceStream, encoded
from kvist.server.worker import UnavailableError

EVERY = 0.1  # seconds between two tellings
HEARTBEAT = 15.0  # seconds without one, after which a sign of life is sent
ALIVE = b'data: {"type":"alive"}\n\n'
BEHIND = 30  # tellings that may wait for a viewer; then it gets a snapshot instead
MOST_VIEWERS = 64


def routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(include_in_schema=False)
    broadcaster = Broadcaster(service)

    @router.get("/live/feed")
    async def feed(request: Request) -> Response:
        viewer = broadcaster.join(salt_bytes(service.salt(request, None)))
        return PieceStream(viewer.pieces(), partial(broadcaster.leave, viewer))

    return router


class Viewer:
    """One who looks, and sees the requests under one salt by name. `queue` is what waits to be written."""

    def __init__(self, salt: bytes) -> None:
        self.salt, self.fresh, self.ended = salt, True, False
        self.queue: deque[bytes] = deque()
        self._bell = asyncio.Event()

    async def take(self) -> bytes:
        """All that waits to be written, or a sign of life; nothing at the end."""
        if not self.queue and not self.ended:
            self._bell.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._bell.wait()
        data = b"".join(self.queue)
        self.queue.clear()
        return data or (b"" if self.ended else ALIVE)

    async def pieces(self) -> AsyncIterator[bytes]:
        """What it is told, as it comes, with a sign of life where nothing does."""
        while data := await self.take():
            yield data

    def put(self, data: bytes) -> None:
        """Add a telling; one too many, and all are replaced by a snapshot the next time."""
        self.queue.append(data)
        if len(self.queue) > BEHIND:
            self.queue.clear()
            self.fresh = True
        self._bell.set()

    def end(self) -> None:
        """There is nothing more to come."""
        self.ended = True
        self._bell.set()


class Broadcaster:
    """Of one server. Runs a task while there are viewers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._viewers: set[Viewer] = set()
        self._task: asyncio.Task[None] | None = None

    def join(self, salt: bytes) -> Viewer:
        """Begin to look. Raises UnavailableError where there is no engine to look at, ApiError where too many do."""
        self._service.worker.require()
        if len(self._viewers) >= MOST_VIEWERS:
            raise ApiError(429, f"{MOST_VIEWERS} look already: try again later", code="too_many_viewers")
        viewer = Viewer(salt)
        self._viewers.add(viewer)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Look no more."""
        self._viewers.discard(viewer)

    async def _run(self) -> None:
        service, tracker = self._service, None
        try:
            tracker = await service.worker.call(lambda llm: Tracker(llm, service.worker.history, service.settings.name))
            while self._viewers and not service.worker.leaving:
                whole = any(viewer.fresh for viewer in self._viewers)
                delta, snapshot = await service.worker.call(partial(_tell, tracker, whole))
                self._hand_out(delta, snapshot)
                await asyncio.sleep(EVERY)
        except UnavailableError:
            return  # the engine stops, or has broken down, which is told elsewhere
        except Exception as error:
            log("live feed failed", level="error", error=f"{type(error).__name__}: {error}", exc_info=error)
        finally:
            if tracker is not None:
                tracker.close()
            self._task = None
            for viewer in self._viewers:
                viewer.end()
            self._viewers.clear()

    def _hand_out(self, delta: Telling | None, snapshot: Telling | None) -> None:
        written: dict[tuple[bytes, bool], bytes] = {}
        for viewer in self._viewers:
            told = snapshot if viewer.fresh or delta is None else delta
            if told is None:
                continue
            viewer.fresh = False
            key = viewer.salt, told is snapshot
            if key not in written:
                written[key] = _written(told, viewer.salt)
            viewer.put(written[key])


def _tell(tracker: Tracker, whole: bool, _: LLM) -> tuple[Telling | None, Telling | None]:
    return tracker.tell(whole=whole)


def _written(told: Telling, salt: bytes) -> bytes:
    """A telling for those who see what is under a salt; of all others' requests they see only how long they are."""
    sequences = [
        {**one, "mine": own == salt, "request": one["request"] if own == salt else None} for own, one in told.sequences
    ]
    requests = [record.as_json(record.salt == salt) for record in told.requests]
    return f"data: {encoded({**told.body, 'sequences': sequences, 'requests': requests})}\n\n".encode()
