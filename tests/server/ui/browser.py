"""A real server as the command starts it, and a real headless Chromium that looks at it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
ROOT = Path(__file__).parents[3]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
START_SECONDS = 90.0


class Server:
    """`tuneworthy serve` on a free port."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.state = state
        command = [sys.executable, "-m", "tuneworthy", "serve", str(folder), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--state", str(state), "--no-worker"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            # A shell that starts the tests in the background has its children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        assert self.process.stdout
        first = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", first)
        assert found, first
        self.address = found[0]

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; the test is skipped where there is none."""
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is not here (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


class Looker:
    """One window, and everything that went wrong in it."""

    def __init__(self, browser: Any, server: Server, **how: Any) -> None:
        self.server = server
        self.context = browser.new_context(**{"viewport": WIDE, **how})
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def go(self, path: str) -> Any:
        self.page.goto(self.server.address + path)
        return self.page

    @property
    def path(self) -> str:
        return str(self.page.url).removeprefix(self.server.address)

    def picture(self, name: str) -> None:
        """A picture to look at, where TUNEWORTHY_PICTURES names a folder."""
        folder = os.environ.get("TUNEWORTHY_PICTURES")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)

    def overflow(self) -> int:
        """Pixels that the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    def check(self) -> None:
        """Raises AssertionError for any complaint, or a request that went elsewhere."""
        assert not self.complaints, self.complaints
        assert self.requests
        elsewhere = [url for url in self.requests if not url.startswith(self.server.address)]
        assert not elsewhere, elsewhere

    def close(self) -> None:
        self.context.close()


def until(true: Any, seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found
