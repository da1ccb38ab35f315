"""What happens to pages and requests, told through one small bounded channel.

The cache and the engine emit; counters, reports, metrics and the live page listen. An emitter asks first::

    if channel.listening:
        channel.emit(EventKind.PAGE_EVICTED, page=7)

so that nothing is built, and nothing costs anything, while nobody listens. A listener that does not keep up loses its
oldest events, never the emitter's time; `Subscription.dropped` says how many.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from types import TracebackType

from kvist.errors import UsageError


class EventKind(StrEnum):
    """Everything that can be told. Pages are told by the cache manager, requests by the engine."""

    PAGE_ALLOCATED = "page.allocated"  # detail: the page it is a copy of, if it is one
    PAGE_SHARED = "page.shared"  # one more owner
    PAGE_SEALED = "page.sealed"  # full and published; detail: its content key, hexadecimal
    PAGE_HIT = "page.hit"  # count: tokens found in the cache for a request, of detail asked
    PAGE_EVICTED = "page.evicted"  # its content is forgotten
    PAGE_FREED = "page.freed"  # its last owner left, and it was not published
    REQUEST_QUEUED = "request.queued"
    REQUEST_STARTED = "request.started"
    REQUEST_TOKEN = "request.token"  # detail: the token id
    REQUEST_VERIFIED = "request.verified"  # count: drafts that were right, of detail drafted
    REQUEST_PREEMPTED = "request.preempted"
    REQUEST_FINISHED = "request.finished"  # detail: why


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `time` is `time.monotonic()`, in seconds; `count` is in tokens or in things.

    A page is named by its id and its group of layers.
    """

    kind: EventKind
    time: float
    request: str | None = None
    page: int | None = None
    count: int = 1
    detail: int | str | None = None
    group: int = 0


class Subscription:
    """One listener's queue of at most `capacity` events. Close it, or use it in a ``with`` statement."""

    def __init__(self, channel: EventChannel, capacity: int) -> None:
        self.dropped = 0
        self._channel = channel
        self._events: deque[Event] = deque(maxlen=capacity)
        # deque is safe by itself; the lock makes "full, so one is lost" and the append one step. Held for O(1) only.
        self._lock = Lock()

    def drain(self) -> list[Event]:
        """Take all events that are waiting, oldest first."""
        with self._lock:
            taken, self._events = self._events, deque(maxlen=self._events.maxlen)
        return list(taken)

    def close(self) -> None:
        """Stop listening. What is waiting can still be drained; closing twice does nothing."""
        self._channel._leave(self)

    def _put(self, event: Event) -> None:
        with self._lock:
            self.dropped += len(self._events) == self._events.maxlen
            self._events.append(event)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class EventChannel:
    """Carries events from any thread to every subscription. `listening` is true while there is one."""

    def __init__(self) -> None:
        self.listening = False
        self._subscriptions: tuple[Subscription, ...] = ()  # replaced, never changed: emitters read it without a lock
        self._lock = Lock()

    def subscribe(self, capacity: int = 4096) -> Subscription:
        """Listen from now on, keeping at most `capacity` events between two drains."""
        if capacity < 1:
            raise UsageError(f"capacity of a subscription is {capacity}: give at least 1")
        subscription = Subscription(self, capacity)
        with self._lock:
            self._subscriptions += (subscription,)
            self.listening = True
        return subscription

    def emit(
        self,
        kind: EventKind,
        *,
        request: str | None = None,
        page: int | None = None,
        count: int = 1,
        detail: int | str | None = None,
        group: int = 0,
    ) -> None:
        """Hand one event to every listener. Ask `listening` first: it saves building the arguments."""
        event = Event(kind, time.monotonic(), request, page, count, detail, group)
        for subscription in self._subscriptions:
            subscription._put(event)

    def _leave(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(other for other in self._subscriptions if other is not subscription)
            self.listening = bool(self._subscriptions)
