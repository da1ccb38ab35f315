"""One run against one server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from kvist.bench.serve.answer import Answer, Failure
from kvist.bench.serve.http import Client
from kvist.bench.serve.load import Ask, Pass, ask, cold_pass, warm_pass
from kvist.bench.serve.report import as_json, errors
from kvist.bench.serve.server import meet
from kvist.bench.serve.work import Plan, conversations
from kvist.errors import ServerError

Progress = Callable[[str, int, int], None]


def measure(
    url: str, plan: Plan, model: str | None, api_key: str | None, timeout: float, progress: Progress
) -> dict[str, Any]:
    """The figures of `plan` on the server at `url`, as `report.as_json` has them.

    timeout: seconds that a request may take. Raises UsageError, and ServerError where the server does not answer.
    """
    return asyncio.run(_measure(Client(url, api_key, timeout), url, plan, model, progress))


async def _measure(client: Client, url: str, plan: Plan, model: str | None, progress: Progress) -> dict[str, Any]:
    nonce = secrets.token_hex(4)  # not by the seed: a run must find nothing that another left in the server's cache
    try:
        progress("asking the server", 0, 0)
        server = await meet(client, url, model, plan, nonce)
        texts = conversations(plan, server.tokens_per_word, nonce)
        cold = await cold_pass(_counted(client, "cold", plan, progress), server.model, plan, texts)
        _check(cold, url)
        warm = await warm_pass(_counted(client, "warm", plan, progress), plan, cold)
    finally:
        client.close()
    return as_json(url, server, plan, nonce, cold, warm)


def _counted(client: Client, name: str, plan: Plan, progress: Progress) -> Ask:
    """Ask, and say how many requests have their answer."""
    done = 0
    progress(name, done, plan.requests)

    async def asking(body: bytes) -> Answer | Failure:
        nonlocal done
        found = await ask(client, body)
        progress(name, done := done + 1, plan.requests)
        return found

    return asking


def _check(cold: Pass, url: str) -> None:
    """Where nothing at all was answered, there is nothing to tell."""
    found = [exchange.found for exchange in cold.exchanges]
    if not any(isinstance(each, Answer) for each in found):
        first = errors(found)[0]
        raise ServerError(
            f"the server at {url} answered none of {len(found)} requests ({first['kind']}): {first['first']}"
        )
