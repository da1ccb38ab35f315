"""Run a server: load the model while already answering `/health`, take requests, and leave in good order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn

from kvist.errors import KvistError, UsageError
from kvist.llm import LLM
from kvist.server.app import create_app
from kvist.server.logs import log
from kvist.server.metrics import ServerMetrics
from kvist.server.service import Service
from kvist.server.settings import ServerSettings
from kvist.server.worker import EngineWorker


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; UsageError where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host} port {port} ({error}): give another --host or --port") from error


def serve_on(
    sock: socket.socket, load: Callable[[], LLM], settings: ServerSettings, ready: Callable[[LLM], None]
) -> None:
    """Serve until a signal says otherwise. ready: called once the model is there.

    Raises what kept it from loading, and InternalError when the engine has broken down: requests have their answers by
    then, and whoever supervises the process starts a new one.
    """
    metrics = ServerMetrics()
    worker = EngineWorker(load, metrics)
    app = create_app(Service(worker, settings, metrics))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="on", timeout_keep_alive=60, server_header=False,
        timeout_graceful_shutdown=int(settings.shutdown_timeout) or None, ws="none",
    )  # fmt: skip
    server = _Server(config, worker, settings.shutdown_timeout)

    def loaded(_: object) -> None:
        if worker.failure is None:
            ready(worker.loaded.result())
            log("ready", model=settings.name)

    worker.loaded.add_done_callback(loaded)
    server.run([sock])
    if isinstance(worker.failure, KvistError):
        raise worker.failure
    if worker.failure is not None:
        raise RuntimeError(f"{worker.failure}") from worker.failure


class _Server(uvicorn.Server):
    """uvicorn, which leaves when there is no engine. It lets answers end, then stops those that still run."""

    def __init__(self, config: uvicorn.Config, worker: EngineWorker, patience: float) -> None:
        super().__init__(config)
        self._worker, self._patience = worker, patience

    async def on_tick(self, counter: int) -> bool:
        """Whether to leave; asked ten times a second."""
        return await super().on_tick(counter) or self._worker.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new connections, then the last answers, then the engine."""
        if self._worker.ready:
            log("shutting down", running=self._worker.orders)
        for server in self.servers:
            server.close()
        end = asyncio.get_running_loop().time() + self._patience
        while self._worker.orders and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.05)
        self._worker.cancel_all()
        await super().shutdown(sockets)
