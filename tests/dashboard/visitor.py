# SPDX-License-Identifier: Apache-2.0
"""A browser without a script, for the real daemon's pages: cookies, forms, and what stands on a page."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tests.peers.daemon import Daemon

PASSWORD = "correct horse battery"
Fields = Mapping[str, str | Sequence[str]]
_TAG = re.compile(r"<[^>]*>")


@dataclass
class Visitor:
    """One signed-in browser."""

    client: httpx.Client

    def get(self, path: str, *, status: int = 200) -> str:
        """A page."""
        response = self.client.get(path)
        assert response.status_code == status, f"{path}: {response.status_code} {words(response.text)[:500]}"
        return response.text

    def post(
        self, path: str, fields: Fields | None = None, *, page: str = "/", token: str | None = None
    ) -> httpx.Response:
        """Send a form as the browser does that loaded `page`."""
        if token is None:
            token = csrf_of(self.client.get(page).text)
        return self.client.post(path, data={"csrf": token, **(fields or {})}, headers={"Sec-Fetch-Site": "same-origin"})

    def follow(self, path: str, fields: Fields | None = None, *, page: str = "/") -> str:
        """Send a form that must succeed, and see the page it leads to."""
        response = self.post(path, fields, page=page)
        assert response.status_code == 303, f"{path}: {response.status_code} {words(response.text)[:800]}"
        return self.get(response.headers["Location"])


def csrf_of(page: str) -> str:
    """The token of the page's forms."""
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found is not None, words(page)[:500]
    return found[1]


def hidden_of(page: str, name: str) -> str:
    """What a hidden field of the page's forms holds."""
    found = re.search(rf'<input type="hidden" name="{name}" value="([^"]*)"', page)
    assert found is not None, words(page)[:500]
    return html.unescape(found[1])


def words(page: str) -> str:
    """What a page says, without its tags."""
    body = page[page.find("<main") :]
    return " ".join(html.unescape(_TAG.sub(" ", body)).split())


def open_client(daemon: Daemon, **options: Any) -> httpx.Client:
    """A browser that has never been here."""
    return httpx.Client(base_url=f"https://127.0.0.1:{daemon.ports['https']}", verify=False, timeout=60, **options)


@contextlib.contextmanager
def sign_in(daemon: Daemon, link: str) -> Iterator[Visitor]:
    """Use a one-time link as a person would: open it, choose a password."""
    token = link.rpartition("/")[2]
    with open_client(daemon) as client:
        opened = client.get(f"/link/{token}")
        assert opened.status_code == 200, f"{opened.status_code} {words(opened.text)}"
        response = client.post("/link", data={"token": token, "password": PASSWORD})
        assert response.status_code == 303, words(response.text)
        yield Visitor(client)


def link_of(made: Any) -> str:
    """The one-time link in what a command printed as JSON."""
    found = [value for value in made.values() if isinstance(value, str) and "/link/" in value]
    assert len(found) == 1, made
    return found[0]
