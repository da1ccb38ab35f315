"""The picture: the steps that it shows are those that the engine counted."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from browsing import WIDTHS, Open, check_looks, hear, until
from serving import Served

pytestmark = pytest.mark.model

LONG = 60_000
STAGE = "#view-picture canvas"


def total(page: Page, name: str) -> str:
    return page.locator(f'[data-total="{name}"]').inner_text()


def at(page: Page, step: int, of: int = 8) -> None:
    expect(page.locator(".where")).to_have_text(f"Step {step} of {of}", timeout=LONG)


@pytest.fixture
def moving(browser: Browser, server: Served) -> Iterator[Page]:
    """The picture for somebody who likes movement."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="no-preference")
    page = context.new_page()
    complaints: list[str] = []
    hear(page, complaints)
    page.goto(f"{server.url}/#picture")
    yield page
    context.close()
    assert not complaints


def test_fifteen_against_five(open_page: Open) -> None:
    page = open_page("picture")  # who wants no movement sees the last step
    at(page, 8)
    assert (total(page, "uncached-counted"), total(page, "cached-counted")) == ("36", "8")
    page.get_by_label("Step", exact=True).focus()
    for step in (7, 6, 5):
        page.keyboard.press("ArrowLeft")
        at(page, step)
    assert (total(page, "uncached-counted"), total(page, "cached-counted")) == ("15", "5")
    expect(page.locator(".says")).to_contain_text("K and V of 5 tokens are computed, 15 so far")
    expect(page.locator(".says")).to_contain_text("of 1 token, 5 so far")
    expect(page.locator(".says")).to_contain_text("Both chose the same tokens.")
    expect(page.locator(".side.uncached")).to_contain_text("5 computed")
    expect(page.locator(".side.cached")).to_contain_text("1 computed")
    expect(page.locator(".side.cached")).to_contain_text("4 cached")
    bars = page.locator(".measures section").first.locator(".bar-chart")
    assert bars.nth(0).locator(".past, .now").all_inner_texts() == ["1", "2", "3", "4", "5"]
    assert bars.nth(1).locator(".past, .now").all_inner_texts() == ["1"] * 5
    shares = bars.nth(0).locator(".bars > span").evaluate_all("all => all.map((one) => one.offsetHeight)")
    assert shares == sorted(shares) and shares[-1] > 5 * shares[0]
    for side in ("uncached", "cached"):
        assert re.fullmatch(r"[\d.]+ m?s", total(page, f"{side}-measured"))


def test_keys_on_the_picture(open_page: Open) -> None:
    page = open_page("picture")
    at(page, 8)
    page.locator(STAGE).focus()
    page.keyboard.press("ArrowLeft")
    at(page, 7)
    page.keyboard.press("ArrowRight")
    at(page, 8)
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    before = page.locator(STAGE).screenshot()
    page.keyboard.press("Shift+ArrowRight")
    until(lambda: page.locator(STAGE).screenshot() != before)


def test_another_prompt(open_page: Open) -> None:
    page = open_page("picture")
    at(page, 8)
    page.get_by_label("Prompt").fill("One two")
    page.get_by_label("New tokens").fill("2")
    page.get_by_label("New tokens").press("Enter")
    at(page, 3, 3)
    assert (total(page, "uncached-counted"), total(page, "cached-counted")) == ("6", "3")


def test_a_refusal_is_said(open_page: Open) -> None:
    page = open_page("picture")
    at(page, 8)
    page.route("**/live/compare", lambda route: route.fulfill(
        status=200, content_type="text/event-stream",
        body='data: {"error": {"message": "the model is tired", "type": "internal_error"}}\n\n',
    ))  # fmt: skip
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert").filter(has_text="the model is tired")).to_be_visible()
    at(page, 8)  # what was there stays


def test_it_plays_and_a_click_pauses_it(moving: Page) -> None:
    page = moving
    at(page, 3)
    page.locator(STAGE).click()
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    paused = page.locator(".where").inner_text()
    page.wait_for_timeout(2500)
    assert page.locator(".where").inner_text() == paused
    page.locator(STAGE).click()
    at(page, 8)
    expect(page.get_by_role("button", name="Play")).to_be_visible()  # it ends there


def test_nothing_is_drawn_while_nothing_changes_or_nobody_looks(moving: Page) -> None:
    page = moving
    at(page, 3)
    page.get_by_role("button", name="Pause").click()
    page.wait_for_timeout(2000)
    page.evaluate("""() => {
      window.drawn = 0;
      const draw = WebGL2RenderingContext.prototype.drawElements;
      WebGL2RenderingContext.prototype.drawElements = function (...all) { window.drawn += 1; return draw.apply(this, all); };
    }""")
    page.wait_for_timeout(800)
    assert page.evaluate("drawn") == 0
    page.locator(STAGE).press("ArrowRight")
    until(lambda: page.evaluate("drawn") > 0)
    page.get_by_role("button", name="Play").click()
    page.locator("#tab-memory").click()
    page.wait_for_timeout(300)
    before = page.evaluate("drawn")
    page.wait_for_timeout(1800)
    assert page.evaluate("drawn") == before


def test_without_webgl_the_same_is_shown_flat(browser: Browser, server: Served) -> None:
    context = browser.new_context(reduced_motion="reduce")
    context.add_init_script("""
      const get = HTMLCanvasElement.prototype.getContext;
      HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
        return kind.startsWith("webgl") ? null : get.call(this, kind, ...more);
      };
    """)
    page = context.new_page()
    complaints: list[str] = []
    hear(page, complaints)
    page.goto(f"{server.url}/#picture")
    at(page, 8)
    assert page.locator(".blocks.uncached .lit").count() == 8
    assert page.locator(".blocks.cached .lit").count() == 1
    assert page.locator(".blocks.cached .rest small").all_inner_texts() == ["cached"] * 7
    assert page.locator(".blocks.uncached li span").first.inner_text() == "John"
    check_looks(page)
    context.close()
    assert not complaints


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(open_page: Open, width: int, scheme: str) -> None:
    page = open_page("picture", width, scheme)
    at(page, 8 if width > 640 else 6, 8 if width > 640 else 6)
    check_looks(page)
