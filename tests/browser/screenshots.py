# SPDX-License-Identifier: Apache-2.0
"""`make screenshots`: every page at 390 and 1440 pixels, in light and dark, into a folder: `python -m … FOLDER [ONLY]`.

ONLY: a regular expression that a name begins with, so that a few pages are soon looked at again.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.browser.deeds import deeds_of_operator, deeds_of_owner, deeds_of_stranger
from tests.browser.guard import Person, open_browser, open_person
from tests.browser.house import INVITED, KEPT_OUT, NEWCOMER, OPERATOR, OWNER, READER, House, open_house
from tests.browser.month import have_a_busy_minute
from tests.browser.pages import walk, write_a_template

WIDTHS = (390, 1440)
# From the top, and drawn: what a window has just grown to may still be blank.
SETTLED = """() => {
  scrollTo(0, 0);
  return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""


@dataclass
class Album:
    """Where the pictures go, and which are wanted."""

    folder: Path
    only: re.Pattern[str]

    def take(self, person: Person, name: str) -> None:
        """The page as it is, four times."""
        if not self.only.match(name):
            return
        for width in WIDTHS:
            person.page.set_viewport_size({"width": width, "height": 600})
            # A window as high as the page: what sticks to its edges stands where it stands for a person.
            height = person.page.evaluate("() => document.scrollingElement.scrollHeight")
            person.page.set_viewport_size({"width": width, "height": min(max(height, 844), 3000)})
            person.page.evaluate(SETTLED)
            for scheme in ("light", "dark"):
                person.page.emulate_media(color_scheme=scheme)
                person.page.screenshot(path=self.folder / f"{name}-{width}-{scheme}.png", animations="disabled")

    def take_for_readme(self, house: House, browser: Browser) -> None:
        """The two pictures that stand in the README, when they are to be made anew: copy them to docs/images."""
        for name, scheme, path in (("log", "light", "/logs"), ("message", "dark", f"/logs/{house.ids['failed']}")):
            if not self.only.match(f"readme-{name}"):
                continue
            with open_person(
                browser, house.url, viewport={"width": 1280, "height": 800}, color_scheme=scheme
            ) as person:
                person.sign_in(OWNER)
                expect(person.page.get_by_role("heading", name="Overview")).to_be_visible()
                person.go(path)
                expect(person.page.locator("#live-state")).to_have_text("live")
                person.page.screenshot(path=self.folder / f"readme-{name}.png", animations="disabled")


def name_of(kind: str) -> str:
    """A file name for a kind of page."""
    return re.sub(r"[^a-z0-9]+", "-", kind.replace("*", "one").lower()).strip("-") or "overview"


def take_of_accounts(album: Album, house: House, browser: Browser) -> None:
    """The pages of an account in use, of one that is new, of somebody who may only read, and of an operator."""
    for email, prefix, start, within in (
        (OWNER, "", "/", ""),
        (NEWCOMER, "new-", "/", ""),
        (READER, "reader-", "/keys", "/keys"),
        (OPERATOR, "", "/operator/accounts", "/operator"),
    ):
        with open_person(browser, house.url, device_scale_factor=1) as person:
            person.expect_complaint(KEPT_OUT)
            person.first_sign_in(house.link(email))
            if email == OWNER:
                write_a_template(person)
                have_a_busy_minute(house.daemon.state_dir / "hepmaild.db", "shop", 104)
            for kind in walk(person, start, within=within):
                album.take(person, prefix + name_of(kind))
            if email == OWNER:
                for what, message_id in house.ids.items():
                    person.go(f"/logs/{message_id}")
                    album.take(person, f"message-{what}")
                person.go(f"/logs/{house.ids['attached']}?tab=attachments")
                album.take(person, "message-attached-tab")


def take_of_deeds(album: Album, house: House, browser: Browser) -> None:
    """What no link leads to; it leaves the owner with a second factor."""
    for email, deeds in ((OPERATOR, deeds_of_operator), (OWNER, deeds_of_owner)):
        with open_person(browser, house.url) as person:
            person.expect_complaint(KEPT_OUT)
            person.sign_in(email)
            expect(person.page.get_by_role("heading", name="Overview")).to_be_visible()
            for name in deeds(person):
                album.take(person, name)


def take_of_strangers(album: Album, house: House, browser: Browser) -> None:
    """What stands there for everybody."""
    with open_person(browser, house.url) as stranger:
        for path, status in (("/sign-in", 200), ("/api/docs", 200), ("/link/none", 410), ("/nothing-here", 404)):
            stranger.go(path, status=status)
            album.take(stranger, "stranger-" + name_of(path))
        for name in deeds_of_stranger(stranger, house.link(INVITED), OWNER):
            album.take(stranger, "stranger-" + name)


def main() -> None:
    """Make the folder and fill it."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    album = Album(folder, re.compile(sys.argv[2] if len(sys.argv) > 2 else ""))
    with open_house(crowd=260) as house, open_browser() as browser:
        take_of_accounts(album, house, browser)
        album.take_for_readme(house, browser)
        take_of_deeds(album, house, browser)
        take_of_strangers(album, house, browser)
    print(f"{len(list(folder.glob('*.png')))} pictures in {folder}")


if __name__ == "__main__":
    main()
