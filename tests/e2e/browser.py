"""Headless Chromium for the page's tests: what must never happen is watched all along."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
WIDE = {
    "viewport": {"width": 1280, "height": 800},
    "color_scheme": "light",
    "locale": "es-ES",
    "reduced_motion": "reduce",  # nothing half-faded in pictures and contrasts
}
WATCH = """
window.__violations = [];
addEventListener("securitypolicyviolation", (e) =>
  window.__violations.push(e.violatedDirective + " " + e.blockedURI));
"""


def executable() -> str:
    """Where the browser is; without one the tests are skipped, unless CI demands them."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and os.environ.get("ELCHAT_REQUIRE_BROWSER"):
        pytest.fail("falta chromium y ELCHAT_REQUIRE_BROWSER lo exige")
    if found is None:
        pytest.skip("hace falta chromium")
    return found


@contextmanager
def launch(*arguments: str) -> Iterator[tuple[Browser, Any]]:
    path = executable()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", *arguments]
        )
        try:
            yield browser, playwright
        finally:
            browser.close()


@contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page of its own, with nothing wrong in it when it closes."""
    context = browser.new_context(**{**WIDE, **options})
    context.add_init_script(WATCH)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda m: m.type in ("error", "warning") and problems.append(m.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    home = url.partition("#")[0]
    page.on("request", lambda r: not _is_ours(r.url, home) and problems.append(f"fuera: {r.url}"))
    page.allowed = []  # type: ignore[attr-defined]
    open_page(page, url)
    try:
        yield page
        problems += page.evaluate("window.__violations || []")
        allowed = page.allowed  # type: ignore[attr-defined]
        assert [p for p in problems if not any(word in p for word in allowed)] == []
    finally:
        context.close()


def open_page(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("html[data-lista]")


def _is_ours(address: str, url: str) -> bool:
    return address.startswith((url, "data:", "blob:"))


def shoot(page: Page, name: str) -> None:
    """Keep a picture, to be looked at."""
    folder = os.environ.get("ELCHAT_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def check_accessible(page: Page, state: str) -> None:
    """No serious finding of axe; contrast that axe could not decide counts as one."""
    page.evaluate(Path(AXE_FILE_PATH).read_text(encoding="utf-8"))
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', "
        "'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
    )
    serious = [
        (item["id"], item["impact"], [node["html"][:120] for node in item["nodes"][:3]])
        for item in found["violations"]
        if item["impact"] in ("serious", "critical", "moderate")
    ]
    assert serious == [], state


def check_fits(page: Page) -> None:
    """Nothing makes the page scroll sideways."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.body.scrollWidth <= innerWidth")


def until(page: Page, expression: str, timeout_s: float = 15.0) -> None:
    """Wait for an expression to hold; playwright's own wait needs `eval`, which our CSP forbids."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)
