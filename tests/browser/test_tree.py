"""Tree shows the prefixes that are cached, and says of requests where they left them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from browsing import Open, answer, until
from serving import Served

pytestmark = pytest.mark.model

STEM = "The town lies on a hill above a wide and slow river, and its houses are built of yellow stone. " * 2


@pytest.fixture
def grown(server: Served) -> list[dict[str, Any]]:
    """Two requests that part after a while, in a cache that is otherwise empty."""
    with server.client() as client:
        client.post("/cache/flush")
    return [
        answer(server, STEM + end, max_tokens=20) for end in ("Its oldest tower has a bell.", "Its newest bridge sings.")
    ]


def items(page: Page) -> Any:
    return page.locator("#view-tree [role=treeitem]")


def tree(server: Served) -> dict[str, Any]:
    return httpx.get(f"{server.url}/live/tree").json()


def test_twigs_are_runs_of_pages(open_page: Open, server: Served, grown: list[dict[str, Any]]) -> None:
    told = tree(server)
    size = told["page_size"]
    cached = server.settled()["pages"]["cached"]
    assert told["pages"] == sum(twig["count"] for twig in told["twigs"]) == cached
    trunk, *branches = told["twigs"]
    assert trunk["parent"] is None and [branch["parent"] for branch in branches] == [0, 0]
    with server.client() as client:
        ids = client.post("/tokenize", json={"prompt": STEM + "Its oldest"}).json()["tokens"]
        text = client.post("/detokenize", json={"tokens": ids[: trunk["count"] * size]}).json()["prompt"]
    assert trunk["text"] == text[:400] and trunk["count"] == len(ids) // size
    page = open_page("tree")
    expect(items(page)).to_have_count(3)
    first = items(page).first.locator("> .twig")
    expect(first).to_contain_text(f"{trunk['count']} pages")
    expect(first.locator(".twig-text")).to_have_text(text[:400], use_inner_text=False)
    assert all(branch["same"] for branch in branches)  # both begin within the same page


def test_where_a_prefix_broke_is_what_the_answer_says(
    open_page: Open, server: Served, grown: list[dict[str, Any]]
) -> None:
    difference = grown[1]["kvist"]["first_difference"]
    assert difference["cached_text"] == " oldest" and difference["asked_text"] == " newest"
    page = open_page("tree")
    broke = page.locator("#view-tree .break", has_text=grown[1]["id"].removeprefix("cmpl-")[:6])
    expect(broke.locator("mark")).to_have_text(["·newest", "·oldest"])
    expect(broke).to_contain_text(f"at slot {difference['position'] % 16 + 1}")
    listed = page.locator(".breaks li").first
    expect(listed).to_contain_text(f"at token {difference['position']}")
    cached = grown[1]["usage"]["prompt_tokens_details"]["cached_tokens"]
    expect(listed).to_contain_text(f"{cached} of {grown[1]['usage']['prompt_tokens']} found")
    page.get_by_role("button", name="Close all").click()
    expect(items(page)).to_have_count(1)
    listed.get_by_role("button", name="Show in the tree").click()
    expect(items(page)).to_have_count(3)
    assert page.evaluate("document.activeElement.querySelector('.break') !== null")


def test_the_tree_is_walked_with_keys(open_page: Open, grown: list[dict[str, Any]]) -> None:
    page = open_page("tree")
    expect(items(page)).to_have_count(3)
    items(page).first.focus()
    page.keyboard.press("ArrowLeft")
    expect(items(page)).to_have_count(1)
    expect(items(page).first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(items(page)).to_have_count(3)
    page.keyboard.press("ArrowRight")
    expect(items(page).nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(items(page).nth(2)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(items(page).first).to_be_focused()
    page.keyboard.press("End")
    expect(items(page).nth(2)).to_be_focused()
    assert page.locator("#view-tree [role=treeitem][tabindex='0']").count() == 1


def test_sequences_grow_at_the_tips(open_page: Open, server: Served, grown: list[dict[str, Any]]) -> None:
    page = open_page("tree")
    body = {"prompt": STEM, "max_tokens": 500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        for _ in range(60):
            next(lines)
        expect(page.locator("#view-tree .tip")).to_have_count(1)
        expect(page.locator("#view-tree .tip")).to_contain_text("generated")
    server.settled()
    until(lambda: page.locator("#view-tree .tip").count() == 0)
