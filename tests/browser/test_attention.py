"""Attention: the map says what the server says, cell by cell; keys reach all of it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from browsing import WIDTHS, Open, check_looks
from serving import Served

pytestmark = pytest.mark.model

LONG = 30_000
MAP = "#view-attention canvas"


def drawn(page: Page, layer: int, head: int) -> None:
    expect(page.locator(MAP)).to_have_attribute(
        "aria-label", re.compile(rf"layer {layer}, head {head}: "), timeout=LONG
    )


def test_cells_say_what_the_server_says(open_page: Open, server: Served) -> None:
    page = open_page("attention")
    drawn(page, 10, 0)
    page.get_by_role("slider", name="Layer").fill("29")
    page.get_by_role("slider", name="Head").fill("4")
    drawn(page, 29, 4)
    text = page.get_by_label("Text", exact=True).input_value()
    with server.client() as client:
        told = client.post("/live/attention", json={"text": text, "layer": 29, "head": 4}).json()
    rows, readout = len(told["tokens"]), page.locator(".readout")
    page.locator(MAP).focus()
    expect(readout).to_contain_text(f"({rows - 1}) looks at {told['tokens'][0]} (0)")
    expect(readout.locator("strong")).to_have_text(f"{100 * told['weights'][-1][0]:.2f}%")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    expect(readout.locator("strong")).to_have_text(f"{100 * told['weights'][-2][1]:.2f}%")
    page.keyboard.press("End")  # the future is not there: it ends at the token itself
    expect(readout).to_contain_text(f"({rows - 2}) looks at")
    expect(readout.locator("strong")).to_have_text(f"{100 * told['weights'][-2][-1]:.2f}%")
    expect(page.locator("#view-attention figcaption")).to_contain_text("Query head 4 reads K/V head 1")
    expect(page.locator("#view-attention figcaption")).to_contain_text("Each row sums to 1")


def test_the_pointer_reads_cells_and_stops_at_the_diagonal(open_page: Open) -> None:
    page = open_page("attention")
    drawn(page, 10, 0)
    readout, canvas = page.locator(".readout"), page.locator(MAP)
    box = canvas.bounding_box()
    assert box is not None
    layout = page.evaluate("""() => {
      const canvas = document.querySelector('#view-attention canvas');
      return { width: canvas.clientWidth, height: canvas.clientHeight };
    }""")
    assert layout["width"] <= page.locator("#view-attention figure").evaluate("one => one.clientWidth")
    canvas.hover(position={"x": layout["width"] * 0.6, "y": 8})  # above the diagonal
    expect(readout).to_contain_text("Point at a cell")
    canvas.hover(position={"x": 100, "y": 200})
    expect(readout).to_contain_text("looks at")


def test_heads_and_bytes_are_the_servers(open_page: Open, server: Served) -> None:
    page = open_page("attention")
    drawn(page, 10, 0)
    with server.client() as client:
        kinds = client.get("/live/attention").json()["bytes_per_token"]
        pool = client.get("/cache").json()
    cards = page.locator(".kind")
    assert cards.count() == len(kinds) == 3
    for i, kind in enumerate(kinds):
        expect(cards.nth(i)).to_contain_text(kind["kind"])
        expect(cards.nth(i)).to_contain_text(f"{kind['bytes']:,} bytes")
    own = next(kind for kind in kinds if kind["own"])
    assert own["bytes"] * pool["page_size"] == pool["pools"][0]["page_bytes"]
    page.locator(".kind.own .query").nth(7).click()
    drawn(page, 10, 7)
    expect(page.locator(".kind.own .store.lit")).to_have_count(1)
    expect(page.locator("#view-attention figcaption")).to_contain_text("Query head 7 reads K/V head 2")


def test_a_conversation_of_the_chat(open_page: Open, server: Served) -> None:
    with server.client() as client:
        asked = {"name": "oak & elm", "messages": [{"role": "user", "content": "Name a tree. " * 60}]}
        assert client.post("/v1/sessions", json=asked).status_code == 200
    page = open_page("attention")
    page.goto(f"{server.url}/#attention/oak%20%26%20elm")
    expect(page.locator(MAP)).to_have_attribute("aria-label", re.compile("128 tokens"), timeout=LONG)
    expect(page.locator("#view-attention figcaption")).to_contain_text("Shown are the first 128 tokens")
    expect(page.get_by_label("Text", exact=True)).to_be_hidden()
    check_looks(page)  # the map scrolls, the page does not
    page.get_by_role("button", name="Look at a text instead").click()
    expect(page.get_by_label("Text", exact=True)).to_be_visible()
    expect(page.locator(MAP)).to_have_attribute("aria-label", re.compile(": 11 tokens"), timeout=LONG)


def test_markup_is_text(open_page: Open) -> None:
    page = open_page("attention")
    drawn(page, 10, 0)
    box = page.get_by_label("Text", exact=True)
    box.fill("<b>x</b><script>")
    box.press("Enter")
    expect(page.locator(MAP)).not_to_have_attribute("aria-label", re.compile(": 11 tokens"), timeout=LONG)
    page.locator(MAP).focus()
    expect(page.locator(".readout code").first).to_be_visible()
    assert page.locator("#view-attention .readout b, #view-attention .readout script").count() == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(open_page: Open, width: int, scheme: str) -> None:
    page = open_page("attention", width, scheme)
    drawn(page, 10, 0)
    check_looks(page)


def test_a_refusal_is_said(browser: Browser, server: Served) -> None:
    page = browser.new_page()  # the browser itself complains of a refusal
    page.goto(f"{server.url}/#attention")
    drawn(page, 10, 0)
    page.get_by_label("Text", exact=True).fill("")
    page.get_by_role("button", name="Look", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="0 tokens: give 1 to 128")).to_be_visible()
    page.get_by_label("Text", exact=True).fill("An elm.")
    page.get_by_role("button", name="Look", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="0 tokens")).to_be_hidden()
    page.close()
