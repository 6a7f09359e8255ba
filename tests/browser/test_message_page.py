# SPDX-License-Identifier: Apache-2.0
"""The page of a message while an attempt is under way, and after it."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from playwright.sync_api import Browser, expect

from tests.browser.guard import open_person
from tests.dashboard.visitor import link_of
from tests.peers.daemon import ACCOUNT, SENDER, open_daemon, post
from tests.peers.threaded import serving


@dataclass
class Silence:
    """A next hop that says nothing until `over` is set, and then that it is busy."""

    port: int
    over: threading.Event


@contextlib.contextmanager
def silent_hop() -> Iterator[Silence]:
    over = threading.Event()

    class Wait(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            over.wait(60)
            self.request.sendall(b"421 4.3.2 busy\r\n")

    with serving(Wait) as port:
        try:
            yield Silence(port, over)
        finally:
            over.set()


def test_what_can_be_done_follows_the_attempt(browser: Browser) -> None:
    """Nothing can be retried while somebody is at it; once it was put off, it can, without loading the page again."""
    changes = {"delivery": {"relay_wait_s": 0.2, "retry_after_s": [3600]}}
    with silent_hop() as hop, open_daemon(sink_port=hop.port, changes=changes, start=False) as daemon:
        key = daemon.setup()
        daemon.start()
        url = f"https://127.0.0.1:{daemon.ports['https']}"
        token = link_of(daemon.json("account", "link", ACCOUNT)).rpartition("/")[2]
        status, answer, _ = post(daemon, {"from": SENDER, "to": "joe@example.net", "text": "Hi"}, key)
        assert status == 202, answer
        with open_person(browser, url) as person:
            person.first_sign_in(f"{url}/link/{token}")
            person.go(f"/logs/{answer['data']['messageId']}")
            page = person.page
            retry = page.get_by_role("button", name="Retry now")
            expect(page.get_by_text("Under way now.")).to_be_visible()
            expect(retry).to_be_disabled()
            expect(page.locator("#live-state")).to_have_text("live")
            hop.over.set()
            expect(page.locator(".state-large")).to_have_text("◑deferred")
            expect(retry).to_be_enabled()
