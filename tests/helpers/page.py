"""Drive a page in Chromium."""

from __future__ import annotations

import shutil
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1440, "height": 900}


def go(page, place: str) -> None:
    page.evaluate(
        """place => new Promise(done => {
            if (location.hash === place) return done();
            window.addEventListener("hashchange", () => done(), { once: true });
            location.hash = place;
        })""",
        place,
    )


def until(page, expression: str) -> None:
    """Wait for an expression to hold; the page's policy forbids Playwright's own way, which is eval."""
    stop = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < stop, expression
        page.wait_for_timeout(20)
