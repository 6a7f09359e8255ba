# SPDX-License-Identifier: Apache-2.0
"""Names without a space, times far away, the menu and the keyboard: little things that are in the way."""

from __future__ import annotations

import datetime as dt
import re

from playwright.sync_api import expect

from tests.browser.conftest import SignIn
from tests.browser.guard import wait_for_keys
from tests.browser.house import NEWCOMER, OWNER, House
from tests.browser.pages import find_overflow
from tests.browser.test_live_logs import BERLIN

NAME = "W" * 100


def test_a_long_name_stays_in_the_window(signed_in: SignIn) -> None:
    with signed_in(NEWCOMER) as person:
        page = person.page
        person.go("/keys/new")
        page.get_by_label("Name", exact=True).fill(NAME)
        page.get_by_role("button", name="Make the key").click()
        expect(page.get_by_role("heading", name="Save your key now")).to_be_visible()
        faults = find_overflow(page, "a fresh key")
        page.get_by_label("I have saved it").check()
        page.get_by_role("link", name="Done").click()
        expect(page.get_by_role("heading", name=NAME)).to_be_visible()
        faults += find_overflow(page, "its page")
        page.get_by_label("Type the name of the key").fill(NAME)
        page.get_by_role("button", name="Delete the key").click()
        person.saved()
        faults += find_overflow(page, "what is said of it")
        person.go("/templates/new")
        page.get_by_label("Name", exact=True).fill(NAME)
        page.get_by_label("Subject").fill("{{" + "n" * 100 + "}}")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("heading", name=NAME)).to_be_visible()
        faults += find_overflow(page, "a template")
    assert not faults, "\n".join(faults)


def test_a_time_that_is_far_away_says_its_year(signed_in: SignIn, house: House) -> None:
    with signed_in(NEWCOMER) as person:
        page = person.page
        person.go("/keys/new")
        page.get_by_label("Name", exact=True).fill("For years")
        page.get_by_label("Expires").fill("2051-06-30T12:00:00Z")
        page.get_by_role("button", name="Make the key").click()
        page.get_by_label("I have saved it").check()
        page.get_by_role("link", name="Done").click()
        expect(page.get_by_role("main").get_by_text(re.compile(r"30 Jun 2051, 14:00"))).to_be_visible()
    with signed_in(OWNER, locale="en-US") as person:  # whose times are among the longest
        page = person.page
        person.go(f"/logs?q=id:{house.ids['sent']}")
        cell = page.locator("#log-lines .log-time")
        at = dt.datetime.fromisoformat(str(cell.locator("time").get_attribute("datetime"))).astimezone(BERLIN)
        for days, says in ((60, r"^\w+ \d+, \d\d:\d\d [AP]M$"), (200, rf"^\w+ \d+, {at.year}, ")):
            page.clock.install(time=at + dt.timedelta(days=days))
            page.reload()
            expect(cell).to_have_text(re.compile(says))
            assert days > 182 or cell.evaluate("(e) => e.scrollWidth <= e.clientWidth"), "it is cut"


def test_escape_closes_the_menu_before_it_leaves_the_page(signed_in: SignIn) -> None:
    with signed_in(NEWCOMER) as person:
        page = person.page
        person.go("/templates/new")
        wait_for_keys(page)
        page.get_by_label("Name", exact=True).fill("Not lost")
        menu = page.locator("details.menu")
        menu.locator("summary").click()
        expect(page.get_by_role("button", name="Sign out")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Sign out")).to_be_hidden()
        expect(menu.locator("summary")).to_be_focused()
        expect(page.get_by_label("Name", exact=True)).to_have_value("Not lost")
