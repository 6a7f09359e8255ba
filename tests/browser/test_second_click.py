# SPDX-License-Identifier: Apache-2.0
"""A double click sends a form once: the answer to a second request would take the place of the first one's."""

from __future__ import annotations

import re

from playwright.sync_api import APIResponse, Request, Route, expect

from tests.browser.conftest import SignIn
from tests.browser.house import NEWCOMER


def test_a_secret_that_is_shown_once_is_seen(signed_in: SignIn) -> None:
    """The second click comes while the daemon has made the key and its answer is under way."""
    with signed_in(NEWCOMER) as person:
        page = person.page
        held: list[tuple[Route, APIResponse]] = []

        def hold(route: Route) -> None:
            if route.request.method == "POST" and not held:
                held.append((route, route.fetch()))
            else:
                route.continue_()

        page.route("**/keys", hold)
        person.go("/keys/new")
        page.get_by_label("Name", exact=True).fill("Two clicks")
        button = page.get_by_role("button", name="Make the key")
        button.scroll_into_view_if_needed()
        box = button.bounding_box()
        assert box is not None
        x, y = box["x"] + 5, box["y"] + 5
        page.mouse.click(x, y)
        while not held:
            page.wait_for_timeout(10)
        page.mouse.click(x, y)
        route, answer = held[0]
        route.fulfill(response=answer)
        expect(page.get_by_role("heading", name="Save your key now")).to_be_visible()
        expect(page.get_by_text(re.compile("hyd-mail-[A-Za-z0-9]{40}")).first).to_be_visible()
        page.get_by_label("I have saved it").check()


def test_a_preview_beside_the_form_is_asked_for_as_often_as_wanted(signed_in: SignIn) -> None:
    with signed_in(NEWCOMER) as person:
        page = person.page
        person.go("/templates/new")
        for name in ("Anna", "Berta"):

            def is_asked(request: Request, wanted: str = f"For+{name}") -> bool:
                return request.url.endswith("/templates/preview") and wanted in (request.post_data or "")

            with page.expect_request(is_asked):
                page.get_by_label("Subject").fill(f"For {name}")
                page.get_by_role("button", name="Preview").click()
