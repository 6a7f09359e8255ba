# SPDX-License-Identifier: Apache-2.0
"""Every page: nothing for axe-core to say in light or dark, nothing wider than the window from 360 px to 4K."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import SignIn
from tests.browser.guard import PASSWORD, open_person
from tests.browser.house import NEWCOMER, OPERATOR, OWNER, READER, House
from tests.browser.pages import find_faults, find_overflow, walk, write_a_template


def test_a_template_is_written(signed_in: SignIn) -> None:
    with signed_in(OWNER) as person:
        write_a_template(person)
        assert not find_faults(person.page, "a template that was saved twice")


@pytest.mark.parametrize(
    ("email", "start", "within", "wanted"),
    [
        (OWNER, "/", "", {"/", "/logs", "/logs/*", "/keys/*", "/keys/new", "/security/audit", "/credits"}),
        (NEWCOMER, "/", "", {"/", "/logs", "/keys"}),
        (OPERATOR, "/operator/accounts", "/operator", {"/operator/accounts/*", "/operator/queue", "/operator/health"}),
    ],
    ids=["in use", "empty", "operator"],
)
def test_every_page(signed_in: SignIn, email: str, start: str, within: str, wanted: set[str]) -> None:
    seen, faults = set(), []
    with signed_in(email) as person:
        for kind in walk(person, start, within=within):
            seen.add(kind)
            faults += find_faults(person.page, kind) + find_overflow(person.page, kind)
    assert not faults, "\n".join(faults)
    assert wanted <= seen


def test_messages_of_every_fate(signed_in: SignIn, house: House) -> None:
    faults = []
    with signed_in(OWNER) as person:
        for what, message_id in house.ids.items():
            person.go(f"/logs/{message_id}")
            faults += find_overflow(person.page, what)
            if what in ("in_doubt", "held", "cancelled"):
                faults += find_faults(person.page, what)
        for search in ("status:failed", "nobody-has-this", "after:1d door:smtp"):
            person.go(f"/logs?q={search}")
            faults += find_faults(person.page, search) + find_overflow(person.page, search)
        expect(person.page.get_by_role("list", name="What is searched for").get_by_role("listitem")).to_have_count(3)
    assert not faults, "\n".join(faults)


def test_the_page_of_the_api(browser: Browser, house: House) -> None:
    """For everybody, with all that is folded open, and a line to copy for each call."""
    with open_person(browser, house.url) as stranger:
        stranger.go("/api/docs")
        faults = find_overflow(stranger.page, "folded")
        stranger.page.evaluate("() => document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        faults += find_faults(stranger.page, "/api/docs") + find_overflow(stranger.page, "/api/docs")
        assert stranger.page.locator("button[data-copy]:visible").count() >= stranger.page.locator("section").count()
        send = stranger.page.locator("section#send")
        expect(send).to_contain_text("INSUFFICIENT_CREDITS")
        expect(send.locator("pre").first).to_contain_text("curl https://")
    assert not faults, "\n".join(faults)


def test_pages_for_strangers_and_refusals(signed_in: SignIn, browser: Browser, house: House) -> None:
    faults = []
    with open_person(browser, house.url) as stranger:
        for path, status in (("/sign-in", 200), ("/link/none", 410), ("/nothing-here", 404)):
            stranger.go(path, status=status)
            faults += find_faults(stranger.page, path) + find_overflow(stranger.page, path)
        stranger.expect_complaint("status of 401")
        stranger.sign_in(OWNER, "not the password")
        expect(stranger.page.get_by_role("alert")).to_be_visible()
        faults += find_faults(stranger.page, "wrong password")
    with signed_in(READER) as reader:
        for path, status in (("/keys/new", 403), ("/operator/accounts", 404), ("/logs/nothing", 404), ("/keys", 200)):
            reader.go(path, status=status)
            faults += find_faults(reader.page, path) + find_overflow(reader.page, path)
    with signed_in(OWNER) as owner:
        owner.expect_complaint("status of (422|400)")
        owner.go("/keys/new")
        owner.page.get_by_role("button", name="Make the key").click()
        expect(owner.page.get_by_role("alert")).to_be_visible()
        faults += find_faults(owner.page, "refused form") + find_overflow(owner.page, "refused form")
        owner.go("/logs?q=status:nonsense", status=400)
        faults += find_faults(owner.page, "refused search")
        owner.go("/logs")
        owner.page.keyboard.press("?")
        expect(owner.page.get_by_role("dialog", name="Keyboard")).to_be_visible()
        faults += find_faults(owner.page, "keyboard help") + find_overflow(owner.page, "keyboard help")
    assert not faults, "\n".join(faults)
    assert PASSWORD not in house.daemon.log()
