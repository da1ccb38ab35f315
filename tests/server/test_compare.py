"""`/live/compare` and `/live/attention` over HTTP: the same answer twice, counted by the engine; what a head looks at."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
from kvist import LLM, SamplingParams
from serving import Served

PROMPT = "John said he was tired"  # five tokens
MESSAGES = [{"role": "user", "content": "Name a tree."}]


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def events(http: httpx.Client, **asked: Any) -> list[dict[str, Any]]:
    found = http.post("/live/compare", json=asked)
    assert found.status_code == 200, found.text
    lines = [line.removeprefix("data: ") for line in found.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def refusal(found: httpx.Response) -> str:
    assert found.status_code == 400, found.text
    return str(found.json()["error"]["message"])


def of(side: str, every: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in every if event["event"] == "step" and event["mode"] == side]


def test_five_tokens_take_fifteen_projections_or_five(http: httpx.Client, llm: LLM) -> None:
    begin, *steps, end = events(http, prompt=PROMPT, max_tokens=1, singly=True)
    ids = llm.tokenizer.encode(PROMPT)
    assert [token["id"] for token in begin["prompt"]] == ids and len(ids) == 5
    assert "".join(token["text"] for token in begin["prompt"]) == PROMPT
    assert [step["mode"] for step in steps] == ["uncached", "cached"] * 5
    assert [step["projected"] for step in of("uncached", steps)] == [list(range(n)) for n in range(1, 6)]
    assert [step["projected"] for step in of("cached", steps)] == [[n] for n in range(5)]
    assert [step["token_id"] is None for step in of("cached", steps)] == [True] * 4 + [False]
    totals = end["sides"]
    assert (totals["uncached"]["projections_total"], totals["cached"]["projections_total"]) == (15, 5)
    assert end["equal"] is True


def test_both_sides_say_what_the_model_says(http: httpx.Client, llm: LLM) -> None:
    answer = llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=24))[0].outputs[0]
    begin, *steps, end = events(http, messages=MESSAGES, max_tokens=24)
    prompt = len(begin["prompt"])
    for side in ("uncached", "cached"):
        own = of(side, steps)
        assert [step["token_id"] for step in own] == list(answer.token_ids)
        assert "".join(step["text"] for step in own) == answer.text == end["sides"][side]["text"]
        assert [step["position"] for step in own] == list(range(prompt - 1, prompt + 23))
        assert [step["projections_total"] for step in own][-1] == sum(len(step["projected"]) for step in own)
    assert end["sides"]["cached"]["projections_total"] == prompt + 23
    assert end["sides"]["uncached"]["projections_total"] == sum(range(prompt, prompt + 24))


def test_a_session_answer_can_be_made_again_without_the_cache(http: httpx.Client) -> None:
    name = http.post("/v1/sessions", json={}).json()["name"]
    try:
        for said in ("Name a tree.", "And another."):
            asked = {"temperature": 0.9, "seed": 7, "max_tokens": 12, "session": name}
            found = http.post(
                "/v1/chat/completions", json={**asked, "messages": [{"role": "user", "content": said}]}
            ).json()
            before = http.get(f"/v1/sessions/{name}").json()
            end = events(http, **asked, without=1, modes=["uncached"])[-1]
            assert end["sides"]["uncached"]["text"] == found["choices"][0]["message"]["content"]
            assert end["equal"] is None  # there is nothing beside it
            assert http.get(f"/v1/sessions/{name}").json() == before
    finally:
        http.delete(f"/v1/sessions/{name}")


def test_a_stream_ends_after_its_session_is_idle(http: httpx.Client) -> None:
    name = http.post("/v1/sessions", json={}).json()["name"]
    for _ in range(20):
        asked = {"session": name, "messages": MESSAGES, "max_tokens": 2, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=asked) as found:
            assert "data: [DONE]" in list(found.iter_lines())
        assert http.post(f"/v1/sessions/{name}/rollback", json={"messages": 2}).status_code == 200
    assert http.delete(f"/v1/sessions/{name}").status_code == 200


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"prompt": "tree " * 300}, "a comparison takes 256 together"),
        ({"prompt": PROMPT, "max_tokens": 65}, "max_tokens"),
        ({"prompt": PROMPT, "messages": MESSAGES}, "give one of"),
        ({}, "give one of"),
        ({"messages": []}, "messages is empty"),
        ({"prompt": ""}, "empty"),
        ({"prompt": PROMPT, "modes": ["slow"]}, "modes"),
        ({"prompt": PROMPT, "modes": []}, "modes"),
    ],
)
def test_what_cannot_be_compared_is_refused(http: httpx.Client, asked: dict[str, Any], why: str) -> None:
    assert why in refusal(http.post("/live/compare", json=asked))
    assert events(http, prompt="A", max_tokens=1)[-1]["equal"] is True  # and the next one runs


def test_one_at_a_time_and_none_is_left_when_its_client_leaves(served: Served, http: httpx.Client) -> None:
    long = {"prompt": "tree " * 150, "max_tokens": 64, "ignore_eos": True}
    before = served.settled()
    with http.stream("POST", "/live/compare", json=long) as found:
        lines = found.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["event"] == "begin"
        again = http.post("/live/compare", json=long)
        assert again.status_code == 429 and "a comparison is running" in again.json()["error"]["message"]
    end = time.monotonic() + 3
    while (found := http.post("/live/compare", json={"prompt": "A", "max_tokens": 1})).status_code == 429:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert found.status_code == 200
    after = served.settled()
    assert after["pages"] == before["pages"] and after["counters"] == before["counters"]  # nothing of it was served


def test_others_are_answered_meanwhile(served: Served, http: httpx.Client) -> None:
    came: list[float] = []

    def compare() -> None:
        with served.client() as client:
            events(client, prompt="tree " * 100, max_tokens=40, ignore_eos=True)
            came.append(time.monotonic())

    running = threading.Thread(target=compare)
    running.start()
    time.sleep(0.3)
    answered = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 4})
    at = time.monotonic()
    running.join()
    assert answered.status_code == 200
    assert at < came[0]


def test_attention_over_http(http: httpx.Client, llm: LLM) -> None:
    about = http.get("/live/attention").json()
    assert about["layers"] == 30 and about["heads"] == {"query": 9, "kv": 3, "size": 64} and about["kind"] == "GQA"
    kinds = {one["kind"]: one for one in about["bytes_per_token"]}
    own = llm.engine.manager.bytes_per_token
    assert {kind: one["bytes"] for kind, one in kinds.items()} == {"MHA": 3 * own, "GQA": own, "MQA": own // 3}
    assert [kind for kind, one in kinds.items() if one["own"]] == ["GQA"]
    assert kinds["GQA"]["reads"] == [0, 0, 0, 1, 1, 1, 2, 2, 2] and kinds["MQA"]["reads"] == [0] * 9
    asked = {"text": PROMPT, "layer": 12, "head": 4}
    told = http.post("/live/attention", json=asked).json()
    assert told["tokens"] == ["John", " said", " he", " was", " tired"]
    assert [len(row) for row in told["weights"]] == [1, 2, 3, 4, 5]
    assert all(abs(sum(row) - 1) < 1e-5 for row in told["weights"])
    assert told["row_sums"] == [1.0] * 5 and told["kv_head"] == 1 and told["tokens_left_out"] == 0
    assert http.post("/live/attention", json=asked).json() == told


def test_attention_of_a_long_text_is_that_of_its_beginning(http: httpx.Client) -> None:
    long = http.post("/live/attention", json={"text": "tree " * 200, "layer": 3}).json()
    assert len(long["tokens"]) == 128 and long["tokens_left_out"] == 73
    short = http.post("/live/attention", json={"text": "tree " * 20, "layer": 3}).json()
    assert long["weights"][:20] == short["weights"][:20]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"text": PROMPT, "layer": 30}, "layer 30: this model has 0 to 29"),
        ({"text": PROMPT, "head": 9}, "head 9: this model has 0 to 8"),
        ({"text": ""}, "0 tokens: give 1 to 128"),
        ({"layer": 1}, "give one of"),
    ],
)
def test_attention_that_there_is_not_is_refused(http: httpx.Client, asked: dict[str, Any], why: str) -> None:
    assert why in refusal(http.post("/live/attention", json=asked))


def test_one_tenant_sees_nothing_of_anothers_sessions(tiny_path: Path) -> None:
    with serving.serving(str(tiny_path), "--api-key", "two", key="one") as server, server.client() as one:
        name = one.post("/v1/sessions", json={"messages": MESSAGES}).json()["name"]
        assert one.post("/live/attention", json={"session": name}).status_code == 200
        other = httpx.Client(base_url=server.url, headers={"Authorization": "Bearer two"})
        with other:
            for path in ("/live/attention", "/live/compare"):
                assert other.post(path, json={"session": name}).status_code == 404
        assert httpx.post(f"{server.url}/live/compare", json={"prompt": "A"}).status_code == 401


def test_where_there_must_be_a_cache_nothing_is_compared(tiny_path: Path) -> None:
    with serving.serving(str(tiny_path), "--policy", "topk:3p") as server, server.client() as http:
        assert "enable_cache is off" in refusal(http.post("/live/compare", json={"prompt": "A tree"}))
        assert events(http, prompt="A tree", modes=["cached"])[-1]["sides"]["cached"]["steps"] > 0


@pytest.mark.parametrize(
    "options", [("--policy", "evict:0.5"), ("--policy", "window:32+4"), ("--kv-cache-dtype", "int8")]
)
def test_sides_agree_whatever_is_kept(tiny_path: Path, options: tuple[str, str]) -> None:
    with serving.serving(str(tiny_path), *options) as server, server.client() as http:
        end = events(http, prompt="a tree and a twig " * 4, max_tokens=24, ignore_eos=True)[-1]
        assert end["equal"] is True
        assert end["sides"]["uncached"]["projections_total"] > 5 * end["sides"]["cached"]["projections_total"]
