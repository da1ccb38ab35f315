"""The live page in a real browser, on a real server of the default model: one server for each file of tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright import sync_api

import serving
from browsing import FLAGS, PROGRAMS, Open, hear
from serving import Served


@pytest.fixture(scope="module")  # not longer: Playwright keeps an event loop, and tests elsewhere have their own
def browser() -> Iterator[sync_api.Browser]:
    """Chromium. Where there is none its tests are skipped, but not in CI: there they fail."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        missing = f"needs a browser: none of {', '.join(PROGRAMS)} is installed"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[Served]:
    with serving.serving("smollm2") as made:
        yield made


@pytest.fixture
def open_page(browser: sync_api.Browser, server: Served) -> Iterator[Open]:
    """Open a view: `open_page("pages", width=390)`. When the test is over no page may have complained of anything."""
    contexts: list[sync_api.BrowserContext] = []
    complaints: list[str] = []

    def opened(view: str, width: int = 1280, scheme: str = "light", at: Served = server) -> sync_api.Page:
        context = browser.new_context(
            viewport={"width": width, "height": 860}, color_scheme=scheme, reduced_motion="reduce"
        )
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        hear(page, complaints)
        page.goto(f"{at.url}/#{view}")
        page.locator(f"#view-{view} > *").first.wait_for()
        page.locator('#status[data-kind="good"]').wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints
