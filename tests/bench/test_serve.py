"""Measuring a server: figures by hand from given times, and real runs against a small real server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import pytest

from fake_openai import FakeServer, fake_server
from kvist.bench.percentile import percentile
from kvist.bench.serve.answer import Answer, Failure, read, said
from kvist.bench.serve.http import Client, Reply
from kvist.bench.serve.load import Exchange, Pass
from kvist.bench.serve.measure import measure
from kvist.bench.serve.report import compared, figures
from kvist.bench.serve.sse import events
from kvist.bench.serve.table import lines
from kvist.bench.serve.work import WORKLOADS, Plan, conversations
from kvist.errors import ServerError, UnknownNameError, UsageError

SMALL = Plan(requests=6, concurrency=2, prompt_tokens=8, output_tokens=5, prefix_tokens=20, prefixes=2, turns=3)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as made:
        yield made


def run(server: FakeServer, plan: Plan = SMALL, **options: Any) -> dict[str, Any]:
    """The figures; the requests that found out about the server are forgotten."""
    given: dict[str, Any] = {"model": None, "api_key": None, "timeout": 30.0, "progress": lambda *_: None, **options}
    found = measure(server.url, plan, **given)
    del server.bodies[:2]
    assert json.loads(json.dumps(found)) == found
    return found


def words(body: dict[str, Any]) -> list[str]:
    return " ".join(message["content"] for message in body["messages"]).split()


def chunk(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


# ---- figures by hand


def test_percentiles_are_samples() -> None:
    assert [percentile([5, 1, 4, 2, 3], p) for p in (1, 20, 21, 50, 80, 81, 99, 100)] == [1, 1, 2, 3, 4, 5, 5, 5]
    assert percentile([7.5], 50) == percentile([7.5], 99) == 7.5
    draw = np.random.default_rng(1)
    for count in (2, 3, 10, 99, 100, 101, 200):
        samples = draw.random(count).tolist()
        for p in (50, 99):
            assert percentile(samples, p) == float(np.percentile(samples, p, method="inverted_cdf"))


def test_an_event_has_the_time_of_its_last_byte() -> None:
    stream = b": hello\n\ndata: a\n\nevent: x\r\ndata:b\r\ndata: c\r\n\r\ndata: [DONE]\n\ndata: unfinished\n"
    whole = [b"a", b"b\nc", b"[DONE]"]
    ends = [stream.index(end) + len(end) - 1 for end in (b"a\n\n", b"c\r\n\r\n", b"[DONE]\n\n")]
    for size in (1, 2, 7, len(stream)):
        arrivals = [(float(i), stream[i : i + size]) for i in range(0, len(stream), size)]
        assert list(events(arrivals)) == [(float(at - at % size), data) for at, data in zip(ends, whole, strict=True)]


def test_an_answer_is_read_as_by_hand() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    pieces = [
        (10.5, chunk(delta={"role": "assistant", "content": ""})),
        (11.0, chunk(delta={"reasoning_content": "hm"})),
        (11.25, chunk(delta={"content": "a"}) + chunk(delta={"content": "b"})),
        (12.0, chunk(delta={"content": None}, finish_reason="stop")),
        (13.0, b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"),
    ]
    answer = read(Reply(10.0, 200, "text/event-stream", pieces))
    assert answer == Answer("ab", "hm", (1.0, 1.25, 1.25), 2.0, 9, 5, 4)
    assert (answer.ttft, answer.gaps, answer.tpot) == (1.0, [0.25, 0.0], 0.25)
    assert replace(answer, completion_tokens=1).tpot is None and replace(answer, completion_tokens=None).tpot is None


@pytest.mark.parametrize("names", [("reasoning",), ("reasoning_content",), ("reasoning", "reasoning_content")])
def test_thoughts_have_two_names_and_count_once(names: tuple[str, ...]) -> None:
    body = chunk(delta=dict.fromkeys(names, "hm")) + chunk(delta={"content": "a"}, finish_reason="stop")
    answer = read(Reply(1.0, 200, "text/event-stream", [(2.0, body)]))
    assert answer == Answer("a", "hm", (1.0, 1.0), 1.0)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "broken"),
        (chunk(delta={"content": "a"}), "broken"),
        (b"data: [DONE]\n\n", "no text"),
        (chunk(delta={"content": 7}, finish_reason="stop"), "no text"),
        (b"data: 7\n\n", "bad event"),
        (b"data: {\n\n", "bad event"),
        (b'data: {"error": "full"}\n\n', "error event"),
        (b'data: {"choices": [null], "usage": 3}\n\n', "broken"),
    ],
)
def test_what_is_no_answer(body: bytes, kind: str) -> None:
    found = read(Reply(0.0, 200, "text/event-stream", [(1.0, body)]))
    assert isinstance(found, Failure) and found.kind == kind


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "full\\u001b[1m\\n"}}', "full [1m"),
        (b'{"error": "full"}', "full"),
        (b'{"message": "full"}', "full"),
        (b"<html>", "<html>"),
        (b"\xff" * 900, "�" * 200),
        (b"[1]", "[1]"),
    ],
)
def test_what_an_error_said_is_printable(body: bytes, message: str) -> None:
    assert said(body) == message


def passed(*found: Answer | Failure, seconds: float = 4.0) -> Pass:
    return Pass([[Exchange(b"", each) for each in found]], seconds, 0.5)


ANSWERS = (
    Answer("abc", "", (0.5, 0.75, 1.0), 1.0, 100, 3, 0),
    Answer("def", "", (0.25, 0.5, 2.5), 2.5, 100, 3, 60),
    Answer("ghi", "", (1.5, 1.5, 1.75), 2.0, 50, 3, 40),
)


def test_figures_as_by_hand() -> None:
    trouble = Failure("http 500", "first"), Failure("broken", "x"), Failure("http 500", "second")
    found = figures(passed(*ANSWERS, *trouble), Plan(goodput_ttft=1.0, goodput_itl=0.25))
    assert (found["requests"], found["completed"], found["seconds"], found["client_cpu_seconds"]) == (6, 3, 4.0, 0.5)
    assert found["errors"] == [
        {"kind": "http 500", "count": 2, "first": "first"},
        {"kind": "broken", "count": 1, "first": "x"},
    ]
    assert (found["ttft_p50"], found["ttft_p99"]) == (0.5, 1.5)
    assert (found["itl_p50"], found["itl_p99"]) == (0.25, 2.0)  # of 0.25 0.25, 0.25 2.0, 0.0 0.25
    assert (found["tpot_p50"], found["tpot_p99"]) == (0.25, 1.125)
    assert (found["e2e_p50"], found["e2e_p99"]) == (2.0, 2.5)
    assert (found["prompt_tokens"], found["completion_tokens"], found["cached_tokens"]) == (250, 9, 100)
    assert found["hit_rate"] == 0.4
    assert (found["output_tokens_per_s"], found["total_tokens_per_s"]) == (9 / 4, 259 / 4)
    assert found["requests_per_s"] == 3 / 4
    assert (found["goodput_share"], found["goodput_requests_per_s"]) == (1 / 6, 1 / 4)  # only the first keeps to both


@pytest.mark.parametrize(
    ("ttft", "itl", "good"),
    [(0.5, None, 2), (0.49, None, 1), (None, 2.0, 3), (None, 1.99, 2), (0.2, 9.0, 0), (1.5, 0.25, 2)],
)
def test_goodput_counts_those_that_keep_to_the_limits(ttft: float | None, itl: float | None, good: int) -> None:
    found = figures(passed(*ANSWERS), Plan(goodput_ttft=ttft, goodput_itl=itl))
    assert (found["goodput_share"], found["goodput_requests_per_s"]) == (good / 3, good / 4)


def test_what_nobody_told_is_null() -> None:
    found = figures(passed(Answer("a", "", (1.0,), 1.0)), Plan())
    unknown = {name for name, value in found.items() if value is None}
    assert unknown == {
        "itl_p50", "itl_p99", "tpot_p50", "tpot_p99", "prompt_tokens", "completion_tokens", "cached_tokens", "hit_rate",
        "output_tokens_per_s", "total_tokens_per_s", "goodput_share", "goodput_requests_per_s",
    }  # fmt: skip


def test_the_hit_rate_is_of_the_prompts_whose_hits_are_told() -> None:
    found = figures(passed(*ANSWERS, replace(ANSWERS[0], cached_tokens=None)), Plan())
    assert (found["prompt_tokens"], found["cached_tokens"], found["hit_rate"]) == (350, 100, 0.4)


def test_the_first_different_character() -> None:
    one, two, gone = Answer("xyz", "", (1.0,), 1.0), Answer("xy", "r", (1.0,), 1.0), Failure("broken", "")
    assert compared(passed(one, two, gone), passed(one, two, one)) == {
        "compared": 2, "equal": 2, "first_difference": None,
    }  # fmt: skip
    found = compared(passed(gone, one, two), passed(one, replace(one, text="xyab"), two))
    assert found["equal"] == 1
    assert found["first_difference"] == {"request": 1, "position": 2, "cold": "z", "warm": "ab"}
    shorter = compared(passed(one), passed(replace(one, text="xy")))["first_difference"]
    assert shorter == {"request": 0, "position": 2, "cold": "z", "warm": ""}


# ---- what is asked


@pytest.mark.parametrize("workload", WORKLOADS)
def test_work_follows_from_the_seed_and_the_nonce_makes_it_new(workload: str) -> None:
    plan = replace(SMALL, workload=workload)
    made = conversations(plan, 1.0, "n")
    assert made == conversations(plan, 1.0, "n") != conversations(replace(plan, seed=1), 1.0, "n")
    assert sum(map(len, made)) == 6
    other = conversations(plan, 1.0, "m")
    assert all(one[0].startswith("n.") for one in made) and all(one[0].startswith("m.") for one in other)
    assert [one[0][1:] for one in made] == [one[0][1:] for one in other]  # nothing else differs


def test_prefixes_are_shared_in_turn_and_questions_are_not() -> None:
    made = [text for (text,) in conversations(SMALL, 1.0, "n")]
    begins, questions = zip(*(text.split("\n\n") for text in made), strict=True)
    assert begins[0::2] == (begins[0],) * 3 and begins[1::2] == (begins[1],) * 3 and begins[0] != begins[1]
    assert len(set(questions)) == 6
    assert {len(begin.split()) for begin in begins} == {21} and {len(each.split()) for each in questions} == {9}


def test_lengths_are_in_the_servers_tokens() -> None:
    ((text,), *_) = conversations(replace(SMALL, workload="prefix", prefix_tokens=300), 1.5, "n")
    assert len(text.split("\n\n")[0].split()) == 201


def test_users_have_turns_and_the_last_one_the_rest() -> None:
    made = conversations(replace(SMALL, workload="multi-turn", requests=8), 1.0, "n")
    assert [len(turns) for turns in made] == [3, 3, 2]
    assert [turns[0].split()[0] for turns in made] == ["n.0", "n.1", "n.2"]


def test_random_prompts_have_all_lengths_around_the_one_asked_for() -> None:
    made = conversations(Plan(workload="random", requests=400, prompt_tokens=20), 1.0, "n")
    assert {len(text.split()) - 1 for (text,) in made} == set(range(10, 31))


def test_arrivals_are_poissons_and_the_seeds() -> None:
    plan = Plan(request_rate=4.0, seed=3)
    times = plan.arrivals(2000)
    gaps = np.diff([0.0, *times])
    assert times == plan.arrivals(2000) != replace(plan, seed=4).arrivals(2000)
    assert (gaps > 0).all() and abs(mean(gaps) * 4 - 1) < 0.1 and abs(np.std(gaps) * 4 - 1) < 0.1
    assert Plan(concurrency=3).arrivals(4) == [0.0] * 4
    assert (plan.at_once, Plan().at_once, Plan(concurrency=3).at_once) == (None, 8, 3)


def test_plans_that_cannot_be_meant() -> None:
    with pytest.raises(UnknownNameError, match="did you mean multi-turn"):
        Plan(workload="multiturn")
    with pytest.raises(UsageError, match="give one"):
        Plan(concurrency=2, request_rate=1.0)
    with pytest.raises(UsageError, match="above 0"):
        Plan(request_rate=0.0)


# ---- runs


def test_a_run_cold_then_warm(server: FakeServer) -> None:
    server.first, server.gap = 0.05, 0.01
    found = run(server, replace(SMALL, goodput_ttft=0.04, goodput_itl=9.0))
    cold, warm, bodies = found["cold"], found["warm"], server.bodies
    assert (found["model"], found["server_version"]) == ("twig", {"version": "1.2.3"})
    assert cold["requests"] == cold["completed"] == warm["completed"] == 6 and len(bodies) == 12
    assert sorted(map(json.dumps, bodies[:6])) == sorted(map(json.dumps, bodies[6:]))
    asked = [len(words(body)) for body in bodies[:6]]
    assert cold["prompt_tokens"] == warm["prompt_tokens"] == sum(asked)
    assert warm["hit_rate"] == 1.0 and warm["cached_tokens"] == sum(asked)
    assert cold["completion_tokens"] == 30
    assert found["texts"] == {"compared": 6, "equal": 6, "first_difference": None}
    for one in (cold, warm):
        assert one["errors"] == [] and one["goodput_share"] == 0.0  # the first token takes longer than asked for
        assert 0.05 <= one["ttft_p50"] <= one["ttft_p99"] and one["itl_p99"] >= 0.009
        assert 0.09 <= one["e2e_p50"] <= one["seconds"] and one["seconds"] >= 3 * 0.09
        assert one["client_cpu_seconds"] > 0
    for body in bodies:
        assert body["temperature"] == 0 and body["stream"] and body["max_tokens"] == 5 and body["ignore_eos"]


def test_one_at_a_time_hits_are_counted_as_the_server_does(server: FakeServer) -> None:
    found = run(server, replace(SMALL, concurrency=1))
    asked = [len(words(body)) for body in server.bodies[:6]]
    assert found["cold"]["cached_tokens"] == 4 * 21  # all but the first question of each prefix
    assert found["cold"]["hit_rate"] == 4 * 21 / sum(asked)
    assert server.most_open == 1 and server.connections == 1


@pytest.mark.parametrize("workload", WORKLOADS)
def test_concurrency_is_kept_to_and_used(server: FakeServer, workload: str) -> None:
    server.gap = 0.01
    found = run(server, replace(SMALL, workload=workload, concurrency=2))
    assert found["cold"]["completed"] == found["warm"]["completed"] == 6
    assert server.most_open == server.connections == 2


def test_arrivals_at_a_rate_overlap_and_wait(server: FakeServer) -> None:
    server.first = 0.2
    plan = replace(SMALL, concurrency=None, request_rate=50.0)
    found = run(server, plan)
    assert found["plan"]["concurrency"] is None
    assert found["cold"]["seconds"] >= plan.arrivals(6)[-1] + 0.2
    assert server.most_open > 2


def test_a_chat_brings_the_servers_answers_back(server: FakeServer) -> None:
    found = run(server, replace(SMALL, workload="multi-turn", concurrency=1))
    chats = [body["messages"] for body in server.bodies[:6]]
    assert [len(messages) for messages in chats] == [1, 3, 5, 1, 3, 5]
    for shorter, longer in ((0, 1), (1, 2), (3, 4), (4, 5)):
        assert chats[longer][: len(chats[shorter])] == chats[shorter]
        answer, question = chats[longer][-2:]
        assert answer["role"] == "assistant" and len(answer["content"].split()) == 5
        assert question["role"] == "user"
    again = [body["messages"] for body in server.bodies[6:]]
    assert again == chats  # with the answers of the cold pass
    assert found["warm"]["hit_rate"] == 1.0
    before = [len(words(body)) for body in server.bodies[:6]]
    assert found["cold"]["cached_tokens"] == before[0] + before[1] + before[3] + before[4]


def test_no_run_finds_what_another_left(server: FakeServer) -> None:
    plan = replace(SMALL, workload="random", concurrency=1)
    first, second = run(server, plan), run(server, plan)
    assert first["nonce"] != second["nonce"]
    assert first["cold"]["cached_tokens"] == second["cold"]["cached_tokens"] == 0
    assert first["cold"]["prompt_tokens"] == second["cold"]["prompt_tokens"]


def test_texts_that_change_on_a_hit_are_noticed(server: FakeServer) -> None:
    server.changes_on_hit = True
    texts = run(server)["texts"]
    assert (texts["compared"], texts["equal"]) == (6, 0)
    assert texts["first_difference"]["request"] == 0 and texts["first_difference"]["position"] == 11
    assert texts["first_difference"]["warm"].startswith("other ")


def test_lengths_go_by_the_servers_own_tokenizer(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(server)
    assert found["tokens_per_word"] == 1.0
    server.counts = False
    assert run(server)["tokens_per_word"] == 1.3


def test_a_server_that_counts_nothing(server: FakeServer) -> None:
    server.counts = False
    found = run(server)
    assert found["cold"]["hit_rate"] is None and found["cold"]["output_tokens_per_s"] is None
    assert found["texts"]["equal"] == 6
    server.counts, server.tells_cached = True, False
    found = run(server)
    assert found["cold"]["hit_rate"] is None and found["cold"]["completion_tokens"] == 30
    assert any("--enable-prompt-tokens-details" in line for line in lines(found))


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        ("500", "http 500"),
        ("429", "http 429"),
        ("whole", "no event stream"),
        ("gone", "broken"),
        ("short", "broken"),
        ("error", "error event"),
        ("garbage", "bad event"),
        ("silent", "no text"),
    ],
)
def test_failures_are_counted_by_kind_and_the_rest_goes_on(server: FakeServer, trouble: str, kind: str) -> None:
    server.trouble = {3: trouble, 5: trouble, 8: "500"}  # after two short questions: 1 and 3 cold, 0 warm
    found = run(server, replace(SMALL, concurrency=1))
    assert [(error["kind"], error["count"]) for error in found["cold"]["errors"]] == [(kind, 2)]
    assert found["cold"]["completed"] == 4 and found["warm"]["completed"] == 5
    assert found["texts"] == {"compared": 3, "equal": 3, "first_difference": None}
    assert f"cold: 2 of 6 failed, {kind}: {found['cold']['errors'][0]['first']}" in list(lines(found))


def test_a_chat_ends_with_a_failure(server: FakeServer) -> None:
    server.trouble = {3: "gone"}  # the second turn of the first of two
    found = run(server, replace(SMALL, workload="multi-turn", concurrency=1))
    assert (found["cold"]["requests"], found["cold"]["completed"]) == (5, 4)
    assert (found["warm"]["requests"], found["warm"]["completed"]) == (5, 5)


def test_a_request_may_take_so_long(server: FakeServer) -> None:
    server.trouble = {4: "slow"}
    found = run(server, timeout=1.0)
    assert [(error["kind"], error["count"]) for error in found["cold"]["errors"]] == [("timeout", 1)]


def test_a_kept_connection_that_the_server_closes_is_no_failure(server: FakeServer) -> None:
    server.drops_kept = True
    found = run(server)
    assert found["cold"]["errors"] == found["warm"]["errors"] == []


def test_a_server_that_keeps_no_connection(server: FakeServer) -> None:
    server.keeps = False
    found = run(server)
    assert found["cold"]["errors"] == found["warm"]["errors"] == []
    assert server.connections == 2 + 2 + 12  # what it is, two short questions, two passes


def test_a_body_that_ends_with_its_connection(server: FakeServer) -> None:
    server.sizes = False
    assert run(server)["model"] == "twig"


def test_a_key_is_sent(server: FakeServer) -> None:
    server.key = "secret"
    with pytest.raises(ServerError, match=r"give it with --api-key"):
        run(server)
    with pytest.raises(ServerError, match=r"give it with --api-key"):
        run(server, api_key="wrong")
    found = run(server, api_key="secret")
    assert found["cold"]["completed"] == 6 and "secret" not in json.dumps(found)


def test_models(server: FakeServer) -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'twigs': did you mean twig"):
        run(server, model="twigs")
    server.models = ["twig", "branch"]
    with pytest.raises(UsageError, match="has 2 models: give --model, one of twig, branch"):
        run(server)
    assert run(server, model="branch")["model"] == "branch"
    server.models = None
    with pytest.raises(UsageError, match="lists no models: give --model"):
        run(server)
    assert run(server, model="any")["model"] == "any"


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("whole", "does not stream"),
        ("500", r"http 500\): out of \[31m order"),
        ("gone", "server closed the connection"),
    ],
)
def test_a_server_that_answers_no_short_question_is_not_measured(server: FakeServer, trouble: str, says: str) -> None:
    server.trouble = {0: trouble}
    with pytest.raises(ServerError, match=says):
        run(server)


def test_where_all_fails_there_is_nothing_to_tell(server: FakeServer) -> None:
    server.trouble = dict.fromkeys(range(2, 99), "500")
    with pytest.raises(ServerError, match=r"answered none of 6 requests \(http 500\): out of"):
        run(server)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ServerError, match=f"no server answers at {url} \\(Connection refused\\): start it"):
        measure(url, SMALL, None, None, 5.0, lambda *_: None)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://x",
        "http://",
        "http://x:port",
        "http://x/?a=1",
        "http://[x",
        "http://x/a b",
        "http://ö",
    ],
)
def test_urls_that_name_no_server(url: str) -> None:
    with pytest.raises(UsageError, match="names no server"):
        Client(url)


@pytest.mark.parametrize("key", ["", "a b", "ö", "a\n"])
def test_keys_that_no_header_carries(key: str) -> None:
    with pytest.raises(UsageError, match="give the key alone"):
        Client("http://x", key)


def test_a_host_that_cannot_be_looked_up() -> None:
    with pytest.raises(ServerError, match="no server answers"):
        measure(f"http://{'x' * 80}", SMALL, None, None, 5.0, lambda *_: None)


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_urls_with_and_without_v1(server: FakeServer, end: str) -> None:
    async def status() -> int:
        client = Client(server.url + end)
        try:
            return (await client.get("/v1/models")).status
        finally:
            client.close()

    assert asyncio.run(status()) == 200
