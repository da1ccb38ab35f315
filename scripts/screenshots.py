"""Write docs/pictures/live-*.png: the live page's views, light and dark, of a real server that answers real requests.

Run it where kvist, Playwright and Chromium are installed: python scripts/screenshots.py [VIEW ...]
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from browsing import FLAGS, PROGRAMS
from serving import Served, serving

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "pictures"
SIZE = {"width": 1280, "height": 800}
SYSTEM = (
    "You are a patient teacher of physics. You answer in plain words, with one example from daily life, and you never "
    "use more than three sentences unless somebody asks for more. If a question is unclear, say what you take it to mean."
)
QUESTIONS = (
    "Why is the sky blue?", "Why is the sea blue?", "Write a poem about twigs.", "Why is the sky red at dusk?",
    "Name three rivers.",
)  # fmt: skip


def ask(server: Served, question: str, tokens: int, answers: int) -> None:
    """Let one request run to its end."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    body = {"messages": messages, "max_tokens": tokens, "n": answers, "temperature": 0.7, "seed": 3}
    with server.client() as client:
        client.post("/v1/chat/completions", json={"model": "smollm2", **body}).raise_for_status()


def ask_all(server: Served, tokens: int) -> list[threading.Thread]:
    """Begin to ask all questions, one shortly after the other."""
    threads = [
        threading.Thread(target=ask, args=(server, question, tokens, 2 if "poem" in question else 1))
        for question in QUESTIONS
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    return threads


def pages(page: Page) -> None:
    """The third page of the first sequence, which all share."""
    page.locator(".map canvas").hover(position={"x": 60, "y": 40})
    page.locator(".page-card .tokens").wait_for()


def chat(page: Page) -> None:
    """Two questions that begin alike."""
    for number, question in enumerate(QUESTIONS[:2], 1):
        page.get_by_label("Message").fill(question)
        page.get_by_label("Message").press("Enter")
        page.locator(".said-assistant .cost").nth(number - 1).wait_for(timeout=60_000)


def settle(selector: str) -> Callable[[Page], None]:
    """Wait for a part of a view, and for what it draws."""

    def wait(page: Page) -> None:
        page.locator(selector).first.wait_for(timeout=60_000)
        page.wait_for_timeout(4000)

    return wait


# what is done before a view's picture is taken, and whether requests should run meanwhile
VIEWS: dict[str, tuple[Callable[[Page], None], bool]] = {
    "pages": (pages, True),
    "tree": (settle("#view-tree .tip"), True),
    "chat": (chat, False),
    "picture": (settle("#view-picture canvas"), False),
    "attention": (settle("#view-attention canvas"), False),
    "memory": (settle(".reserved-list li"), False),
}


def shoot(browser: Browser, server: Served, view: str, scheme: str) -> None:
    """Take one picture."""
    prepare, busy = VIEWS[view]
    context = browser.new_context(viewport=SIZE, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"{server.url}/#{view}")
    page.locator('#status[data-kind="good"]').wait_for()
    threads = ask_all(server, 160) if busy else []
    page.wait_for_timeout(2500 if busy else 500)
    prepare(page)
    TARGET.mkdir(parents=True, exist_ok=True)
    target = TARGET / f"live-{view}-{scheme}.png"
    page.screenshot(path=target)
    print(f"{target.relative_to(ROOT)}  {target.stat().st_size / 1024:.0f} KiB")
    for thread in threads:
        thread.join()
    context.close()


def main(views: list[str]) -> None:
    """All views, or those that are named."""
    program = next(filter(None, map(shutil.which, PROGRAMS)))
    with serving("smollm2") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        for thread in ask_all(server, 40):  # so that something is cached
            thread.join()
        for view in views or VIEWS:
            for scheme in ("light", "dark"):
                shoot(browser, server, view, scheme)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
