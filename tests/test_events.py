from __future__ import annotations

import sys
import threading

import pytest

from kvist.errors import UsageError
from kvist.events import EventChannel, EventKind


def test_nobody_listens_until_somebody_subscribes_and_after_the_last_left() -> None:
    channel = EventChannel()
    assert not channel.listening
    with channel.subscribe() as first, channel.subscribe():
        assert channel.listening
        first.close()
        assert channel.listening
    assert not channel.listening


def test_events_arrive_in_order_with_what_was_told() -> None:
    channel = EventChannel()
    with channel.subscribe() as listener:
        channel.emit(EventKind.PAGE_ALLOCATED, request="a", page=3)
        channel.emit(EventKind.REQUEST_TOKEN, request="a", detail=42)
        allocated, token = listener.drain()
    assert (allocated.kind, allocated.request, allocated.page, allocated.count) == ("page.allocated", "a", 3, 1)
    assert (token.kind, token.detail, token.page) == ("request.token", 42, None)
    assert allocated.time <= token.time
    assert listener.drain() == []


def test_every_listener_gets_every_event_from_its_own_beginning() -> None:
    channel = EventChannel()
    early = channel.subscribe()
    channel.emit(EventKind.PAGE_FREED, page=1)
    late = channel.subscribe()
    channel.emit(EventKind.PAGE_FREED, page=2)
    assert [event.page for event in early.drain()] == [1, 2]
    assert [event.page for event in late.drain()] == [2]


def test_a_slow_listener_loses_its_oldest_events_and_knows_how_many() -> None:
    channel = EventChannel()
    listener = channel.subscribe(capacity=3)
    for page in range(10):
        channel.emit(EventKind.PAGE_FREED, page=page)
    assert listener.dropped == 7
    assert [event.page for event in listener.drain()] == [7, 8, 9]
    channel.emit(EventKind.PAGE_FREED, page=10)
    assert (listener.dropped, len(listener.drain())) == (7, 1)


def test_what_waits_can_be_drained_after_close_and_nothing_more_arrives() -> None:
    channel = EventChannel()
    listener = channel.subscribe()
    channel.emit(EventKind.PAGE_FREED, page=1)
    listener.close()
    listener.close()
    channel.emit(EventKind.PAGE_FREED, page=2)
    assert [event.page for event in listener.drain()] == [1]


def test_a_subscription_needs_room() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        EventChannel().subscribe(capacity=0)


def test_no_event_of_many_threads_is_lost_uncounted() -> None:
    channel = EventChannel()
    listener = channel.subscribe(capacity=64)
    emitters = [
        threading.Thread(target=lambda: [channel.emit(EventKind.PAGE_FREED) for _ in range(2000)]) for _ in range(4)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in emitters:
            thread.start()
        drained = 0
        while any(thread.is_alive() for thread in emitters):
            drained += len(listener.drain())
        drained += len(listener.drain())
    finally:
        sys.setswitchinterval(interval)
    assert drained + listener.dropped == 8000
