"""Clients that leave, dawdle and send nonsense; a server that is stopped, full, or just starting."""

from __future__ import annotations

import json
import random
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import serving
from kvist import LLM, SamplingParams
from serving import Served

LONG = {"prompt": "Once upon a time", "max_tokens": 3000, "temperature": 0, "ignore_eos": True}

MANY = {**LONG, "prompt": [1, 2, 3], "max_tokens": 240, "n": 16, "temperature": 1.0}  # of the tiny model


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Iterator[Served]:
    with serving.serving(str(tiny_path), "--max-queue", "8", "--served-model-name", "tiny") as server:
        yield server


def raw(server: Served, path: str, body: dict[str, object]) -> socket.socket:
    """A connection on which a request has been sent, and nothing read."""
    host, port = server.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, 30])
def test_a_client_that_vanishes_leaves_no_page_behind(served: Served, stream: bool, tokens: int) -> None:
    """Its pages are back when the step that runs has ended.

    Measured, ten tries of each case on two busy cores: 10 to 27 ms while it is answered; up to 0.64 s, the length of a
    step of 256 tokens, while its prompt is read. The answer itself would take half a minute.
    """
    prompt = "The wind went over the hills and the fields. " * 60  # so that it may vanish while it is read
    connection = raw(served, "/v1/completions", {**LONG, "prompt": prompt, "stream": stream})
    if tokens and stream:
        got = b""
        while got.count(b"data:") < tokens:
            got += connection.recv(65536)
    else:
        time.sleep(0.02 * tokens)
    connection.close()
    assert served.settled(2.5)["pages"]["live"] == 0


def test_a_request_cut_in_the_middle(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    for head in (b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{\"prompt\":"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head)
    with served.client() as client:
        assert client.get("/health").status_code == 200


def test_a_slow_reader_gets_every_token(served: Served, llm: LLM) -> None:
    expected = llm.generate(LONG["prompt"], SamplingParams(max_tokens=300, temperature=0, ignore_eos=True))
    connection = raw(served, "/v1/completions", {**LONG, "max_tokens": 300, "stream": True})
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    time.sleep(2)  # long after the others' buffers are full
    with served.client() as client:  # who reads slowly holds nobody up
        began = time.monotonic()
        client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2})
        assert time.monotonic() - began < 2
    got = b""
    while b"[DONE]" not in got:
        got += connection.recv(512)
    connection.close()
    events = [line[6:] for line in got.decode().splitlines() if line.startswith("data: {")]
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == expected[0].outputs[0].text


def test_a_full_queue_says_when_to_come_again(tiny: Served) -> None:
    waiting = [raw(tiny, "/v1/completions", MANY) for _ in range(8)]
    with tiny.client() as client:
        end = time.monotonic() + 10
        while True:
            found = client.post("/v1/completions", json={"prompt": [1, 2], "max_tokens": 1})
            if found.status_code == 429 or time.monotonic() > end:
                break
        assert found.status_code == 429 and int(found.headers["retry-after"]) >= 1
        assert found.json()["error"]["code"] == "queue_full"
    for connection in waiting:
        connection.close()
    assert tiny.settled()["pages"]["live"] == 0


def test_many_that_ask_at_once_do_not_get_past_the_limit(tiny: Served) -> None:
    tiny.settled()
    with ThreadPoolExecutor(32) as pool, tiny.client() as client:
        asked = {"prompt": [1, 2, 3], "max_tokens": 100}
        found = list(pool.map(lambda _: client.post("/v1/completions", json=asked).status_code, range(32)))
        assert set(found) == {200, 429} and found.count(200) >= 8
        end = time.monotonic() + 10
        while client.post("/v1/completions", json=asked).status_code != 200:
            assert time.monotonic() < end, "every place is given back"
    held = [raw(tiny, "/v1/completions", MANY) for _ in range(8)]
    for connection in held:
        connection.close()
    tiny.settled()
    with tiny.client() as client:
        assert client.post("/v1/completions", json={"prompt": [[1, 2]] * 8, "max_tokens": 1}).status_code == 200


