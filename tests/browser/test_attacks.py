# SPDX-License-Identifier: Apache-2.0
"""What only a browser shows: nothing that anybody names, says or sends runs, fetches or leads anywhere in Chromium.

Every page is opened on a service full of attacks (`tests.dashboard.hostile_site`); a script that ran would set `evil`,
and what a letter asks for would be seen by a server of our own, which also plays the foreign site.
"""

from __future__ import annotations

import http.server
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, WebSocketRoute

from tests.dashboard.hostile_site import SOURCES, HostileSite, open_hostile_site
from tests.dashboard.test_hostile_words import paths_of
from tests.dashboard.visitor import Visitor
from tests.peers.threaded import running

COUNT = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => {
  window.violations.push(`${e.violatedDirective} ${e.blockedURI}`);
});
"""
PATIENCE_MS = 60_000


@dataclass
class Canary:
    """A foreign web server.  asked: for what it was asked.  pages: what it serves."""

    url: str
    asked: list[str] = field(default_factory=list)
    pages: dict[str, str] = field(default_factory=dict)


@contextmanager
def open_canary() -> Iterator[Canary]:
    """By http, which browsers take for another site than ours by https, whatever the name."""
    canary = Canary("")

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = canary.pages.get(self.path, "")
            if not page:
                canary.asked.append(f"{self.command} {self.path}")
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server, running(server):
        canary.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield canary


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    with open_canary() as opened:
        yield opened


@pytest.fixture(scope="module")
def site(canary: Canary) -> Iterator[HostileSite]:
    with open_hostile_site(canary.url) as opened:
        yield opened


@contextmanager
def window_of(browser: Browser, site: HostileSite, visitor: Visitor) -> Iterator[BrowserContext]:
    """A browser in which this person is signed in, and that counts what the policy of a page had to stop."""
    base = f"https://127.0.0.1:{site.daemon.ports['https']}"
    context: BrowserContext = browser.new_context(base_url=base, ignore_https_errors=True)
    context.set_default_timeout(PATIENCE_MS)
    cookies = [{"name": name, "value": value, "url": base} for name, value in visitor.client.cookies.items()]
    context.add_cookies([{**cookie, "secure": True, "httpOnly": True, "sameSite": "Strict"} for cookie in cookies])  # type: ignore[list-item]
    context.add_init_script(COUNT)
    try:
        yield context
    finally:
        context.close()


def assert_harmless(page: Page, what: str) -> None:
    assert page.evaluate("typeof window.evil") == "undefined", f"{what}: a script ran"
    assert page.evaluate("document.querySelectorAll('x-evil').length") == 0, f"{what}: markup of somebody else's"


def test_no_page_runs_anything(browser: Browser, site: HostileSite, canary: Canary, tmp_path: Any) -> None:
    """Nor does any page ask for what its own policy forbids."""
    opened = 0
    for visitor in (site.owner, site.operator):
        with window_of(browser, site, visitor) as window:
            page = window.new_page()
            for path in paths_of(site, tmp_path):
                is_operators = path.startswith("/operator")
                if (
                    path.endswith(("/raw", ".csv", "/live/session"))
                    or "/attachments/" in path
                    or is_operators != (visitor is site.operator)
                ):
                    continue  # files, which browsers save; and what the other one may not see
                page.goto(path)
                assert_harmless(page, path)
                if f"/logs/{site.message_id}" not in path:  # the letter tries much; see below
                    assert page.evaluate("window.violations") == [], path
                opened += 1
    assert opened > 100
    assert canary.asked == []


def test_a_letter_does_nothing(browser: Browser, site: HostileSite, canary: Canary) -> None:
    canary.asked.clear()
    with window_of(browser, site, site.owner) as window:
        page = window.new_page()
        for path in (f"/logs/{site.message_id}?tab=html", f"/logs/{site.message_id}/html"):
            page.goto(path)
            place = page.url
            letter = page.frame_locator("iframe").first if path.endswith("tab=html") else page
            letter.locator("#letter").wait_for()
            for link in ("#a", "#top") if letter is not page else ("#a",):
                letter.locator(link).click(no_wait_after=True)
            assert_harmless(page, path)
            assert page.url == place, f"{path}: led away"
        assert len(window.pages) == 1, "a window was opened"
    assert canary.asked == [], "the letter reached the network"


def test_live_lines_are_text_too(browser: Browser, site: HostileSite) -> None:
    with window_of(browser, site, site.owner) as window:
        page = window.new_page()
        page.goto("/logs")
        page.locator('#live-state[data-state="on"]').wait_for(state="attached")
        message_id = site.send(to="live@example.net")
        line = page.locator(f'tr[data-id="{message_id}"]')
        line.wait_for()
        page.locator(f'tr[data-id="{message_id}"][data-state="sent"]').wait_for()
        assert SOURCES["subject"] in line.inner_text()
        assert_harmless(page, "a live line")
        assert page.evaluate("window.violations") == []


# Another site


def test_another_site_can_neither_frame_nor_post(browser: Browser, site: HostileSite, canary: Canary) -> None:
    with window_of(browser, site, site.owner) as window:
        ours = f"https://127.0.0.1:{site.daemon.ports['https']}"
        canary.pages["/frame"] = f'<iframe src="{ours}/keys" id="f"></iframe>'
        forms = "".join(
            f'<form id="f{n}" method="post" action="{ours}{path}" target="t{n}"><input name="name" value="stolen">'
            f'<input name="token" value="x"><input name="password" value="mallory\'s own one"></form>'
            f'<iframe name="t{n}"></iframe>'
            f"<script>document.getElementById('f{n}').submit()</script>"
            for n, path in enumerate(("/keys", "/sign-out", "/security/sessions/end-others", "/link", "/sign-in"))
        )
        canary.pages["/post"] = forms
        canary.pages["/live"] = (
            f"<script>const w = new WebSocket('{ours.replace('https', 'wss')}/live');"
            "w.onopen = () => document.title = 'open'; w.onerror = () => document.title = 'refused';</script>"
        )
        page = window.new_page()
        page.goto(f"{canary.url}/frame")
        page.wait_for_load_state()
        frame = page.frames[1]
        assert "keys" not in (frame.title() or "").lower()
        assert frame.locator("main").count() == 0, "a foreign page frames ours"
        page.goto(f"{canary.url}/post")
        page.wait_for_load_state("networkidle")
        page.goto(f"{canary.url}/live")
        page.wait_for_function("document.title === 'open' || document.title === 'refused'")
        assert page.title() == "refused"
        page.goto("/keys")
        assert page.url.endswith("/keys"), "another site signed us out"
        assert "stolen" not in page.locator("main").inner_text()


# The live log when more happens than a frame holds


def test_a_gap_is_closed_without_asking_anew(browser: Browser, site: HostileSite) -> None:
    """A frame says that there was more than its lines: what stands below them goes, and nothing is asked for."""
    with window_of(browser, site, site.owner) as window:
        page = window.new_page()
        routes: list[WebSocketRoute] = []
        page.route_web_socket("**/live?**", lambda route: routes.append(route))
        page.goto("/logs")
        page.locator('#live-state[data-state="on"]').wait_for(state="attached")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        rows = page.locator("#log-lines > tr")
        assert rows.count() > 3
        at = int(rows.first.get_attribute("data-at") or 0)
        model = rows.first.evaluate("row => row.outerHTML")
        model_id = rows.first.get_attribute("data-id") or ""

        def line(n: int) -> dict[str, Any]:
            new_id, new_at = f"{n:016x}", at + n
            html = model.replace(model_id, new_id).replace(f'data-at="{at}"', f'data-at="{new_at}"')
            return {"id": new_id, "at": new_at, "state": "sent", "html": html}

        def tell(numbers: list[int], more: int) -> None:
            frame = {"seq": 1, "lines": [line(n) for n in numbers], "changed": [], "more": more}
            routes[0].send(json.dumps(frame))

        tell([2, 1], 7)
        page.wait_for_function("document.querySelectorAll('#log-lines > tr').length === 2")
        tell([4, 3], 0)
        page.wait_for_function("document.querySelectorAll('#log-lines > tr').length === 4")
        shown = [row.get_attribute("data-id") for row in rows.all()]
        assert shown == [f"{n:016x}" for n in (4, 3, 2, 1)]
        # Whoever reads is not disturbed, and told how much there is.
        rows.nth(1).locator("a").first.focus()
        tell([6, 5], 9)
        page.locator("#pill").wait_for()
        assert page.locator("#pill").inner_text() == "11 new"
        assert rows.count() == 4
        assert asked == []
