"""`kvist bench serve` as programs and people run it, against a small real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess

import pytest

from fake_openai import FakeServer, fake_server

Cli = Callable[..., "CompletedProcess[str]"]
Refused = Callable[..., str]

SMALL = ("--requests", "4", "--prompt-tokens", "8", "--output-tokens", "4")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as made:
        yield made


def test_help_of_both(cli: Cli) -> None:
    serve, bench = cli("bench", "serve", "--help"), cli("bench", "--help")
    assert (serve.returncode, bench.returncode) == (0, 0)
    assert "Usage: kvist bench serve [OPTIONS]" in serve.stdout and "--url" in serve.stdout
    assert "Usage: kvist bench [OPTIONS]" in bench.stdout and "--url" not in bench.stdout
    assert "`kvist bench serve` measures a server" in " ".join(bench.stdout.split())


def test_json(cli: Cli, server: FakeServer) -> None:
    done = cli(
        "bench", "serve", "--url", server.url, *SMALL, "--workload", "multi-turn", "--turns", "2", "--concurrency", "1",
        "--seed", "7", "--goodput-ttft-ms", "60000", "--goodput-itl-ms", "60000", "--json",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert {"url", "model", "server_version", "plan", "client", "cold", "warm", "texts"} <= found.keys()
    assert (found["model"], found["plan"]["turns"], found["plan"]["seed"]) == ("twig", 2, 7)
    assert found["plan"]["goodput_ttft"] == 60.0
    assert found["cold"]["goodput_share"] == 1.0 and found["warm"]["hit_rate"] == 1.0
    assert found["texts"]["equal"] == 4
    assert {"machine", "threads", "commit"} == found["client"].keys()


def test_a_table(cli: Cli, server: FakeServer) -> None:
    done = cli(
        "bench", "serve", "--url", server.url, *SMALL, "--prefixes", "2", "--prefix-tokens", "9", "--no-ignore-eos"
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = done.stdout.splitlines()
    assert rows[0].split() == ["cold", "warm"]
    labels = [row[:29].rstrip() for row in rows]
    assert {"first token, p50", "between tokens, p99", "output tokens", "prompt tokens cached"} <= set(labels)
    assert "requests within the limits" not in labels  # none are given
    cached = rows[labels.index("prompt tokens cached")].split()
    assert cached[-2:] == ["100.00", "%"]
    assert rows[-3] == "4 of 4 warm texts equal the cold ones"
    assert rows[-2] == "prefix: 4 requests, 8 at once, 2 prefixes of 9 tokens, 8 tokens each and 4 to answer, seed 0"
    assert rows[-1].startswith(f"twig at {server.url} (version 1.2.3); client: ")
    assert all("ignore_eos" not in body for body in server.bodies)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--turns", "2"], "--turns goes with --workload multi-turn, not with prefix"),
        (["--workload", "random", "--prefix-tokens", "9"], "--prefix-tokens goes with --workload prefix"),
        (["--workload", "multi"], "did you mean multi-turn"),
        (["--concurrency", "2", "--request-rate", "1"], "give one"),
        (["--request-rate", "-1"], "above 0"),
        (["--requests", "0"], "--requests"),
        (["--model", "twigs"], "did you mean twig"),
        (["--url", "twig"], "names no server"),
    ],
)
def test_what_cannot_be_meant(refused: Refused, server: FakeServer, arguments: list[str], says: str) -> None:
    assert says in refused(2, "bench", "serve", "--url", server.url, *SMALL, *arguments)


def test_errors_say_what_to_do(refused: Refused, server: FakeServer) -> None:
    assert "Missing option '--url'" in refused(2, "bench", "serve")
    server.key = "secret"
    assert "give it with --api-key" in refused(1, "bench", "serve", "--url", server.url)
    assert "start it, or give another --url" in refused(1, "bench", "serve", "--url", "http://127.0.0.1:1")
