# SPDX-License-Identifier: Apache-2.0
"""`make screenshots`: every page at 390 and 1440 pixels, in light and dark, into a folder: `python -m … [FOLDER]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.browser.guard import Person, open_browser, open_person
from tests.browser.house import KEPT_OUT, NEWCOMER, OPERATOR, OWNER, House, open_house
from tests.browser.pages import walk, write_a_template

WIDTHS = (390, 1440)


def take(person: Person, folder: Path, name: str) -> None:
    """The page as it is, four times."""
    for width in WIDTHS:
        person.page.set_viewport_size({"width": width, "height": 600})
        # A window as high as the page: what sticks to its edges stands where it stands for a person.
        height = person.page.evaluate("() => document.scrollingElement.scrollHeight")
        person.page.set_viewport_size({"width": width, "height": min(max(height, 844), 2000)})
        for scheme in ("light", "dark"):
            person.page.emulate_media(color_scheme=scheme)
            person.page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", animations="disabled")


def take_for_readme(house: House, browser: Browser, folder: Path) -> None:
    """The two pictures that stand in the README, when they are to be made anew: copy them to docs/images."""
    for name, scheme, path in (("log", "light", "/logs"), ("message", "dark", f"/logs/{house.ids['failed']}")):
        with open_person(browser, house.url, viewport={"width": 1280, "height": 800}, color_scheme=scheme) as person:
            person.sign_in(OWNER)
            expect(person.page.get_by_role("heading", name="Overview")).to_be_visible()
            person.go(path)
            expect(person.page.locator("#live-state")).to_have_text("live")
            person.page.screenshot(path=folder / f"readme-{name}.png", animations="disabled")


def name_of(kind: str) -> str:
    """A file name for a kind of page."""
    return re.sub(r"[^a-z0-9]+", "-", kind.replace("*", "one").lower()).strip("-") or "overview"


def take_all(house: House, folder: Path) -> None:
    """The pages of an account in use, of one that is new, and of an operator; and those for nobody."""
    with open_browser() as browser:
        for email, prefix, within in ((OWNER, "", ""), (NEWCOMER, "new-", ""), (OPERATOR, "", "/operator")):
            with open_person(browser, house.url, device_scale_factor=1) as person:
                person.expect_complaint(KEPT_OUT)
                person.first_sign_in(house.link(email))
                if email == OWNER:
                    write_a_template(person)
                for kind in walk(person, "/operator/accounts" if within else "/", within=within):
                    take(person, folder, prefix + name_of(kind))
                if email == OWNER:
                    for what, message_id in house.ids.items():
                        person.go(f"/logs/{message_id}")
                        take(person, folder, f"message-{what}")
        take_for_readme(house, browser, folder)
        with open_person(browser, house.url) as stranger:
            for path, status in (("/sign-in", 200), ("/link/none", 410), ("/nothing-here", 404)):
                stranger.go(path, status=status)
                take(stranger, folder, "stranger-" + name_of(path))


def main() -> None:
    """Make the folder and fill it."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    with open_house(crowd=260) as house:
        take_all(house, folder)
    print(f"{len(list(folder.glob('*.png')))} pictures in {folder}")


if __name__ == "__main__":
    main()