def test_limits_that_flags_set(tiny_path: Path) -> None:
    with serving.serving(str(tiny_path), "--max-prompts", "2", "--max-sessions", "1") as server, server.client() as client:
        for prompts, status in (([[1, 2]] * 2, 200), ([[1, 2]] * 3, 400)):
            found = client.post("/v1/completions", json={"prompt": prompts, "max_tokens": 1})
            assert found.status_code == status
        assert found.json()["error"]["param"] == "prompt" and "1 to 2" in found.json()["error"]["message"]
        assert client.post("/v1/sessions", json={}).status_code == 200
        found = client.post("/v1/sessions", json={})
        assert found.status_code == 429 and found.json()["error"]["code"] == "too_many_sessions"


def random_value(chance: random.Random, depth: int = 0) -> object:
    kinds = ["none", "bool", "int", "float", "text", "huge"] + (["list", "object"] if depth < 3 else [])
    match chance.choice(kinds):
        case "none":
            return None
        case "bool":
            return chance.random() < 0.5
        case "int":
            return chance.choice([0, 1, -1, 2, 7, 2**31, -(2**63), 10**30])
        case "float":
            return chance.choice([0.0, 0.5, 1.0, -0.1, 1e308, 1e-308])
        case "text":
            return "".join(chance.choices(string.printable + "é€𝄞\x00", k=chance.randrange(12)))
        case "huge":
            return chance.choice(["x" * 5000, [1] * 3000, "\ud800"])
        case "list":
            return [random_value(chance, depth + 1) for _ in range(chance.randrange(4))]
        case _:
            return {str(random_value(chance, 3))[:20]: random_value(chance, depth + 1) for _ in range(chance.randrange(4))}


FIELDS = ["model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p", "n", "best_of", "stop", "seed", "stream", "stream_options", "logit_bias", "logprobs", "top_logprobs", "echo", "presence_penalty", "frequency_penalty", "repetition_penalty", "priority", "cache_salt", "session", "tools", "tool_choice", "response_format", "structured_outputs", "use_beam_search", "length_penalty", "early_stopping", "input", "instructions", "max_output_tokens", "tokens", "name", "suffix", "user", "min_tokens", "ignore_eos", "skip_special_tokens", "text"]
PATHS = [
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize", "/v1/sessions",
    "/v1/sessions/x/fork", "/v1/sessions/x/rollback",
]  # fmt: skip


def random_request(chance: random.Random) -> tuple[str, bytes]:
    path = chance.choice(PATHS)
    body: dict[str, object] = {}
    if "complet" in path or "responses" in path:
        body["max_output_tokens" if "responses" in path else "max_tokens"] = 2
    if chance.random() < 0.8:
        said = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
        body |= {"input": "hi"} if "responses" in path else said
    for name in chance.sample(FIELDS, chance.randrange(5)):
        body[name] = random_value(chance)
    data = json.dumps(body).encode("utf-8", "surrogatepass")
    if chance.random() < 0.05:
        data = data[: chance.randrange(len(data))]
    return path, data


def test_a_thousand_random_requests_and_no_500(tiny: Served) -> None:
    chance = random.Random(5)
    seen: dict[int, int] = {}
    with tiny.client() as client:
        for number in range(1000):
            path, data = random_request(chance)
            found = client.post(path, content=data, headers={"Content-Type": "application/json"})
            seen[found.status_code] = seen.get(found.status_code, 0) + 1
            assert found.status_code < 500, (number, path, data, found.text)
            if found.status_code >= 400:
                assert set(found.json()["error"]) == {"message", "type", "param", "code"}, (path, data)
    assert seen.get(200, 0) > 50 and seen.get(400, 0) > 200, seen
    assert tiny.settled()["pages"]["live"] == 0


def test_what_is_no_request(tiny: Served) -> None:
    with tiny.client() as client:
        for method, path, status in [
            ("GET", "/v1/nowhere", 404), ("GET", "/v1/completions", 405), ("DELETE", "/v1/models", 405),
            ("POST", "/v1/completions", 400), ("PUT", "/", 405),
        ]:  # fmt: skip
            found = client.request(method, path)
            assert found.status_code == status, (method, path, found.text)
            assert set(found.json()["error"]) == {"message", "type", "param", "code"}
        for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"prompt": NaN}'):
            found = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
            assert found.status_code == 400, (body[:20], found.text)
            assert "error" in found.json()


