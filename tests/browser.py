"""A real browser without a window, for tests of pages: `page` is a tab that takes no error from its page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WAIT = 60_000  # milliseconds, for a machine that does much else


def find_browser() -> str:
    """The path of Chromium or Chrome: `COTERIE_CHROMIUM`, else one on the path; skips where there is none."""
    given = os.environ.get("COTERIE_CHROMIUM")
    found = [path for path in map(shutil.which, (given,) if given else NAMES) if path]
    if not found:
        pytest.skip("no Chromium or Chrome; `make browser` installs one, or COTERIE_CHROMIUM names it")
    return found[0]


@pytest.fixture
def page() -> Iterator[Page]:
    """A tab of its own browser; the test fails where its page writes a warning or an error, or raises one."""
    path = find_browser()
    from playwright.sync_api import expect, sync_playwright

    problems: list[str] = []
    expect.set_options(timeout=WAIT)

    def keep(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            problems.append(message.text)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        try:
            tab = browser.new_page()
            tab.set_default_timeout(WAIT)
            tab.on("console", keep)
            tab.on("pageerror", lambda error: problems.append(str(error)))
            yield tab
        finally:
            browser.close()
    assert not problems
