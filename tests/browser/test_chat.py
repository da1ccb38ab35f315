"""Chat: what the page says of an answer is what the server keeps and counts."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from browsing import WIDTHS, Open, check_looks
from serving import Served

pytestmark = pytest.mark.model

LONG = 60_000  # milliseconds that answers may take on a busy machine
FIRST = "Name a tree, and say one thing about it."
SECOND = "And another one?"


def settings(page: Page, *, tokens: int = 12, temperature: float = 0, compare: bool = False) -> None:
    card = page.locator(".settings")
    if not card.evaluate("card => card.open"):
        card.locator("summary").press("Enter")
    page.get_by_label("Temperature").fill(str(temperature))
    page.get_by_label("Tokens at most").fill(str(tokens))
    page.get_by_role("switch").set_checked(compare)


def say(page: Page, text: str) -> Locator:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")
    return answered(page)


def answered(page: Page) -> Locator:
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=LONG)
    return page.locator(".said-assistant").last


def sessions(server: Served) -> list[dict[str, Any]]:
    with server.client() as client:
        return client.get("/v1/sessions").json()["data"]


def texts(page: Page) -> list[str]:
    return page.locator(".said > .said-text").all_inner_texts()


@pytest.fixture(autouse=True)
def no_sessions(server: Served) -> None:
    with server.client() as client:
        for one in sessions(server):
            client.delete(f"/v1/sessions/{one['name']}")


def number(answer: Locator, kind: str) -> int:
    return int(answer.locator(f".cost .{kind} strong").inner_text().replace(",", ""))


def test_answers_and_what_they_cost(open_page: Open, server: Served) -> None:
    page = open_page("chat")
    settings(page)
    before = server.settled()["counters"]
    first = say(page, FIRST)
    second = say(page, SECOND)
    (session,) = sessions(server)
    assert texts(page) == [message["content"].strip() for message in session["messages"]]
    after = server.settled()["counters"]
    answers = page.locator(".said-assistant")
    found = [number(answers.nth(i), "cached") for i in range(2)]
    fresh = [number(answers.nth(i), "new") for i in range(2)]
    assert sum(found) == after["prefix_hits"] - before["prefix_hits"]
    assert sum(found) + sum(fresh) == after["prefix_queries"] - before["prefix_queries"]
    assert found[1] >= 16 and fresh[1] > 0  # the first turn is in the cache
    for answer in (first, second):
        expect(answer).to_contain_text(re.compile(r"first token \d+(\.\d)? m?s"))
        expect(answer).to_contain_text(re.compile(r"[\d.]+ tokens/s"))


def test_where_the_prefix_broke(open_page: Open, server: Served) -> None:
    page = open_page("chat")
    settings(page)
    same = "Tell me about the many kinds of trees that grow in the north of Sweden, and "
    say(page, f"{same}begin with birches.")
    page.get_by_role("button", name="New").click()
    second = say(page, f"{same}end with pines.")
    why = second.locator(".why")
    expect(why).to_contain_text(re.compile(r"The prefix broke at token \d+"))
    assert [text.strip("· ") for text in why.locator("code").all_inner_texts()] == ["begin", "end"]


def test_shift_enter_is_a_new_line_and_other_peoples_markup_is_text(open_page: Open, server: Served) -> None:
    page = open_page("chat")
    settings(page, tokens=2)
    box = page.get_by_label("Message")
    box.fill("<img src=x onerror=alert(1)>")
    box.press("Shift+Enter")
    box.type("<b>second</b>")
    assert box.input_value() == "<img src=x onerror=alert(1)>\n<b>second</b>"
    box.press("Enter")
    answered(page)
    assert page.locator(".said-user .said-text").inner_text() == "<img src=x onerror=alert(1)>\n<b>second</b>"
    assert page.locator(".log img, .log b").count() == 0


def test_stop_keeps_what_is_there(open_page: Open, server: Served) -> None:
    page = open_page("chat")
    settings(page, tokens=2000, temperature=1)
    page.get_by_label("Message").fill("Tell me a very long story about a forest.")
    page.get_by_label("Message").press("Enter")
    expect(page.locator(".said-assistant .said-text")).not_to_be_empty(timeout=LONG)
    page.get_by_role("button", name="Stop").click()
    answer = answered(page)
    expect(answer).to_contain_text("Stopped")
    (session,) = sessions(server)
    assert not session["busy"]
    assert answer.locator(".said-text").inner_text().strip() == session["messages"][-1]["content"].strip()
    server.settled()


def test_regenerate_roll_back_and_fork(open_page: Open, server: Served) -> None:
    page = open_page("chat")
    settings(page)
    say(page, FIRST)
    one = texts(page)
    page.get_by_role("button", name="Regenerate").click()
    answered(page)
    assert texts(page) == one  # greedily, from what is cached
    assert number(page.locator(".said-assistant").last, "new") <= 16
    say(page, SECOND)
    page.locator(".acts").nth(1).get_by_role("button", name="Fork from here").click()
    expect(page.get_by_role("tab", name="Chat 1 · fork")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".said")).to_have_count(2)
    say(page, "Thank you.")
    assert {len(session["messages"]) for session in sessions(server)} == {4}
    page.get_by_role("tab", name="Chat 1 · fork").press("ArrowLeft")
    expect(page.locator(".said")).to_have_count(4)
    assert SECOND in texts(page)
    page.locator(".acts").nth(0).get_by_role("button", name="Roll back to here").click()
    expect(page.locator(".said")).to_have_count(1)
    assert len(sessions(server)[0]["messages"]) == 1
    page.get_by_role("button", name="Answer").click()
    answered(page)
    assert texts(page) == one
    page.reload()
    expect(page.get_by_role("tab", name="Chat 1 · fork")).to_be_visible()
    page.get_by_role("tab", name="Chat 1", exact=True).click()
    expect(page.locator(".said")).to_have_count(2)
    assert texts(page) == one
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("tab", name="Chat 1", exact=True)).to_have_count(0)
    assert len(sessions(server)) == 1


def test_the_same_answer_without_the_cache_beside_it(open_page: Open, server: Served) -> None:
    page = open_page("chat")
    settings(page, tokens=10, temperature=0.8, compare=True)
    answer = say(page, FIRST)
    answer = say(page, SECOND)
    expect(answer.locator(".verdict")).to_contain_text("The same text, character by character")
    left, right = answer.locator(".said-text").all_inner_texts()
    assert left == right and left.strip() == sessions(server)[0]["messages"][-1]["content"].strip()
    made = [
        int(text.replace(",", "")) for text in answer.locator(".beside-foot span:nth-child(2) strong").all_inner_texts()
    ]
    prompt = number(answer, "cached") + number(answer, "new")
    tokens = made[0] - number(answer, "new") + 1  # an answer may end by itself before it has ten
    assert 0 < tokens <= 10 and made[1] == sum(range(prompt, prompt + tokens))


def test_what_goes_wrong_is_said_and_nothing_typed_is_lost(open_page: Open, server: Served) -> None:
    page = open_page("chat")
    settings(page, tokens=4)
    told = {"error": {"message": "no more today", "type": "rate_limit_error", "param": None, "code": None}}
    refuse: list[bool] = [True]

    def route(route: Any) -> None:
        if refuse[0]:
            route.fulfill(
                status=200, content_type="text/event-stream", body=f"data: {httpx.Response(200, json=told).text}\n\n"
            )
        else:
            route.continue_()

    page.route("**/v1/chat/completions", route)
    page.get_by_label("Message").fill(FIRST)
    page.get_by_label("Message").press("Enter")
    expect(page.get_by_role("alert").filter(has_text="no more today")).to_be_visible()
    assert page.get_by_label("Message").input_value() == FIRST
    expect(page.locator(".said")).to_have_count(0)
    refuse[0] = False
    page.get_by_label("Message").press("Enter")
    answered(page)
    assert len(texts(page)) == 2
    expect(page.get_by_role("alert").filter(has_text="no more today")).to_be_hidden()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(open_page: Open, width: int, scheme: str) -> None:
    page = open_page("chat", width, scheme)
    settings(page, tokens=6, compare=True)
    say(page, f"{FIRST} {'x' * 200}")
    check_looks(page)
