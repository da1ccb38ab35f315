"""Memory: bytes of the requests that ran, checked against what their answers report."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from browsing import Open, answer, state
from serving import Served

pytestmark = pytest.mark.model

SIZE = 16
PROMPT = "A list of things that one takes along when one goes to the mountains for a week in the summer, as follows: "


def held(usage: dict[str, Any]) -> int:
    return -(-(usage["prompt_tokens"] + usage["completion_tokens"] - 1) // SIZE)


def row(page: Page, number: int) -> str:
    return page.locator(".reserved-list li").nth(number).inner_text()


def test_bytes_reserved_and_held(open_page: Open, server: Served) -> None:
    page = open_page("memory")
    first, again = (answer(server, PROMPT, max_tokens=40, stop=["zzz"]) for _ in range(2))
    short = answer(server, PROMPT + "bread", max_tokens=200, ignore_eos=False, stop=[","])
    expect(page.locator(".reserved-list li")).to_have_count(3)
    cache = server.settled()
    page_bytes = cache["pools"][0]["page_bytes"]
    records = state(page, "requests")
    for record, told in zip(records, (first, again, short), strict=True):
        usage = told["usage"]
        found = usage["prompt_tokens_details"]["cached_tokens"] // SIZE
        assert (record["prompt"], record["generated"]) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert (record["pages"], record["found"]) == (held(usage), found)
        assert record["held"] == record["pages"] * page_bytes
        assert record["own"] == (record["pages"] - found) * page_bytes
        tokens = usage["prompt_tokens"] + usage["completion_tokens"] - 1 - found * SIZE
        assert record["used"] == tokens * page_bytes // SIZE
    assert [record["found"] for record in records] == [0, first["usage"]["prompt_tokens"] // SIZE, records[2]["found"]]
    asked = short["usage"]["prompt_tokens"] + 200
    wasted = 1 - (short["usage"]["prompt_tokens"] + short["usage"]["completion_tokens"] - 1) / asked
    assert f"{wasted * 100:.1f}% wasted" in row(page, 0)
    empty = -(short["usage"]["prompt_tokens"] + short["usage"]["completion_tokens"] - 1) % SIZE
    assert f"{empty} slot" in row(page, 0)
    page.get_by_role("radio", name="the longest context").check(force=True)
    longest = state(page, "model.max_model_len")
    expect(page.locator(".total").first.locator("strong")).to_have_text(
        f"{3 * longest * page_bytes / SIZE / 2**20:.0f} MiB"
    )
    shares = [float(x) for x in re.findall(r"([\d.]+)% wasted", page.locator(".totals").inner_text())]
    assert shares[0] > 95 and shares[1] < 20


def test_the_arithmetic_is_the_models(open_page: Open, server: Served) -> None:
    page = open_page("memory")
    product = " \N{MULTIPLICATION SIGN} ".join(("2 (K and V)", "30 layers", "3 KV heads", "64", "2 bytes"))
    expect(page.locator(".sum").first).to_contain_text(product)
    expect(page.locator(".sum").first.locator("strong")).to_have_text(f"{2 * 30 * 3 * 64 * 2:,} B")


def test_k_and_v_grow(open_page: Open, server: Served) -> None:
    page = open_page("memory")
    note = page.locator(".matrices > .small")
    with server.client() as client:
        body = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            for _ in range(20):
                next(lines)
            expect(note).to_contain_text("columns")
            before = note.inner_text()
            for _ in range(20):
                next(lines)
            told = client.get("/live/kv?layer=29&head=2").json()["columns"]
            assert told["dims"] == 64 and len(told["tokens"]) > 8
            expect(note).not_to_have_text(before)
            page.get_by_label("Layer").select_option("29")
            page.get_by_label("KV head").select_option("2")
        assert client.get("/live/kv?layer=30").status_code == 404
        server.settled()
        assert client.get("/live/kv").json() == {"columns": None}
    drawn = "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data"
    colours = page.locator(".matrices canvas").first.evaluate(
        f"canvas => new Set(new Uint32Array({drawn}.buffer)).size"
    )
    assert colours > 50


def test_nobody_elses_requests_have_a_name(server: Served, open_page: Open) -> None:
    answer(server, PROMPT, cache_salt="mine alone")
    page = open_page("memory")
    expect(page.locator(".reserved-list strong").first).to_have_text("somebody else")
    assert httpx.get(f"{server.url}/live/kv").json() == {"columns": None}
