"""What the engine's thread hands to a waiting client: tokens as they come, taken in one go by who writes them out.

A client that reads slowly finds more in its box the next time; nothing is lost, nobody waits for it, and no box grows
beyond the answer that was asked for (`max_tokens` of each branch), which admission has bounded by the model's context.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from kvist.errors import KvistError
from kvist.outputs import BeamSearchOutput, RequestOutput, TextChunk


@dataclass(frozen=True, slots=True)
class Ended:
    """The last thing that an order gets: its whole output (None where it was stopped), or what went wrong."""

    output: RequestOutput | BeamSearchOutput | None = None
    error: KvistError | None = None


Item = tuple[int, TextChunk | Ended]
"""Which of the orders, and what came."""


class Mailbox:
    """Of one client with `orders` orders. The engine's thread puts, one task of the event loop takes.

    eager: wake the taker for every step; else only when all has ended, which costs less.
    """

    def __init__(self, orders: int, *, eager: bool) -> None:
        self.eager, self.open = eager, orders
        self._loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()  # appended to by one thread, popped from by another: both are atomic
        self._waiter: asyncio.Future[None] | None = None

    def put(self, order: int, item: TextChunk | Ended) -> bool:
        """From the engine's thread. Whether the taker should be woken."""
        self._items.append((order, item))
        self.open -= isinstance(item, Ended)
        return self.eager or not self.open

    def wake(self) -> None:
        """In the event loop: somebody has put something."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Item]:
        """All that has come, at least one item. An empty list after the end."""
        while not self._items:
            if not self.open:
                return []
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken = []
        while self._items:
            taken.append(self._items.popleft())
        return taken


def raise_error(ended: Ended) -> None:
    """Raise what went wrong with an order, if something did."""
    if ended.error is not None:
        raise ended.error
