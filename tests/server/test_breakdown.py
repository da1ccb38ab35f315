"""An engine that breaks down: whoever waits is told, the log says why, and the server leaves so that another starts."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import httpx
import pytest

import serving
from kvist import LLM, SamplingParams
from kvist.errors import InternalError
from kvist.server.app import create_app
from kvist.server.mailbox import raise_error
from kvist.server.metrics import ServerMetrics
from kvist.server.service import Service
from kvist.server.settings import ServerSettings
from kvist.server.worker import EngineWorker, Order

FAULTY = """
import time
from kvist.engine.engine import Engine

step = Engine.step

def faulty(self):
    time.sleep(0.02)
    if len(self.answers.requests) == 2:
        raise ZeroDivisionError("a fault")
    return step(self)

Engine.step = faulty
from kvist.cli.main import main
main()
"""  # the same program, whose engine breaks down when two requests run
ASKED = {"prompt": [1, 2, 3], "max_tokens": 100, "ignore_eos": True}


def test_the_server_tells_its_clients_and_leaves(tiny_path: Path) -> None:
    with serving.serving(str(tiny_path), program=(sys.executable, "-c", FAULTY)) as server, server.client() as client:
        assert client.get("/health").status_code == 200
        with client.stream("POST", "/v1/completions", json={**ASKED, "stream": True}) as stream:
            lines = filter(None, stream.iter_lines())
            begun = [next(lines) for _ in range(3)]
            whole = client.post("/v1/completions", json=ASKED)
            error = whole.json()["error"]
            assert whole.status_code == 500 and error["type"] == "internal_error"
            assert error["message"] == "the engine broke down (ZeroDivisionError): the log says more"
            *events, done = [*begun, *lines]
        told = [json.loads(event.removeprefix("data: ")) for event in events]
        assert all("choices" in one for one in told[:-1]) and told[-1] == {"error": error} and done == "data: [DONE]"
        assert server.process.wait(10) == 1
        logged = server.log.read_text().splitlines()
        (line,) = (json.loads(line) for line in logged if '"engine broke down"' in line)
        assert line["level"] == "error" and line["error"] == "ZeroDivisionError: a fault"
        assert "in faulty" in line["traceback"]
        assert logged[-1].startswith("kvist: internal error (InternalError: the engine broke down (ZeroDivisionError)")


def test_nothing_is_taken_any_more(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        worker = EngineWorker(lambda: LLM(tiny_path), ServerMetrics())
        app = create_app(Service(worker, ServerSettings("tiny"), worker.metrics))
        worker.start()
        llm = await asyncio.wrap_future(worker.loaded)

        def broken() -> None:
            raise ZeroDivisionError

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny") as client:
            assert (await client.get("/health")).status_code == 200
            monkeypatch.setattr(llm.engine, "step", broken)
            mailbox = await worker.submit([Order("a", [1, 2, 3], SamplingParams())], eager=False)
            ((_, ended),) = await mailbox.take()
            with pytest.raises(InternalError, match="broke down") as raised:
                raise_error(ended)
            assert isinstance(raised.value.__cause__, ZeroDivisionError) and worker.orders == 0
            assert (await client.get("/health")).status_code == 503
            refused = await client.post("/v1/completions", json=ASKED)
            assert refused.status_code == 503 and "no engine" in refused.json()["error"]["message"]
            assert refused.headers["retry-after"]
        begin = time.monotonic()
        await asyncio.to_thread(worker.stop)
        assert time.monotonic() - begin < 5

    asyncio.run(run())
