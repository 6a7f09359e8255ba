# SPDX-License-Identifier: Apache-2.0
"""What stands on a page can be seen: beside the rail, behind what stands still, on paper, without colours of ours."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import SignIn
from tests.browser.guard import wait_for_keys
from tests.browser.house import GONE, NEWCOMER, OWNER, House
from tests.browser.test_live_logs import open_log

# Tables that are wider than their place: what is at the right of them is out of sight.
CUT = """() => [...document.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth).length"""
ROOM = """() => [".log-to", ".log-subject"].map((name) =>
  document.querySelector(`#log-lines tr ${name}`).getBoundingClientRect().width)"""
# Whether something else lies over the middle of what has the focus, or of the chosen line.
IS_COVERED = """(which) => {
  const element = which ? document.querySelector(which) : document.activeElement;
  const box = element.getBoundingClientRect(), x = box.left + Math.min(20, box.width / 2);
  return [box.top + 2, box.bottom - 2].some((y) => {
    const there = document.elementFromPoint(x, y);
    return !there || !(element.contains(there) || there.contains(element));
  });
}"""


def test_tables_have_room_beside_the_rail(signed_in: SignIn) -> None:
    with signed_in(OWNER) as person:
        page = person.page
        for path in (
            "/keys",
            "/credits",
            "/addresses",
            "/smtp-servers",
            "/suppressions",
            "/security",
            "/security/audit",
        ):
            person.go(path)
            for width in (721, 768, 980):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate(CUT) == 0, f"{path}, {width} px"
        person.go("/logs")
        for width in (721, 768, 980, 981, 1024, 1220, 1221, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            recipient, subject = page.evaluate(ROOM)
            assert min(recipient, subject) >= 140, f"{width} px: {recipient}, {subject}"


def test_how_many_more_is_not_cut_off(signed_in: SignIn, house: House) -> None:
    """A long first address gives way; what is written from the right is cut at its own end."""
    sent = house.send(["list-member-000@very-long-department-name.example.org", "b@example.org"], "طلبك " * 40)
    with signed_in(OWNER, viewport={"width": 1280, "height": 900}) as person:
        person.go(f"/logs?q=id:{sent}")
        cell = person.page.locator("#log-lines .log-to")
        count = cell.get_by_text("+1").bounding_box()
        box = cell.bounding_box()
        assert count is not None
        assert box is not None
        assert count["x"] + count["width"] <= box["x"] + box["width"]
        subject = person.page.locator("#log-lines .log-subject bdi")
        assert (
            subject.evaluate("(e) => getComputedStyle(e).textOverflow + getComputedStyle(e).direction") == "ellipsisrtl"
        )
        assert subject.evaluate("(e) => e.offsetWidth <= e.parentElement.clientWidth")


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (768, 900), (390, 800)])
def test_nothing_that_stands_still_covers_what_a_key_moves_to(signed_in: SignIn, width: int, height: int) -> None:
    with signed_in(OWNER, viewport={"width": width, "height": height}) as person:
        page = person.page
        person.go("/logs")
        wait_for_keys(page)
        for key, times in (("j", 30), ("k", 29)):
            for _ in range(times):
                page.keyboard.press(key)
                assert not page.evaluate(IS_COVERED, "tr.chosen"), f"{key}, {width} px"
        links = page.locator("#log-lines a")
        links.first.focus()
        for key in ("Tab", "Shift+Tab"):
            for _ in range(35):
                page.keyboard.press(key)
                assert not page.evaluate(IS_COVERED, ""), f"{key}, {width} px"


def test_the_pill_is_not_behind_the_line_above(signed_in: SignIn, house: House) -> None:
    with signed_in(OWNER, viewport={"width": 768, "height": 900}) as person:
        page = open_log(person)
        page.evaluate("() => scrollTo(0, 600)")
        house.send("maria.huber@example.net", "Hinter der Pille")
        expect(page.get_by_role("button", name="1 new")).to_be_visible()
        assert not page.evaluate(IS_COVERED, "#pill")


def _ground(page: Page) -> str:
    return str(page.evaluate("() => getComputedStyle(document.body).color"))


def test_the_chosen_theme_is_there_before_the_scripts(signed_in: SignIn) -> None:
    """While they are on their way a page that is to be dark is not light."""
    with signed_in(NEWCOMER) as person:
        page = person.page
        person.go("/keys")
        light = _ground(page)
        page.locator(".menu summary").click()
        page.get_by_role("button", name="Dark or light").click()
        dark = _ground(page)
        assert dark != light
        held: list[Route] = []
        page.route(re.compile(r"/app\.js$"), lambda route: held.append(route))
        page.goto(f"{person.url}/credits", wait_until="commit")
        expect(page.get_by_role("heading", name="Credits", level=1)).to_be_visible()
        assert _ground(page) == dark
        held[0].continue_()
        # On paper it is light, and without what a page is worked with.
        page.emulate_media(media="print")
        assert _ground(page) == light
        for part in (".rail", ".top", ".head-do"):
            expect(page.locator(part).first).to_be_hidden()
        expect(page.get_by_role("heading", name="Credits", level=1)).to_be_visible()


def test_the_chosen_line_is_seen_without_our_colours(signed_in: SignIn) -> None:
    with signed_in(OWNER, forced_colors="active") as person:
        person.go("/logs")
        wait_for_keys(person.page)
        person.page.keyboard.press("j")
        expect(person.page.locator("tr.chosen")).to_have_css("outline-style", "solid")


def test_what_went_wrong_comes_first(signed_in: SignIn, house: House) -> None:
    """Of many recipients few are seen at once: those that failed are among them, and it says how many did."""
    sent = house.send([*(f"leser{n:02}@example.org" for n in range(20)), GONE], "Rundbrief")
    with signed_in(OWNER) as person:
        page = person.page
        person.go(f"/logs/{sent}")
        expect(page.locator("#counts")).to_have_text(re.compile(r"^✕failed\s*1\s*●sent\s*20$"))
        expect(page.locator(".recipients > li").first).to_contain_text(GONE)
        expect(page.get_by_text("Stored and paid for")).to_be_visible()
        person.go(f"/logs/{house.ids['chaos']}")
        expect(page.get_by_text("Stored; nothing was paid")).to_be_visible()
