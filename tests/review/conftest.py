"""Fixtures of the tests that drive the review page."""

from __future__ import annotations

import pytest

from helpers.page import CHROMIUM, DESKTOP, QUIET


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a report from the disk; a message in the console, an error or a request to elsewhere fails the test."""
    opened = []

    def open_page(folder, **options):
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        page = context.new_page()
        troubles = []
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
        page.on(
            "request",
            lambda request: (
                troubles.append(f"request: {request.url}")
                if not request.url.startswith(("file:", "data:", "blob:"))
                else None
            ),
        )
        page.goto((folder / "index.html").as_uri())
        page.wait_for_selector("html[data-ready]")
        opened.append((context, troubles))
        return page

    yield open_page
    for context, troubles in opened:
        context.close()
        assert troubles == []
