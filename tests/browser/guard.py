# SPDX-License-Identifier: Apache-2.0
"""Debian's Chromium, and people in it.  What the browser's console says, and what a page's scripts let out, is kept.

Playwright's synchronous API runs a loop of its own in this thread, which is one more reason for these tests to be
plain functions: the daemon they look at is another process, as it is for everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.peers.programs import missing

PASSWORD = "correct horse battery"
CHROMIUM = "/usr/bin/chromium"
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-domain-reliability", "--disable-default-apps",
    "--disable-extensions", "--no-pings", "--no-proxy-server",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)  # fmt: skip
PATIENCE_MS = 60_000  # says "it hangs", never "it is slow"


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium without a profile that talks to this machine only.  Skips (in CI: fails) where none is."""
    if shutil.which(CHROMIUM) is None:
        missing("chromium is not installed (Debian package chromium)")
    expect.set_options(timeout=PATIENCE_MS)
    with _own_loops(), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET), chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def _own_loops() -> Iterator[None]:
    """asyncio's own event loops: trio-asyncio, once a test has imported it, gives this thread ones that do not nest."""
    if "trio_asyncio" not in sys.modules:
        yield
        return
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(None)


@dataclass
class Person:
    """Somebody with a browser of their own: cookies, storage, a window."""

    context: BrowserContext
    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    expected: list[re.Pattern[str]] = field(default_factory=list)

    def expect_complaint(self, pattern: str) -> None:
        """The browser will say this on its console, and is right to."""
        self.expected.append(re.compile(pattern))

    def go(self, path: str, *, status: int = 200) -> None:
        """Open a page by its address."""
        if status >= 400:
            self.expect_complaint(rf"status of {status}")
        response = self.page.goto(self.url + path)
        assert response is not None
        assert response.status == status, f"{path}: {response.status}"

    def wait_for_complaints(self, pattern: str, count: int) -> None:
        """Until the browser has said this so often, which it does beside what it shows; and not more often."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while len(found := [text for text in self.complaints if re.search(pattern, text)]) < count:
            assert time.monotonic() < deadline, self.complaints
            self.page.wait_for_timeout(10)
        assert len(found) == count, found

    def unexpected(self) -> list[str]:
        """What nobody announced."""
        return [text for text in self.complaints if not any(each.search(text) for each in self.expected)]

    def first_sign_in(self, link: str) -> None:
        """By a one-time link, which asks for a password."""
        self.page.goto(link)
        self.page.get_by_label("New password").fill(PASSWORD)
        self.page.get_by_role("button", name="Save and sign in").click()
        expect(self.page.get_by_role("heading", name="Overview", level=1)).to_be_visible()

    def sign_in(self, email: str, password: str = PASSWORD) -> None:
        """By the form, as far as its answer."""
        self.go("/sign-in")
        self.page.get_by_label("E-mail address").fill(email)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()

    def saved(self) -> None:
        """The daemon's word that a change was made."""
        expect(self.page.locator("p.notice")).to_be_visible()


def wait_for_keys(page: Page) -> None:
    """Until a page that is there has run its scripts: a key pressed before that does nothing, as for everybody."""
    page.locator("[data-keys-help]:not([hidden])").wait_for(state="attached")


@contextlib.contextmanager
def open_person(browser: Browser, url: str, **options: Any) -> Iterator[Person]:
    """A window.  An error on its console, one that a script lets out, a refusal of the content policy: a failure."""
    settings: dict[str, Any] = {
        "ignore_https_errors": True, "locale": "en-GB", "timezone_id": "Europe/Berlin", "color_scheme": "light",
        "viewport": {"width": 1440, "height": 900}, "reduced_motion": "reduce", **options,
    }  # fmt: skip
    context = browser.new_context(**settings)
    context.set_default_timeout(PATIENCE_MS)
    person = Person(context, context.new_page(), url)
    context.on("console", lambda said: _keep(person, said.type, f"{said.text} ({said.page and said.page.url})"))
    context.on("weberror", lambda error: _keep(person, "error", f"uncaught: {error.error}"))
    try:
        yield person
        assert not person.unexpected(), "\n".join(person.unexpected())
    finally:
        context.close()


def _keep(person: Person, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        person.complaints.append(text)
