"""The shell: tabs, both schemes, and a server that goes away."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

import serving
from browsing import WIDTHS, Open, check_looks
from serving import Served

VIEWS = ("pages", "tree", "chat", "picture", "attention", "memory")


@pytest.mark.model
@pytest.mark.parametrize("width", WIDTHS)
def test_tabs_are_walked_with_arrow_keys(open_page: Open, width: int) -> None:
    page = open_page("pages", width)
    names = page.locator("#tabs [role=tab]").evaluate_all("tabs => tabs.map((tab) => tab.id.slice(4))")
    assert names == ["pages", "tree", "chat", "picture", "attention", "memory"]
    page.locator("#tab-pages").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-tree")).to_be_focused()
    expect(page.locator("#view-tree")).to_be_visible()
    expect(page.locator("#view-pages")).to_be_hidden()
    assert page.url.endswith("#tree") and page.title() == "Tree · kvist"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # around the corner
    expect(page.locator("#tab-memory")).to_be_focused()
    expect(page.locator("#tab-memory")).to_have_attribute("aria-selected", "true")
    assert page.locator("#tabs [tabindex='0']").count() == 1
    page.keyboard.press("Home")
    expect(page.locator("#view-pages")).to_be_visible()


@pytest.mark.model
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_scheme_is_the_systems_until_another_is_chosen(open_page: Open, width: int, scheme: str) -> None:
    page = open_page("pages", width, scheme)
    dark = "matchMedia('(prefers-color-scheme: dark)').matches"
    background = "getComputedStyle(document.body).backgroundColor"
    first = page.evaluate(background)
    assert page.evaluate(dark) == (scheme == "dark")
    page.get_by_role("button", name="Use dark colours" if scheme == "light" else "Use light colours").press("Enter")
    assert (other := page.evaluate(background)) != first
    page.reload()
    assert page.evaluate(background) == other
    page.get_by_role("button", name="Use light colours" if scheme == "light" else "Use dark colours").click()
    assert page.evaluate(background) == first


@pytest.mark.model
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_too_wide_or_too_small(open_page: Open, view: str, width: int) -> None:
    check_looks(open_page(view, width))


@pytest.mark.model
def test_only_what_lies_in_the_folder_is_served(server: Served) -> None:
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/static/lib/api.js").headers["content-type"].startswith("text/javascript")
        for path in ("../app.py", "%2e%2e/app.py", "lib/../../app.py", "..%2fapp.py", "/etc/passwd", "lib", ""):
            found = client.get(f"/static/{path}")
            assert found.status_code == 404, path
        page = client.get("/")
        assert "script-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.model
def test_a_server_that_stops_ends_the_feed_at_once_and_is_found_again(browser: Browser, smollm2_path: Path) -> None:
    page = browser.new_page()  # the browser itself complains of a server that is gone
    with serving.serving("smollm2") as first:
        page.goto(first.url)
        expect(page.locator("#status")).to_have_text("ready", timeout=15_000)
        begin = time.monotonic()
        first.stop(signal.SIGTERM)
        assert time.monotonic() - begin < 4  # an open feed does not hold it up
    expect(page.locator("#status")).to_have_text("reconnecting")
    with serving.serving("smollm2", "--port", first.url.rsplit(":", 1)[1]):
        expect(page.locator("#status")).to_have_text("ready", timeout=30_000)
        page.close()


@pytest.mark.model
def test_with_a_key_the_page_asks_for_it(browser: Browser, smollm2_path: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    with serving.serving("smollm2", key="the-key-7") as locked:
        page.goto(locked.url)
        expect(page.get_by_label("API key")).to_be_focused()
        assert page.locator("nav").count() == 0
        page.keyboard.type("another-key")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("That is not a key of this server.")
        page.get_by_label("API key").fill("the-key-7")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text("ready", timeout=15_000)
        page.goto(f"{locked.url}/#chat")
        page.get_by_role("textbox", name="Message").fill("Name a tree.")
        page.keyboard.press("Enter")
        expect(page.get_by_text("first token").first).to_be_visible(timeout=60_000)
        assert "the-key-7" not in page.content()
    context.close()
