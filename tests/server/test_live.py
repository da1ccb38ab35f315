"""The live feed: who looks, what it costs nobody, and what one tenant never sees of another."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
from kvist import LLM, SamplingParams
from kvist.server import live_feed
from kvist.server.failures import ApiError
from kvist.server.live_feed import Broadcaster, Viewer
from kvist.server.metrics import ServerMetrics
from kvist.server.service import Service
from kvist.server.settings import ServerSettings
from kvist.server.worker import EngineWorker, Order
from serving import Served

ONE, OTHER = "first-key-1", "second-key-2"
SECRET = "The treasure lies beneath the old oak by the northern gate of the town, and only three people know it. " * 3


@asynccontextmanager
async def running(model: Path) -> AsyncIterator[tuple[Service, Broadcaster]]:
    worker = EngineWorker(lambda: LLM(model), ServerMetrics())
    service = Service(worker, ServerSettings("tiny"), worker.metrics)
    worker.start()
    await asyncio.wrap_future(worker.loaded)
    try:
        yield service, Broadcaster(service)
    finally:
        await asyncio.to_thread(worker.stop)


async def told(viewer: Viewer) -> list[dict[str, Any]]:
    data = (await viewer.take()).decode()
    return [json.loads(line.removeprefix("data: ")) for line in data.split("\n\n") if line]


async def ask(service: Service, name: str, tokens: int = 4) -> None:
    mailbox = await service.worker.submit(
        [Order(name, [1, 2, 3], SamplingParams(max_tokens=tokens, ignore_eos=True))], eager=False
    )
    while await mailbox.take():
        pass


async def idle(service: Service) -> None:
    end = time.monotonic() + 5
    while service.llm.events.listening:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def test_nothing_listens_while_nobody_looks(tiny_path: Path) -> None:
    async def run() -> None:
        async with running(tiny_path) as (service, broadcaster):
            assert not service.llm.events.listening
            one, other = broadcaster.join(b""), broadcaster.join(b"")
            assert [one["type"] for one in await told(one)] == ["snapshot"]
            assert [one["type"] for one in await told(other)] == ["snapshot"]
            assert service.llm.events.listening
            broadcaster.leave(one)
            await ask(service, "a")
            assert [one["type"] for one in await told(other)] == ["delta"]
            broadcaster.leave(other)
            await idle(service)
            late = broadcaster.join(b"")
            (snapshot,) = await told(late)
            assert [one["request"] for one in snapshot["requests"]] == ["a"]
            broadcaster.leave(late)
            await idle(service)

    asyncio.run(run())


def test_nothing_is_said_where_nothing_happens(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_feed, "HEARTBEAT", 0.5)

    async def run() -> None:
        async with running(tiny_path) as (_, broadcaster):
            viewer = broadcaster.join(b"")
            assert (await told(viewer))[0]["type"] == "snapshot"
            begin = time.monotonic()
            assert await told(viewer) == [{"type": "alive"}]
            assert time.monotonic() - begin > 0.45
            broadcaster.leave(viewer)

    asyncio.run(run())


def test_who_is_late_starts_anew(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_feed, "EVERY", 0.001)
    monkeypatch.setattr(live_feed, "BEHIND", 3)

    async def run() -> None:
        async with running(tiny_path) as (service, broadcaster):
            slow, quick = broadcaster.join(b""), broadcaster.join(b"")
            await told(quick)
            kinds = list[str]()

            async def read() -> None:
                while True:
                    kinds.extend(one["type"] for one in await told(quick))

            reading = asyncio.create_task(read())
            for number in range(30):
                await ask(service, f"r{number}")
            await asyncio.sleep(0.05)
            assert len(slow.queue) <= 3
            caught = await told(slow)
            assert caught[0]["type"] == "snapshot" and len(caught[0]["requests"]) > 3
            assert kinds.count("delta") > 10 and kinds.count("delta") > 3 * kinds.count("snapshot")
            reading.cancel()
            broadcaster.leave(slow)
            broadcaster.leave(quick)

    asyncio.run(run())


def test_a_feed_ends_with_the_engine(tiny_path: Path) -> None:
    async def run() -> None:
        async with running(tiny_path) as (service, broadcaster):
            viewer = broadcaster.join(b"")
            await told(viewer)
            service.worker.cancel_all()
            async with asyncio.timeout(2):
                assert await viewer.take() == b""

    asyncio.run(run())


def test_only_so_many_may_look(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_feed, "MOST_VIEWERS", 2)

    async def run() -> None:
        async with running(tiny_path) as (_, broadcaster):
            viewers = [broadcaster.join(b"") for _ in range(2)]
            with pytest.raises(ApiError, match="2 look already"):
                broadcaster.join(b"")
            assert (await told(viewers[1]))[0]["type"] == "snapshot"
            for viewer in viewers:
                broadcaster.leave(viewer)

    asyncio.run(run())


@pytest.fixture(scope="module")
def locked(smollm2_path: Path) -> Iterator[Served]:
    with serving.serving("smollm2", "--api-key", OTHER, key=ONE) as server:
        yield server


def client(server: Served, key: str) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def first(one: httpx.Client) -> dict[str, Any]:
    with one.stream("GET", "/live/feed") as stream:
        return json.loads(next(line for line in stream.iter_lines() if line).removeprefix("data: "))


@pytest.mark.model
def test_a_tenant_reads_only_its_own_pages(locked: Served) -> None:
    with client(locked, ONE) as one, client(locked, OTHER) as other, ThreadPoolExecutor(1) as pool:
        body = {"prompt": SECRET, "max_tokens": 60, "ignore_eos": True, "temperature": 0}
        answer = pool.submit(lambda: one.post("/v1/completions", json=body))
        while not (running := first(other)["sequences"]) or running[0]["state"] == "waiting":
            time.sleep(0.02)
        assert [(s["mine"], s["request"]) for s in running] == [(False, None)]
        live = [page for s in running for start, pages in s["pages"] for page in pages]
        seen = [other.get(f"/live/page/0/{page}").json() for page in live]
        assert seen and all(page["tokens"] is None and page["key"] is None and page["start"] is None for page in seen)
        assert other.get("/live/kv").json() == {"columns": None}
        assert other.get("/live/tree").json()["tips"] == []
        name = answer.result().json()["id"]
        other.post("/v1/completions", json={**body, "prompt": SECRET[:40] + " another", "max_tokens": 2})
        other.post("/v1/completions", json={**body, "prompt": SECRET[:30] + " third", "max_tokens": 2})
        everything = json.dumps(first(other)) + other.get("/live/tree").text
        touched = first(other)["pages"][0]["touched"]
        everything += "".join(other.get(f"/live/page/0/{page}").text for page in range(touched))
        assert name not in everything and "treasure lies beneath the old oak" not in everything
        records = first(other)["requests"]
        assert [(record["mine"], record["reason"] is None) for record in records] == [
            (False, True), (True, False), (True, False),
        ]  # fmt: skip
        own = "".join(
            one.get(f"/live/page/0/{page}").json().get("text", "") for page in range(touched)
        )
        assert "beneath the old oak" in own and "treasure" in one.get("/live/tree").text
        assert [record["mine"] for record in first(one)["requests"]] == [True, False, False]


@pytest.mark.model
def test_pages_that_are_not_there(served: Served) -> None:
    with served.client() as one:
        total = one.get("/cache").json()["pools"][0]["total"]
        assert one.get(f"/live/page/0/{total - 1}").json()["state"] == "free"
        for path in (f"0/{total}", "1/0", "0/-1", "-1/0"):
            assert one.get(f"/live/page/{path}").status_code == 404
        assert one.get("/live/page/x/0").status_code == 400
