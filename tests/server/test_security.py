"""Who may ask, and what nobody is told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

import serving
from serving import Served

ONE, OTHER = "first-key-1", "second-key-2"
SECRET = "The treasure lies beneath the old oak by the northern gate of the town, and only three people know it. " * 3


@pytest.fixture(scope="module")
def locked(smollm2_path: Path) -> Iterator[Served]:
    with serving.serving("smollm2", "--api-key", OTHER, key=ONE) as server:
        yield server


def ask(server: Served, key: str, prompt: str, **fields: object) -> dict[str, object]:
    asked = {"prompt": prompt, "max_tokens": 4, "temperature": 0, **fields}
    found = httpx.post(
        f"{server.url}/v1/completions", json=asked, headers={"Authorization": f"Bearer {key}"}, timeout=60
    )
    assert found.status_code == 200, found.text
    return found.json()


def all_paths(server: Served) -> list[tuple[str, str]]:
    with server.client() as client:
        described = client.get("/openapi.json").json()["paths"]
    return [(method, path.replace("{name}", "x")) for path, found in described.items() for method in found]


def test_nothing_but_health_answers_without_a_key(locked: Served) -> None:
    paths = [*all_paths(locked), ("get", "/"), ("get", "/openapi.json"), ("get", "/static/main.js"), ("get", "/nowhere")]
    paths += [("get", "/docs"), ("get", "/live/feed"), ("options", "/v1/models"), ("head", "/")]
    assert len(paths) > 20
    wrong = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {ONE}"}, {"Cookie": "kvist-key=wrong"}]
    wrong += [{"Authorization": "Bearer"}, {"Authorization": ONE}, {"X-Api-Key": ONE}, {"Cookie": "kvist-key="}]
    with httpx.Client(base_url=locked.url) as client:
        for method, path in paths:
            for headers in wrong if path == "/v1/models" else wrong[:2]:
                found = client.request(method, path, headers=headers)
                if path == "/health":
                    assert found.status_code == 200 and not found.content
                    continue
                assert found.status_code == 401, (method, path, headers)
                if method != "head":
                    assert found.json()["error"]["code"] == "invalid_api_key"


def test_the_page_asks_for_the_key_and_keeps_it(locked: Served) -> None:
    with httpx.Client(base_url=locked.url) as browser:
        asked = browser.get("/", headers={"Accept": "text/html"})
        assert asked.status_code == 401 and "<form" in asked.text and "/static/" not in asked.text
        again = browser.post("/login", data={"key": "wrong"})
        assert again.status_code == 401 and "not a key" in again.text and "set-cookie" not in again.headers
        entered = browser.post("/login", data={"key": ONE})
        assert entered.status_code == 303 and entered.headers["location"] == "/"
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert browser.get("/", headers={"Accept": "text/html"}).status_code == 200
        assert browser.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../../pyproject.toml", "/static/..%2f..%2f..%2fpyproject.toml", "/static/%2e%2e/app.py",
        "/static//etc/passwd", "/static/%2fetc/passwd", "/static/..\\app.py", "/static/index.html%00.js", "/static/",
    ],
)  # fmt: skip
def test_no_path_leaves_the_static_folder(locked: Served, path: str) -> None:
    import http.client

    host = locked.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host)  # sends the path as it is
    with closing(connection):
        connection.request("GET", path, headers={"Authorization": f"Bearer {ONE}"})
        assert connection.getresponse().status == 404


def test_a_tenant_learns_nothing_of_another(locked: Served) -> None:
    first = ask(locked, ONE, SECRET + "One")
    assert ask(locked, ONE, SECRET + "Two")["usage"]["prompt_tokens_details"]["cached_tokens"] > 40
    told = ask(locked, OTHER, SECRET + "Two")
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert told["kvist"]["reason"] == "salt" and told["kvist"]["first_difference"] is None
    fresh = ask(locked, OTHER, "Nothing like that was ever asked by anybody at all in this place. " * 6)
    assert fresh["kvist"]["first_difference"] is None
    assert first["choices"] == ask(locked, OTHER, SECRET + "One")["choices"]  # the answer itself is the same


def test_a_salt_separates_behind_one_key(locked: Served) -> None:
    prompt = "A salt keeps what two people ask apart from each other in the cache. " * 6
    ask(locked, ONE, prompt, cache_salt="a")
    assert ask(locked, ONE, prompt, cache_salt="a")["usage"]["prompt_tokens_details"]["cached_tokens"] > 40
    for key, salt in ((ONE, "b"), (OTHER, "a")):
        assert ask(locked, key, prompt, cache_salt=salt)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert ask(locked, ONE, prompt)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_sessions_are_their_tenants_own(locked: Served) -> None:
    one, other = ({"Authorization": f"Bearer {key}"} for key in (ONE, OTHER))
    with httpx.Client(base_url=locked.url) as client:
        made = client.post("/v1/sessions", json={"name": "diary", "prompt": SECRET}, headers=one)
        assert made.status_code == 200
        assert client.get("/v1/sessions", headers=other).json()["data"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/fork"), ("POST", "/rollback")):
            body = {"json": {}} if method == "POST" else {}
            found = client.request(method, f"/v1/sessions/diary{path}", headers=other, **body)
            assert found.status_code == 404 and "treasure" not in found.text
        mine = client.post("/v1/sessions", json={"name": "diary"}, headers=other)
        assert mine.status_code == 200 and mine.json()["tokens"] == 0
        assert client.get("/v1/sessions/diary", headers=one).json()["tokens"] > 40
        for headers in (one, other):
            assert client.delete("/v1/sessions/diary", headers=headers).json()["deleted"]


def test_nothing_that_is_told_in_numbers_holds_a_text(locked: Served) -> None:
    ask(locked, ONE, SECRET)
    with httpx.Client(base_url=locked.url, headers={"Authorization": f"Bearer {OTHER}"}) as client:
        for path in ("/cache", "/metrics", "/v1/sessions", "/version", "/v1/models"):
            assert "treasure" not in client.get(path).text
    log = locked.log.read_text()
    assert "treasure" not in log and ONE not in log and OTHER not in log


def test_the_log_is_lines_of_json_with_ids(locked: Served) -> None:
    with locked.client() as client:
        found = client.get("/version", headers={"X-Request-Id": "my-request.7"})
        assert found.headers["x-request-id"] == "my-request.7"
        made = client.get("/version", headers={"X-Request-Id": 'bad "id"'}).headers["x-request-id"]
        assert made.isalnum()
    time.sleep(0.1)
    lines = [json.loads(line) for line in locked.log.read_text().splitlines() if line.startswith("{")]
    assert {line["request_id"] for line in lines if line["event"] == "request"} >= {"my-request.7", made}


def test_a_body_that_is_too_large_is_refused_before_it_is_read(locked: Served) -> None:
    with locked.client() as client:
        found = client.post("/v1/completions", content=b"x" * (9 << 20))
        assert found.status_code == 413 and found.json()["error"]["code"] == "body_too_large"

        def drips() -> Iterator[bytes]:
            for _ in range(100):
                yield b"x" * (1 << 17)

        try:
            found = client.post("/v1/completions", content=drips())
            assert found.status_code == 413
        except httpx.WriteError:
            pass  # the server has hung up, which is as good
        assert client.get("/version").status_code == 200


def test_keys_are_compared_while_others_are_served(locked: Served) -> None:
    with ThreadPoolExecutor(8) as pool, locked.client() as client:
        wrong = pool.map(lambda _: httpx.get(f"{locked.url}/version").status_code, range(50))
        right = pool.map(lambda _: client.get("/version").status_code, range(50))
        assert set(wrong) == {401} and set(right) == {200}
