# SPDX-License-Identifier: Apache-2.0
"""Whatever anybody names, says or sends is text on every page.  In a browser: tests/browser/test_attacks."""

from __future__ import annotations

import csv
import html.parser
import io
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.dashboard.hostile_site import EVIL, SOURCES, TICKS, WORKED_OUT, HostileSite, open_hostile_site
from tests.dashboard.rules import every_rule
from tests.dashboard.visitor import open_client

API = ("/api/", "/oauth/", "/v1/")


class Reader(html.parser.HTMLParser):
    """What a page is made of, as a browser would see it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.text: list[str] = []
        self.is_in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag != "x-evil", f"{self.path}: markup of somebody else's"
        assert not [name for name in given if name.startswith("on")], f"{self.path}: {tag} {given}"
        if tag == "script":
            assert str(given.get("src", "")).startswith("/static/"), f"{self.path}: {given}"
            self.is_in_script = True
        if tag == "img":
            assert str(given.get("src", "")).startswith(("/static/", "data:")), f"{self.path}: {given}"
        for name in ("href", "src", "action", "formaction"):
            target = str(given.get(name) or "").strip().lower()
            assert not target.startswith(("javascript:", "data:text", "vbscript:")), f"{self.path}: {target}"
        self.text += [value for value in given.values() if value]

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self.is_in_script = False

    def handle_data(self, data: str) -> None:
        assert not (self.is_in_script and data.strip()), f"{self.path}: a script stands in the page"
        self.text.append(data)


@pytest.fixture(scope="module")
def site() -> Iterator[HostileSite]:
    with open_hostile_site() as opened:
        yield opened


def paths_of(site: HostileSite, folder: Path) -> Iterator[str]:
    """Every page, every tab, and what is typed into addresses."""
    for rule in every_rule(folder):
        if rule.method == "GET" and not rule.text.startswith(API):
            yield rule.filled(site.values)
    for message_id in (site.message_id, site.failed_id, site.deferred_id):
        for tab in ("html", "text", "headers", "attachments"):
            yield f"/logs/{message_id}?tab={tab}"
    evil = quote(EVIL)
    for name in ("q", "before", "after", "behind", "kind", "show", "reason", "next", "route", "destination", "status"):
        for path in ("/logs", "/credits", "/suppressions", "/security/audit", "/operator/accounts", "/sign-in"):
            yield f"{path}?{name}={evil}"
    yield f"/operator/queue/waiting?destination={evil}&route={evil}&state={evil}"
    yield f"/{evil}"
    yield f"/link/{evil}"
    yield f"/keys/{evil}"


def test_everything_is_text(site: HostileSite, tmp_path: Path) -> None:
    seen = ""
    for path in paths_of(site, tmp_path):
        for visitor in (site.owner, site.operator):
            response = visitor.client.get(path)
            policy = response.headers.get("Content-Security-Policy", "")
            if not response.headers.get("Content-Type", "").startswith("text/html") or policy.startswith("sandbox"):
                continue
            reader = Reader(path)
            reader.feed(response.text)
            seen += " ".join(reader.text)
            assert WORKED_OUT not in " ".join(reader.text), f"{path}: a template within a template"
    missing = [name for name, text in SOURCES.items() if text not in seen]
    assert not missing, f"these are shown nowhere, so nothing was tried: {missing}"


def test_a_notice_that_somebody_planted_is_text(site: HostileSite) -> None:
    with open_client(site.daemon, cookies=dict(site.owner.client.cookies)) as client:
        client.cookies.set("__Host-hepmaild-notice", quote(EVIL))
        reader = Reader("/")
        reader.feed(client.get("/").text)
        assert EVIL in " ".join(reader.text)


def test_the_content_of_a_message_is_let_out_harmless(site: HostileSite) -> None:
    base = f"/logs/{site.message_id}"
    letter = site.owner.client.get(f"{base}/html")
    framed = letter.headers
    assert "x-link rel=" in letter.text
    assert "<link" not in letter.text.lower()  # browsers call what a preconnect names, whatever the policy says
    assert framed["Content-Security-Policy"].startswith("sandbox; default-src 'none'; img-src data:;")
    assert "allow-" not in framed["Content-Security-Policy"]
    saved = site.owner.client.get(f"{base}/attachments/{site.values['n']}")
    assert saved.content.strip() == b"<script>evil=1</script>"
    assert saved.headers["Content-Type"] == "application/octet-stream"
    assert saved.headers["Content-Disposition"].startswith("attachment; ")
    assert not set("<>\r\n/\\") & set(saved.headers["Content-Disposition"])


FORMULAS = (
    "=HYPERLINK(1)",
    "+1",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    " =1",
    "\u00a0=1",
    "＝1+1",
    "＋1",
    "－1",
    "＠x",
    "'=1",
    "x;=1+1",
    "x; @SUM(1);y",
    'x;"=1+1;"',
    'x; ""+1;y, z',
    "x;;＝1",
    "x;\u00a0-1+1",
)


def test_no_cell_of_an_export_is_a_formula(site: HostileSite) -> None:
    for formula in FORMULAS:
        if formula.isprintable():
            site.send(to="formula@example.net", subject=formula)
    shown = site.owner.client.get("/logs/export.csv").text
    rows = list(csv.reader(io.StringIO(shown.removeprefix("\ufeff"))))
    cells = [cell for row in rows[1:] for cell in row]
    assert len(rows) > 10
    assert SOURCES["subject"] in " ".join(cells).replace("''", "'")
    for cell in cells:
        bare = cell.lstrip(" \u00a0")
        assert bare.lstrip("-").isdigit() or bare[:1] not in "=+-@\t\r＝＋－＠" or not bare, cell
    for cell in (cell for line in shown.splitlines() for cell in line.split(";")[1:]):  # as in Germany, or in France
        assert cell.lstrip(' \u00a0"')[:1] not in tuple("=+-@\t\r＝＋－＠"), cell
    assert "x;'=1+1" in shown
    lines = [json.loads(line) for line in site.owner.client.get("/logs/export.jsonl").text.splitlines()]
    assert any(f"no{TICKS}@example.net" in line["recipients"] for line in lines)
