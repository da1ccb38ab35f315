"""Pages shows what `/cache` says, page by page."""

from __future__ import annotations

import json
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from browsing import Open, answer, state, until
from serving import Served

pytestmark = pytest.mark.model

STEM = "A river is a natural stream of water that flows from a spring to the sea, to a lake or to another river. "


def snapshot(server: Served) -> dict[str, Any]:
    """What a viewer who comes now is told."""
    with httpx.stream("GET", f"{server.url}/live/feed") as stream:
        line = next(line for line in stream.iter_lines() if line.startswith("data: "))
        return json.loads(line.removeprefix("data: "))


def table(page: Page) -> dict[str, int]:
    rows = page.locator("#view-pages table tr").evaluate_all(
        "rows => rows.map((row) => [row.cells[0].textContent, Number(row.cells[1].textContent.replaceAll(',', ''))])"
    )
    return dict(rows)


def test_the_page_follows_a_server_at_work(open_page: Open, server: Served) -> None:
    page = open_page("pages")
    asked = [{"prompt": STEM * (i % 3 + 1) + f"Number {i}.", "max_tokens": 10 + i} for i in range(10)]
    asked[3] |= {"n": 3, "temperature": 1.0}
    asked[4] |= {"cache_salt": "another"}

    def leave(url: str) -> None:  # a client that goes away in the middle
        body = {"prompt": STEM + "Left.", "max_tokens": 300, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as stream:
            next(stream.iter_lines())

    with ThreadPoolExecutor(6) as pool:
        left = pool.submit(leave, server.url)
        answers = list(pool.map(lambda one: answer(server, **one), asked))
        left.result()
    assert all(one["choices"] for one in answers)
    cache = server.settled()
    until(lambda: not state(page, "sequences.size"))
    page.wait_for_timeout(1500)
    truth = snapshot(server)
    touched = truth["pages"][0]["touched"]
    shown = bytes(map(int, state(page, "pages[0].states.join()").split(",")))
    assert shown[:touched] == b64decode(truth["pages"][0]["states"]) and not any(shown[touched:])
    pools = cache["pools"][0]
    told = table(page)
    assert (told["Live"], told["Cached"], told["Free"]) == (0, pools["cached"], pools["free"])
    assert told["All"] == pools["total"] and cache["counters"]["pages_shared"] > 0
    hit_rate = page.locator(".tile", has_text="Hit rate").locator("strong")
    expect(hit_rate).to_have_text(f"{cache['hit_rate'] * 100:.1f}%")
    requests = state(page, "requests")
    assert len(requests) == 11 and sum(not one["mine"] for one in requests) == 1
    assert next(one for one in requests if not one["mine"])["request"] is None


def test_live_pages_and_their_owners_are_shown(open_page: Open, server: Served) -> None:
    page = open_page("pages")
    body = {"prompt": STEM * 2, "max_tokens": 400, "n": 2, "temperature": 1.0, "seed": 4, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**body, "stream": True}) as stream:
        lines = stream.iter_lines()
        for _ in range(60):
            next(lines)
        bands = page.locator(".map-labels div")
        expect(bands.filter(has_text="branch 2")).to_have_count(1)
        expect(page.locator("#status")).to_have_text("2 running")
        until(lambda: table(page)["of them filling"] == 2)
        assert table(page)["of them shared"] >= 2
        page.locator(".map").focus()  # the first page of the first sequence
        card = page.locator(".page-card")
        expect(card.locator("h3")).to_contain_text("Page ")
        expect(card.locator(".chip")).to_contain_text("shared by 2, sealed")
        expect(card.locator(".holders li")).to_have_count(2)


def test_a_page_tells_its_tokens_to_pointer_and_keys(open_page: Open, server: Served) -> None:
    prompt = "The quick brown fox jumps over the lazy dog, <b>and</b> the dog sleeps on. " * 2
    with server.client() as client:
        client.post("/cache/flush")
        ids = client.post("/tokenize", json={"prompt": prompt}).json()["tokens"]
    answer(server, prompt, max_tokens=1)
    page = open_page("pages")
    page.locator(".map").focus()
    card = page.locator(".page-card")
    expect(card.locator(".tokens span")).to_have_count(16)
    assert len(ids) >= 32
    shown = {}
    for _ in range(len(ids) // 16):  # the cached pages, the one used last first: the first of the prompt
        number = card.locator("h3").text_content()
        titles = card.locator(".tokens span").evaluate_all("spans => spans.map((span) => Number(span.title.slice(6)))")
        start = card.locator("dd").first.text_content()
        shown[start] = titles
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(400)
        assert card.locator("h3").text_content() != number or len(shown) == len(ids) // 16
    assert shown["0 to 15"] == ids[:16] and shown["16 to 31"] == ids[16:32]
    assert page.locator("#view-pages b").count() == 0  # text is text
    box = page.locator(".map canvas").bounding_box()
    assert box is not None
    page.keyboard.press("End")
    page.mouse.move(box["x"] + 8, box["y"] + 34)
    expect(card.locator("dd").first).to_have_text("0 to 15")


def test_the_order_can_be_chosen_with_keys(open_page: Open, server: Served) -> None:
    answer(server, STEM)
    page = open_page("pages")
    expect(page.locator(".map-labels div").first).to_contain_text("Cached, used last first")
    page.get_by_role("radio", name="By sequence").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="By age")).to_be_checked()
    expect(page.locator(".map-labels div")).to_have_count(0)
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="By number")).to_be_checked()
    page.locator(".map").focus()
    expect(page.locator(".page-card h3")).to_have_text("Page 0")
