"""What tests in a browser share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page

from serving import Served

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-networking", "--no-first-run", "--disable-sync",
]  # fmt: skip
WIDTHS = (1280, 390)
Open = Callable[..., Page]
"""Opens a view: `open_page("pages", width=390)`."""


DRIVER = "GPU stall due to ReadPixels"
"""What a browser without a graphics card says of itself when it shows a picture drawn with WebGL."""


def hear(page: Page, complaints: list[str]) -> None:
    """Note all that a page complains of."""
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda told: (
            complaints.append(told.text) if told.type in ("error", "warning") and DRIVER not in told.text else None
        ),
    )


def state(page: Page, path: str) -> Any:
    """What the page knows: `state(page, "sequences.size")`."""
    return page.evaluate(f"import('/static/main.js').then(({{app}}) => app.state.{path})")


def until(said: Callable[[], object], seconds: float = 10) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < end
        time.sleep(0.05)


def check_looks(page: Page) -> None:
    """Nothing to scroll sideways, no text that is too small to read, in what is shown."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = page.evaluate("""() => {
      const found = [];
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const parent = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !parent.checkVisibility()) continue;
        if (parseFloat(getComputedStyle(parent).fontSize) < 12) found.push(walker.currentNode.data);
      }
      return found;
    }""")
    assert small == []


def answer(server: Served, prompt: str, **fields: object) -> dict[str, object]:
    """What the server says to a prompt, and what it reports of it."""
    with server.client() as client:
        asked = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}
        found = client.post("/v1/completions", json=asked)
        assert found.status_code == 200, found.text
        return found.json()
