"""Many streams at once: every one says what it says alone, and nothing is lost or mixed up."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from kvist import LLM, SamplingParams
from serving import Served

STREAMS = 200
TOKENS = 12


def prompt(number: int) -> str:
    """Every fourth shares its beginning with others, and every fifth is asked twice."""
    number -= number % 5 == 4
    shared = "In the harbour lay nine ships, each with a cargo of its own. " * 3 if number % 4 == 0 else ""
    return f"{shared}Number {number} of the list is"


async def stream(client: httpx.AsyncClient, number: int) -> tuple[str, str, int]:
    """The text, why it ended, and the tokens that the server counts."""
    text, reason, count = "", "", 0
    asked = {
        "prompt": prompt(number), "max_tokens": TOKENS, "temperature": 0.8, "seed": number - (number % 5 == 4),
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    async with client.stream("POST", "/v1/completions", json=asked) as answer:
        assert answer.status_code == 200, await answer.aread()
        ids = set()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            ids.add(event["id"])
            for choice in event["choices"]:
                text += choice["text"]
                reason = choice["finish_reason"] or reason
            if not event["choices"]:
                count = event["usage"]["completion_tokens"]
        assert len(ids) == 1
    return text, reason, count


@pytest.mark.slow
def test_two_hundred_streams_say_what_each_says_alone(served: Served, llm: LLM) -> None:
    async def run() -> list[tuple[str, str, int]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=served.url, timeout=300, limits=limits) as client:
            return await asyncio.gather(*(stream(client, number) for number in range(STREAMS)))

    found = asyncio.run(run())
    alone = {}
    for number in range(STREAMS):
        seed = number - (number % 5 == 4)
        if seed not in alone:
            params = SamplingParams(max_tokens=TOKENS, temperature=0.8, seed=seed)
            output = llm.generate(prompt(number), params)[0].outputs[0]
            alone[seed] = (output.text, output.finish_reason, len(output.token_ids))
    assert found == [alone[number - (number % 5 == 4)] for number in range(STREAMS)]
    assert served.settled()["pages"]["live"] == 0