def test_an_answer_has_its_time(tiny_path: Path) -> None:
    with serving.serving(str(tiny_path), "--request-timeout", "0.1") as server, server.client() as client:
        found = client.post("/v1/completions", json=MANY)
        assert found.status_code == 408 and found.json()["error"]["code"] == "timeout"
        with client.stream("POST", "/v1/completions", json={**MANY, "stream": True}) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert lines[-1] == "data: [DONE]"
        assert server.settled()["pages"]["live"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_shutdown_lets_answers_end(tiny_path: Path, number: int) -> None:
    with serving.serving(str(tiny_path)) as server:
        connection = raw(server, "/v1/completions", {**LONG, "prompt": [1, 2, 3], "max_tokens": 200, "stream": True})
        got = connection.recv(65536)
        server.process.send_signal(number)
        while part := connection.recv(65536):
            got += part
        connection.close()
        assert b"[DONE]" in got and b'"finish_reason":"length"' in got
        assert server.process.wait(20) == 128 + number


def test_shutdown_stops_what_does_not_end(tiny_path: Path) -> None:
    with serving.serving(str(tiny_path), "--shutdown-timeout", "0.05") as server:
        connection = raw(server, "/v1/completions", {**MANY, "stream": True})
        got = connection.recv(65536)
        server.process.terminate()
        while part := connection.recv(65536):
            got += part
        connection.close()
        assert b"shutting down" in got
        assert server.process.wait(20) == 128 + signal.SIGTERM


def test_a_second_server_on_the_same_port_is_refused(tiny: Served, tiny_path: Path) -> None:
    port = tiny.url.rsplit(":", 1)[1]
    done = subprocess.run(
        [serving.KVIST, "serve", str(tiny_path), "--port", port], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "cannot listen" in done.stderr and done.stderr.count("\n") == 1


def test_listening_beyond_the_loopback_without_a_key_is_warned_of(tiny_path: Path) -> None:
    with serving.serving(str(tiny_path), "--host", "0.0.0.0") as server:
        assert "anybody who reaches" in server.log.read_text()
    with serving.serving(str(tiny_path), "--host", "0.0.0.0", key="a-key") as server:
        assert "anybody" not in server.log.read_text()


def test_health_while_the_model_loads(tiny_path: Path) -> None:
    slow = (  # the same program, whose model takes a second to load
        "import sys, time, kvist.llm as m; init = m.LLM.__init__\n"
        "def late(self, *a, **k):\n    time.sleep(1.5)\n    init(self, *a, **k)\n"
        "m.LLM.__init__ = late\nfrom kvist.cli.main import main\nmain()"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "serve", str(tiny_path), "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        seen = []
        end = time.monotonic() + 30
        while 200 not in seen and time.monotonic() < end:
            try:
                first = not seen
                seen.append(httpx.get(f"http://127.0.0.1:{port}/health").status_code)
                if seen[-1] == 503 and first:
                    found = httpx.get(f"http://127.0.0.1:{port}/v1/models")
                    assert found.status_code == 503 and found.headers["retry-after"]
                    assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
            except httpx.ConnectError:
                pass
            time.sleep(0.05)
        assert set(seen) == {503, 200}
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_a_model_that_does_not_load_ends_the_server_with_its_cause(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 40)
    done = subprocess.run(
        [serving.KVIST, "serve", str(broken), "--port", "0"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and done.stderr.startswith("kvist: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_template_that_loops_is_given_up(tiny_path: Path, tmp_path: Path) -> None:
    template = tmp_path / "loops.jinja"
    template.write_text(
        "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}"
        "{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}"
    )
    with (
        serving.serving(str(tiny_path), "--chat-template", str(template)) as server,
        server.client() as client,
    ):
        asked = {"messages": [{"role": "user", "content": "loop"}], "max_tokens": 2}
        for path in ("/v1/chat/completions", "/tokenize"):
            found = client.post(path, json=asked)
            assert found.status_code == 400 and "template" in found.json()["error"]["message"]
        made = client.post("/v1/sessions", json={"messages": asked["messages"]})
        assert made.status_code == 400 and client.get("/v1/sessions").json()["data"] == []
        fine = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=fine).status_code == 200
