"""What a server costs over the library: the same prompts, the same tokens, round by round in turns.

    python benchmarks/server/run.py smollm2 --weights f16 --rounds 5

starts `kvist serve` and loads the same model here, then measures one and the other alternately:

- `streams_16`: tokens a second of 16 answers at once; the server streams each of them to a client in this process.
- `first_token`: seconds to the first token of a short prompt that is in the cache, alone.
- `first_token_2048`: the same behind a prefix of 2,048 tokens.

It prints each side's median and what the server adds, a table and with --json one line. The client's work is part of
what is measured: it runs on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from kvist import LLM, SamplingParams
from kvist.bench.serve.answer import Answer, read
from kvist.bench.serve.http import Client
from kvist.cli.serve import STEP_TOKENS

STREAMS, TOKENS = 16, 128


@contextmanager
def server(model: str, arguments: list[str]):
    """A server's address; it is stopped in the end."""
    kvist = str(Path(sys.executable).with_name("kvist"))
    process = subprocess.Popen(
        [kvist, "serve", model, "--port", "0", "--log-level", "warning", *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        begin = time.perf_counter()
        for line in process.stderr:
            if " at http" in line:
                yield line.split(" at ")[1].strip(), time.perf_counter() - begin
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(30)


async def asked(client: Client, model: str, messages: list[dict], tokens: int) -> Answer:
    """One answer, streamed."""
    body = {
        "model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    found = read(await client.post("/v1/chat/completions", json.dumps(body).encode()))
    if not isinstance(found, Answer):
        raise SystemExit(f"the server failed: {found}")
    return found


def streams(run: int) -> list[list[dict]]:
    """What is asked at once, new in every round."""
    texts = [f"Run {run}. Tell me about number {i} in a few words." for i in range(STREAMS)]
    return [[{"role": "user", "content": text}] for text in texts]


def library_streams(llm: LLM, run: int) -> tuple[float, list[str]]:
    """Tokens a second, and the texts."""
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    begin = time.perf_counter()
    outputs = llm.generate([llm.chat_ids(messages) for messages in streams(run)], params)
    return STREAMS * TOKENS / (time.perf_counter() - begin), [output.outputs[0].text for output in outputs]


def server_streams(client: Client, loop: asyncio.Runner, model: str, run: int) -> tuple[float, list[str]]:
    """The same through the server."""

    async def every() -> list[Answer]:
        return await asyncio.gather(*(asked(client, model, messages, TOKENS) for messages in streams(run)))

    begin = time.perf_counter()
    answers = loop.run(every())
    return STREAMS * TOKENS / (time.perf_counter() - begin), [answer.text for answer in answers]


def library_first(llm: LLM, messages: list[dict]) -> float:
    """Seconds to the first token."""
    begin = time.perf_counter()
    chunks = llm.stream_chat(messages, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    while not next(chunks).text:  # as the server's client sees it: some first tokens have no text yet
        pass
    took = time.perf_counter() - begin
    for _ in chunks:
        pass
    return took


def server_first(client: Client, loop: asyncio.Runner, model: str, messages: list[dict]) -> float:
    """The same through the server."""
    return loop.run(asked(client, model, messages, 2)).ttft


def repeated(measure: Callable[[], float], times: int = 9) -> float:
    """The median of several."""
    return statistics.median(measure() for _ in range(times))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--weights", default="f16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    arguments = ["--weights", given.weights]
    short = [{"role": "user", "content": "What is a twig?"}]
    long = [{"role": "user", "content": "one two three four five six seven eight " * 256 + "What is a twig?"}]
    found: dict[str, tuple[list[float], list[float]]] = {}
    with (
        server(given.model, arguments) as (url, ready),
        LLM(given.model, weights=given.weights, max_num_batched_tokens=STEP_TOKENS) as llm,
        asyncio.Runner() as loop,
    ):
        client = Client(url)
        for run in range(given.rounds + 1):  # the first one warms up
            mine, texts = library_streams(llm, run)
            others, answers = server_streams(client, loop, given.model, run)
            if texts != answers:
                raise SystemExit("the server's texts are not the library's")
            now = {"streams_16": (mine, others)}
            for name, messages in (("first_token", short), ("first_token_2048", long)):
                library_first(llm, messages), server_first(client, loop, given.model, messages)
                now[name] = (
                    repeated(lambda asked=messages: library_first(llm, asked)),
                    repeated(lambda asked=messages: server_first(client, loop, given.model, asked)),
                )
            for name, pair in now.items():
                if run:
                    sides = found.setdefault(name, ([], []))
                    sides[0].append(pair[0])
                    sides[1].append(pair[1])
        prompt_tokens = len(llm.chat_ids(long))
        client.close()
    report(found, ready, prompt_tokens, given)


def report(found: dict[str, tuple[list[float], list[float]]], ready: float, prompt_tokens: int, given) -> None:
    """What was found, as medians of all rounds; overheads are medians of pairs."""
    results = {"ready_seconds": round(ready, 2), "model": given.model, "weights": given.weights, "rounds": given.rounds}
    print(f"kvist serve {given.model}: ready after {ready:.2f} s (kernels compiled), texts equal")
    mine, others = (statistics.median(side) for side in found["streams_16"])
    ratio = statistics.median(b / a for a, b in zip(*found["streams_16"], strict=True))
    print(f"streams_16        library {mine:7.1f} tok/s   server {others:7.1f} tok/s   overhead {1 - ratio:6.1%}")
    results["streams_16"] = {"library_tokens_per_s": mine, "server_tokens_per_s": others, "overhead": 1 - ratio}
    for name in ("first_token", "first_token_2048"):
        mine, others = (1000 * statistics.median(side) for side in found[name])
        more = 1000 * statistics.median(b - a for a, b in zip(*found[name], strict=True))
        note = f"   (prompt of {prompt_tokens} tokens)" if name.endswith("2048") else ""
        print(f"{name:17} library {mine:7.2f} ms      server {others:7.2f} ms      more {more:+.2f} ms{note}")
        results[name] = {"library_ms": mine, "server_ms": others, "more_ms": more}
    if given.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
