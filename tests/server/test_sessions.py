"""Sessions over HTTP, and what else the server tells: the cache, its metrics, tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer, processors

import serving
from kvist import LLM, SamplingParams
from kvist.session import Session
from serving import Served
from tiny import MODELS, write_folder

GREEDY = SamplingParams(max_tokens=12, temperature=0)
FIRST = [{"role": "system", "content": "You know trees."}, {"role": "user", "content": "Name one."}]
MORE = [{"role": "user", "content": "And another one."}]


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@pytest.fixture
def name(http: httpx.Client) -> Iterator[str]:
    made = http.post("/v1/sessions", json={}).json()
    assert made["tokens"] == 0 and made["messages"] == []
    yield made["name"]
    for one in http.get("/v1/sessions").json()["data"]:
        http.delete(f"/v1/sessions/{one['name']}")


def say(http: httpx.Client, name: str, messages: list[dict[str, str]], **fields: object) -> dict[str, object]:
    asked = {"session": name, "messages": messages, "max_tokens": 12, "temperature": 0, **fields}
    found = http.post("/v1/chat/completions", json=asked)
    assert found.status_code == 200, found.text
    return found.json()


def text(answer: dict[str, object]) -> str:
    return answer["choices"][0]["message"]["content"]


def library(llm: LLM) -> Session:
    session = llm.session()
    session.append(FIRST)
    return session


def test_a_session_says_what_the_librarys_says(http: httpx.Client, name: str, llm: LLM) -> None:
    own = library(llm)
    assert text(say(http, name, FIRST)) == own.generate(GREEDY).outputs[0].text
    own.append(MORE)
    second = say(http, name, MORE)
    assert text(second) == own.generate(GREEDY).outputs[0].text
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32
    kept = http.get(f"/v1/sessions/{name}").json()
    assert kept["messages"] == [dict(message) for message in own.messages] and kept["tokens"] == len(own)


def test_regenerate_fork_and_roll_back(http: httpx.Client, name: str) -> None:
    first = text(say(http, name, FIRST))
    forked = http.post(f"/v1/sessions/{name}/fork", json={"name": "other"}).json()
    assert forked["name"] == "other" and forked["messages"][-1]["content"] == first
    assert http.post(f"/v1/sessions/{name}/rollback", json={"messages": 1}).json()["messages"] == FIRST
    again = say(http, name, [])
    assert text(again) == first and again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    warmer = http.post(f"/v1/sessions/{name}/rollback", json={"messages": 1}).json()
    assert warmer["messages"] == FIRST
    assert text(say(http, name, [], temperature=1.5, seed=3)) != first
    assert http.get("/v1/sessions/other").json()["messages"][-1]["content"] == first  # sees nothing of it
    assert text(say(http, "other", MORE)) and len(http.get("/v1/sessions/other").json()["messages"]) == 5
    tokens = http.get("/v1/sessions/other").json()["tokens"]
    cut = http.post("/v1/sessions/other/rollback", json={"tokens": 3}).json()
    assert cut["tokens"] == tokens - 3


def test_a_stream_that_is_left_keeps_what_there_is(http: httpx.Client, name: str, served: Served) -> None:
    asked = {"session": name, "messages": FIRST, "max_tokens": 500, "temperature": 0, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        lines = answer.iter_lines()
        while '"content":""' in (line := next(lines)) or not line:
            pass
        assert http.post(f"/v1/sessions/{name}/fork", json={}).status_code == 409  # it is answering
        assert http.delete(f"/v1/sessions/{name}").status_code == 409
    served.settled()
    kept = http.get(f"/v1/sessions/{name}").json()
    assert not kept["busy"] and kept["messages"][-1]["role"] == "assistant" and kept["messages"][-1]["content"]


def test_what_a_session_refuses_leaves_it_as_it_was(http: httpx.Client, name: str) -> None:
    say(http, name, FIRST)
    before = http.get(f"/v1/sessions/{name}").json()
    for fields, status in [
        ({"messages": MORE, "max_tokens": 10**6}, 400),
        ({"messages": MORE, "n": 2, "temperature": 1}, 400),
        ({"messages": MORE, "cache_salt": "x"}, 400),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, 400),
        ({"messages": MORE, "use_beam_search": True, "max_tokens": 2}, 400),
        ({"messages": MORE, "model": "gpt-7"}, 404),
    ]:
        found = http.post("/v1/chat/completions", json={"session": name, "max_tokens": 4, **fields})
        assert found.status_code == status, found.text
    assert http.get(f"/v1/sessions/{name}").json() == before
    for path, body, status in [
        ("rollback", {}, 400), ("rollback", {"tokens": 1, "messages": 1}, 400), ("rollback", {"messages": 99}, 400),
        ("rollback", {"tokens": 10**6}, 400), ("fork", {"name": name}, 409), ("rollback", {"tokens": -1}, 400),
    ]:  # fmt: skip
        assert http.post(f"/v1/sessions/{name}/{path}", json=body).status_code == status, (path, body)
    assert http.get(f"/v1/sessions/{name}").json() == before
    assert http.post("/v1/sessions", json={"name": name}).status_code == 409
    assert http.get("/v1/sessions/none").status_code == 404
    assert http.post("/v1/chat/completions", json={"session": "none", "messages": MORE}).status_code == 404


def test_a_session_of_plain_text(http: httpx.Client, llm: LLM, name: str) -> None:
    made = http.post("/v1/sessions", json={"name": "text", "prompt": "Once upon"}).json()
    long = http.post("/v1/sessions", json={"name": "long", "prompt": "word " * 9000})
    assert long.status_code == 400 and http.get("/v1/sessions/long").status_code == 404
    assert made["text"] == "Once upon" and made["tokens"] == len(llm.tokenizer.encode("Once upon"))
    assert http.post("/v1/chat/completions", json={"session": "text", "messages": MORE}).status_code == 400


def test_the_cache_adds_up_and_can_be_flushed(http: httpx.Client, served: Served) -> None:
    http.post("/v1/completions", json={"prompt": "a b c d e f g h " * 12, "max_tokens": 2})
    now = served.settled()
    pages = now["pages"]
    assert pages["free"] + pages["cached"] + pages["live"] == pages["total"] and pages["cached"] > 0
    assert now["bytes"]["cached"] == sum(pool["cached"] * pool["page_bytes"] for pool in now["pools"])
    assert 0 <= now["hit_rate"] <= 1
    assert http.post("/cache/flush").json()["pages_flushed"] == pages["cached"]
    assert served.settled()["pages"] == {**pages, "cached": 0, "free": pages["total"]}


def metrics(http: httpx.Client) -> dict[str, float]:
    text = http.get("/metrics").text
    found = re.findall(r"^(kvist:\S+) ([-+\d.e]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_metrics_count_what_went_through(http: httpx.Client, served: Served) -> None:
    served.settled()
    before = metrics(http)
    prompt = "Counting is the beginning of wisdom. " * 10
    for _ in range(2):
        answer = http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 5, "temperature": 0}).json()
    after = metrics(http)
    told = {name: value - before.get(name, 0) for name, value in after.items()}
    tokens = answer["usage"]["prompt_tokens"]
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert told["kvist:prompt_tokens_total"] == 2 * tokens
    assert told["kvist:generation_tokens_total"] == 10
    assert told['kvist:request_success_total{finished_reason="length"}'] == 2
    assert told['kvist:prompt_tokens_by_source_total{source="memory"}'] == cached
    assert told['kvist:prompt_tokens_by_source_total{source="computed"}'] == 2 * tokens - cached
    assert told["kvist:prefix_cache_hits_total"] == cached
    assert told["kvist:time_to_first_token_seconds_count"] == 2
    assert told["kvist:inter_token_latency_seconds_count"] == 8
    assert told["kvist:e2e_request_latency_seconds_count"] == told["kvist:request_queue_time_seconds_count"] == 2
    assert after["kvist:num_requests_running"] == after["kvist:num_requests_waiting"] == 0
    for name in ("num_preemptions_total", "kv_cache_usage_perc", "prefix_cache_queries_total"):
        assert f"kvist:{name}" in after
    now = served.settled()
    assert after['kvist:kv_tier_pages{state="cached",tier="memory"}'] == now["pages"]["cached"]


def test_metrics_say_how_long_pages_live(http: httpx.Client, served: Served) -> None:
    http.post("/cache/flush")
    before = metrics(http)
    prompt = "Time is the longest distance between two places. " * 8
    for _ in range(2):
        http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1, "temperature": 0})
    pages = served.settled()["pages"]["cached"]
    http.post("/cache/flush")
    after = metrics(http)
    for name, count in (("kv_page_lifetime_seconds", pages), ("kv_page_reuse_gap_seconds", pages)):
        key = f"kvist:{name}_count"
        assert after[key] - before[key] == count > 2, name


def test_tokenize_and_back(http: httpx.Client, llm: LLM) -> None:
    found = http.post("/tokenize", json={"prompt": "Grönsaker och 木", "return_token_strs": True}).json()
    assert found["tokens"] == llm.tokenizer.encode("Grönsaker och 木") and found["count"] == len(found["tokens"])
    assert len(found["token_strs"]) == found["count"] and found["max_model_len"] == 8192
    assert http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "Grönsaker och 木"}
    assert http.post("/tokenize", json={"messages": FIRST}).json()["tokens"] == llm.chat_ids(FIRST)
    for body in ({}, {"prompt": "a", "messages": FIRST}, {"messages": []}):
        assert http.post("/tokenize", json=body).status_code == 400
    assert http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400


def test_special_tokens_are_those_of_the_text_or_of_the_template(tmp_path: Path) -> None:
    folder = write_folder(MODELS["llama"], tmp_path / "llama")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = ("<|start|>", tokenizer.token_to_id("<|start|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[first])
    tokenizer.save(str(folder / "tokenizer.json"))
    with LLM(folder) as llm, serving.serving(str(folder)) as server, server.client() as http:
        for asked in ({}, {"add_special_tokens": True}, {"add_special_tokens": False}):
            found = http.post("/tokenize", json={"prompt": "ab", **asked}).json()["tokens"]
            assert found == llm.tokenizer.encode("ab", asked.get("add_special_tokens", True))
        assert llm.tokenizer.encode("ab", True) != llm.tokenizer.encode("ab", False), "else this shows nothing"
        same = http.post("/tokenize", json={"messages": FIRST, "add_special_tokens": False, "tools": []})
        assert same.json()["tokens"] == llm.chat_ids(FIRST)
        for body, name in (
            ({"messages": FIRST, "add_special_tokens": True}, "add_special_tokens"),
            ({"prompt": "ab", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ):
            refused = http.post("/tokenize", json=body)
            assert refused.status_code == 400 and refused.json()["error"]["param"] == name
