"""One client's orders under way: what came since it last looked, and an end whatever happens to the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from kvist.server.failures import ApiError
from kvist.server.mailbox import Ended, Item, Mailbox, raise_error
from kvist.server.settings import ServerSettings
from kvist.server.worker import EngineWorker, Order


class Answering:
    """Made by `begin`. Close it, whatever happens: what still runs then is stopped and its pages are freed."""

    def __init__(self, worker: EngineWorker, orders: Sequence[Order], mailbox: Mailbox, timeout: float) -> None:
        self.orders = orders
        self._worker, self._mailbox, self._timeout = worker, mailbox, timeout
        self._late = self._closed = False
        self._clock = asyncio.get_running_loop().call_later(timeout, self._time_out)

    @classmethod
    async def begin(
        cls, worker: EngineWorker, orders: Sequence[Order], settings: ServerSettings, *, eager: bool
    ) -> Answering:
        """Queue orders. eager: hand tokens out as they come. ApiError where the queue is full."""
        if worker.taken + len(orders) > settings.max_queue:
            full = f"{worker.taken} requests wait or run, and {settings.max_queue} may: try again later"
            raise ApiError(429, full, code="queue_full")
        worker.taken += len(orders)  # now, not when the engine's thread comes to it: many may ask at once
        submitting = asyncio.ensure_future(worker.submit(orders, eager=eager))
        try:
            mailbox = await asyncio.shield(submitting)
        except BaseException as error:
            worker.taken -= len(orders)
            if isinstance(error, asyncio.CancelledError):  # the client has left meanwhile
                worker.cancel([order.request_id for order in orders])
            raise
        return cls(worker, orders, mailbox, settings.request_timeout)

    async def items(self) -> AsyncIterator[list[Item]]:
        """What comes, all there is at a time. Raises what went wrong with an order."""
        while items := await self._mailbox.take():
            for _, item in items:
                if isinstance(item, Ended):
                    self._check(item)
            yield items

    def close(self) -> None:
        """Stop what still runs; idempotent."""
        self._clock.cancel()
        if not self._closed:
            self._closed = True
            self._worker.taken -= len(self.orders)
        if self._mailbox.open:
            self._worker.cancel([order.request_id for order in self.orders])

    def _check(self, ended: Ended) -> None:
        raise_error(ended)
        if ended.output is None:
            if self._late:
                raise ApiError(
                    408, f"the answer took longer than {self._timeout:g} seconds: ask for less", code="timeout"
                )
            raise ApiError(503, "the server is shutting down", code="unavailable")

    def _time_out(self) -> None:
        self._late = True
        self.close()
