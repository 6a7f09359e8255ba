# SPDX-License-Identifier: Apache-2.0
"""All pages there are, found as a person finds them: by the links of the pages; and what must hold for each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from playwright.sync_api import Error, Page

from tests.browser.guard import Person
from tests.peers.processes import wait_until
from tests.peers.programs import CLIENTS_FOLDER, missing

AXE = CLIENTS_FOLDER / "node_modules" / "axe-core" / "axe.min.js"
WIDTHS = (360, 390, 768, 1024, 1440, 3840)
LINKS = """() => [...document.querySelectorAll("nav.rail a[href], main a[href]:not([download])")].map((a) => a.href)"""
# Who is wider than the window, for the reader of the failure.
WIDEST = """() => {
  const root = document.scrollingElement;
  if (root.scrollWidth <= innerWidth) return null;
  const isCut = (e) => e !== document.body && (getComputedStyle(e).overflowX !== "visible" || isCut(e.parentElement));
  const out = [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1
    && !isCut(e.parentElement));
  return `${root.scrollWidth} of ${innerWidth}: ` + out.slice(0, 3).map((e) => e.outerHTML.slice(0, 120)).join(" | ");
}"""
AXE_RUN = """(rules) => axe.run(document, {resultTypes: ["violations"], iframes: false, ...rules}).then((found) =>
  found.violations.map((v) => `${v.id}: ${v.help}\\n` + v.nodes.slice(0, 4).map((n) =>
    `    ${n.html.slice(0, 200)}\\n    ${n.failureSummary.replace(/\\n\\s*/g, " ").slice(0, 300)}`).join("\\n")))"""


def kind_of(url: str) -> str:
    """Pages that differ in what they show only are of one kind: ids and places in lists are left out."""
    parts = urlsplit(url)
    path = "/".join("*" if re.search(r"\d|@|.{25}", each) else each for each in parts.path.split("/"))
    query = sorted(
        f"{name}={value if re.fullmatch('[a-z_-]+', value) else '*'}" for name, value in parse_qsl(parts.query)
    )
    return path + ("?" + "&".join(query) if query else "")


def walk(person: Person, start: str = "/", *, within: str = "") -> Iterator[str]:
    """Open one page of each kind that links lead to; yields its kind while it is open."""
    waiting, known = [person.url + start], {kind_of(person.url + start)}
    while waiting:
        url = waiting.pop(0)
        response = person.page.goto(url)
        assert response is not None
        assert response.ok, f"{url}: {response.status}"
        links = person.page.evaluate(LINKS)
        yield kind_of(url)
        for link in links:
            kind = kind_of(link)
            is_ours = link.startswith(person.url + "/") and urlsplit(link).path.startswith(within)
            if not is_ours or kind in known or kind.count("=") > 1:  # filters of a filtered list show nothing new
                continue
            known.add(kind)
            waiting.append(link.partition("#")[0])


def write_a_template(person: Person) -> None:
    """Two revisions, each seen in the preview while it is typed."""
    page = person.page
    person.go("/templates/new")
    page.get_by_label("Name", exact=True).fill("Versandbestätigung")
    page.get_by_label("Subject").fill("Ihre Bestellung {{ nummer }} ist unterwegs")
    page.get_by_label("HTML", exact=True).fill("<h1>Guten Tag {{ name }}</h1><p>Heute zwischen 9 und 12 Uhr.</p>")
    page.get_by_label("Sample values").fill("name = Jürgen <b>Groß</b>\nnummer = 4711")
    wait_until(lambda: _a_frame_says(page, "Guten Tag Jürgen <b>Groß</b>"), "the preview")
    page.get_by_role("button", name="Save").click()
    person.saved()
    page.get_by_label("HTML", exact=True).fill("<h1>Hallo {{ name }}</h1><p>Heute zwischen 9 und 12 Uhr.</p>")
    wait_until(lambda: _a_frame_says(page, "Hallo Jürgen <b>Groß</b>"), "the preview")
    page.get_by_role("button", name="Save").click()
    person.saved()


def _a_frame_says(page: Page, text: str) -> bool:
    """The preview is another frame after each change: one that is taken away meanwhile says nothing."""
    for frame in page.frames[1:]:
        with contextlib.suppress(Error):
            if text in frame.locator("body").inner_text(timeout=1000):
                return True
    return False


def find_faults(page: Page, where: str, *, rules: tuple[str, ...] = ()) -> list[str]:
    """What axe-core has against the page as it is now, in light and in dark; all its rules unless some are named."""
    if not AXE.exists():
        missing("axe-core is not installed (run `npm ci` in tests/clients)")
    found = []
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE.read_text("utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        chosen = rules or (("color-contrast",) if scheme == "dark" else ())  # what else could a theme change
        options: dict[str, Any] = {"runOnly": list(chosen)} if chosen else {}
        found += [f"{where}, {scheme}: {text}" for text in page.evaluate(AXE_RUN, options)]
    page.emulate_media(color_scheme="light")
    return found


def find_overflow(page: Page, where: str) -> list[str]:
    """At which widths the page can be scrolled sideways."""
    before = page.viewport_size
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        widest = page.evaluate(WIDEST)
        if widest:
            found.append(f"{where}, {width} px: {widest}")
    if before is not None:
        page.set_viewport_size(before)
    return found
