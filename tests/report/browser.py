"""Opens a page in a headless Chromium, and notes what goes wrong there."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str:
    """Returns the path of a browser; skips a test where there is none, but on CI that is a fault.

    Which one is taken is that of the system: the test does not install one.
    """
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        text = f"found none of {', '.join(NAMES)}, expected a browser: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return found


@contextlib.contextmanager
def open_page(path: Path, **context: Any) -> Iterator[Any]:
    """Gives the page of a file, when all of it is drawn.

    Its ``complaints`` are what its console has said of errors, and its ``requests`` what it has
    asked for.
    """
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=arguments)
        try:
            page = browser.new_context(**context).new_page()
            complaints: list[str] = []
            requests: list[str] = []
            page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(path.as_uri())
            page.complaints, page.requests = complaints, requests  # type: ignore[attr-defined]
            page.wait_for_selector("body[data-ready=yes]", timeout=60_000)
            yield page
        finally:
            browser.close()
