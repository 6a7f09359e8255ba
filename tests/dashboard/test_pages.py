# SPDX-License-Identifier: Apache-2.0
"""Overview, credits, suppressions, custom addresses and the places, through the real daemon on each engine."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from tests.dashboard.conftest import OTHER, Site
from tests.dashboard.visitor import link_of, sign_in, words
from tests.peers import postgres
from tests.peers.daemon import ACCOUNT, SENDER, open_daemon, post
from tests.peers.sink import capture_sink
from tests.peers.small_dns import small_dns

MESSAGE = {"to": ["joe@example.com", "ann@example.com"], "subject": "Hi", "text": "Hello"}
PATHS = ("/", "/?show=hour", "/?show=month", "/keys", "/credits", "/suppressions", "/addresses", "/smtp-servers")


def audit_rows(site: Site) -> list[tuple[str, str]]:
    return [(row["action"], row["subject"]) for row in site.daemon.json("audit", "list", ACCOUNT)]


def alter(site: Site, statement: str) -> None:
    """Change a row behind everybody's back."""
    url = site.daemon.settings["database"]["url"]
    if url.startswith("sqlite"):
        import sqlite3

        with sqlite3.connect(site.daemon.state_dir / "hepmaild.db", timeout=30) as connection:
            connection.execute(statement)
        connection.close()
    else:
        postgres.sql(url, statement)


@pytest.mark.parametrize("path", [*PATHS, "/templates"])
def test_pages_stand_for_every_role(site: Site, path: str) -> None:
    for visitor in (site.owner, site.reader, site.other):
        response = visitor.client.get(path)
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "no-store"
        assert "style=" not in response.text  # the policy would not have it
        assert len(re.findall(r"<h1[ >]", response.text)) == 1


def test_first_steps_until_something_was_sent(site: Site) -> None:
    page = site.other.get("/")
    for tool in ("curl", "swaks", "nodemailer", "Django", "Laravel", "Postfix"):
        assert f"<summary>{tool}" in page
    assert "YOUR_API_KEY" in page
    assert SENDER in page
    assert 'href="/keys/new"' in page


def test_who_only_reads_is_offered_nothing_that_is_refused(site: Site) -> None:
    made = site.daemon.json("user", "add", OTHER, "looker@elsewhere.example", "--scope", "read_only")
    with sign_in(site.daemon, link_of(made)) as looker:
        page = looker.get("/")
        assert "There is no API key yet" in words(page)
        for link in set(re.findall(r'href="(/[^"]*)"', page)):
            looker.get(link)


def send_three(site: Site) -> tuple[int, str]:
    """How many were sent today before, and the overview after."""
    before = words(site.owner.get("/"))
    for _ in range(3):
        assert post(site.daemon, MESSAGE, site.key)[0] == 200
    sent = re.search(r"Sent today ● ([\d,]+)", before)
    assert sent is not None, before
    return int(sent[1].replace(",", "")), site.owner.get("/?show=hour")


def test_the_overview_counts(site: Site) -> None:
    today = datetime.now(UTC).date()
    sent, page = send_three(site)
    if datetime.now(UTC).date() != today:  # another day began between the two looks
        sent, page = send_three(site)
    assert f"Sent today ● {sent + 3} " in words(page)
    assert page.count("<li tabindex") == 60
    assert "YOUR_API_KEY" not in page
    assert 'aria-current="page">Last hour' in page
    assert "/ 120" in words(page)
    for show, columns in (("day", 24), ("month", 30), ("nonsense", 24)):
        assert site.owner.get(f"/?show={show}").count("<li tabindex") == columns
    # Nothing of it is the other account's.
    assert "Sent today ● 0 " in words(site.other.get("/"))


def test_the_ledger_and_its_verification(site: Site) -> None:
    _, body, _ = post(site.daemon, MESSAGE, site.key)
    page = site.owner.get("/credits")
    assert f'href="/logs/{body["data"]["messageId"]}"' in page
    assert "−2" in words(page)
    grants = words(site.owner.get("/credits?reason=grant"))
    assert "granted" in grants
    assert "−2" not in grants
    assert "No row of this kind" in words(site.owner.get("/credits?reason=refund"))
    for strange in ("?before=x", "?before=-1", "?before=" + "9" * 40, "?reason=x"):
        site.owner.get("/credits" + strange)

    verified = site.reader.post("/credits/verify", page="/credits")
    assert verified.status_code == 200
    assert "The ledger holds" in words(verified.text)
    assert site.owner.post("/credits/verify", token="forged").status_code == 403

    account = {row["email"]: row["id"] for row in site.daemon.json("account", "list")}[OTHER]
    alter(site, f"UPDATE ledger SET note = 'changed' WHERE account_id = '{account}' AND seq = 1")
    broken = words(site.other.post("/credits/verify", page="/credits").text)
    assert "The ledger is broken at row 1" in broken


def test_the_ledger_goes_page_by_page(site: Site) -> None:
    for _ in range(60):
        assert post(site.daemon, {**MESSAGE, "to": "joe@example.com"}, site.key)[0] == 200
    page, rows, path = "", [], "/credits"
    while path:
        page = site.owner.get(path)
        rows += [int(n.replace(",", "")) for n in re.findall(r'data-label="Row">([\d,]+)<', page)]
        older = re.search(r'rel="next" href="([^"]+)"', page)
        path = older[1] if older else ""
    assert rows == list(range(rows[0], 0, -1))
    assert ">Newest</a>" in page


def test_suppressions_are_added_found_and_lifted(site: Site) -> None:
    for n in range(2):
        site.daemon.cli("suppression", "add", ACCOUNT, f"gone{n}@example.net")
    refused = site.owner.post(
        "/suppressions", {"address": "<b>@x", "days": "x", "reason": "<i>why</i>"}, page="/suppressions"
    )
    assert refused.status_code == 422
    assert "Give a number of days" in words(refused.text)
    assert 'value="&lt;b&gt;@x"' in refused.text
    fields = {"address": "jörg@bücher.example", "days": "2,5", "reason": "<i>asked</i> for it"}
    page = site.owner.follow("/suppressions", fields, page="/suppressions")
    assert "is not sent to any more" in words(page)
    assert "<i>asked" not in page
    assert "<i>asked</i> for it" in words(page)
    status, body, _ = post(site.daemon, {**MESSAGE, "to": "jörg@bücher.example"}, site.key)
    assert status == 502, body
    found = site.owner.get("/suppressions?q=JÖRG")
    assert found.count("<tr data-line") == 1
    assert "No suppressed address" in words(site.owner.get("/suppressions?q=%25"))
    address = re.search(r'name="address" value="([^"]+)"><button class="">Lift', found)
    assert address is not None
    # Neither somebody who may only look, nor another account.
    assert site.reader.post("/suppressions/lift", {"address": address[1]}, page="/").status_code == 403
    assert site.reader.post("/suppressions", fields, page="/").status_code == 403
    assert "Nothing was changed" in words(site.other.follow("/suppressions/lift", {"address": address[1]}))
    assert site.owner.get("/suppressions?q=jörg").count("<tr data-line") == 1
    assert "can be sent to again" in words(site.owner.follow("/suppressions/lift", {"address": address[1]}))
    assert post(site.daemon, {**MESSAGE, "to": "jörg@bücher.example"}, site.key)[0] == 200
    rows = audit_rows(site)
    assert ("suppression.add", address[1]) in rows
    assert ("suppression.lift", address[1]) in rows


def test_suppressions_go_page_by_page(site: Site) -> None:
    account = {row["email"]: row["id"] for row in site.daemon.json("account", "list")}[OTHER]
    now_us = time.time_ns() // 1000
    values = ",".join(
        f"('{account}', 'a{n:03}@example.net', 'a{n:03}@example.net', 3, {now_us - n // 7}, {now_us + 10**10}, "
        f"'550 5.1.1 no', '', {now_us + 10**10})"
        for n in range(120)
    )
    alter(site, f"INSERT INTO suppression VALUES {values}")
    seen, path = [], "/suppressions"
    while path:
        page = site.other.get(path)
        seen += re.findall(r'data-id="([^"]+)"', page)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        path = older[1].replace("&amp;", "&") if older else ""
    assert len(seen) == len(set(seen)) == 120
    assert "a119@" not in site.owner.get("/suppressions")


def test_addresses_with_their_caps(site: Site) -> None:
    site.daemon.cli("sender", "add", "shop@shop.example", "--route", "sink", "--account", ACCOUNT, "--daily-cap", "2")
    for _ in range(3):
        post(site.daemon, {**MESSAGE, "from": "shop@shop.example"}, site.key)
    page = words(site.owner.get("/addresses"))
    assert "2 / 2" in page
    assert "1 waiting" in page
    assert "next place free" in page
    assert "every account" in page
    assert "shop@shop.example" not in site.other.get("/addresses")
    # Only domains of the account's own senders are looked up for it.
    for domain in ("shop.example", "", "example.org"):
        assert site.other.post("/addresses/check", {"domain": domain}, page="/").status_code == 404


def test_dns_is_asked_on_request_only() -> None:
    with ExitStack() as stack:
        names = stack.enter_context(small_dns())
        sink = stack.enter_context(capture_sink())
        changes = {"dns": {"servers": [f"127.0.0.1:{names.port}"]}}
        daemon = stack.enter_context(open_daemon(sink_port=sink.port, changes=changes, start=False))
        daemon.setup()
        daemon.cli("sender", "add", "shop@shop.example", "--route", "sink", "--account", ACCOUNT)
        daemon.json("dkim", "add", "shop.example", "--algorithm", "ed25519", "--selector", "s1")
        daemon.start()
        owner = stack.enter_context(sign_in(daemon, link_of(daemon.json("account", "link", ACCOUNT))))
        assert "DNS of" not in words(owner.get("/addresses"))
        assert names.asked == []
        page = owner.post("/addresses/check", {"domain": "shop.example"}, page="/addresses").text
        found = words(page)
        assert "DNS of shop.example" in found
        assert "SPF: wrong There is no SPF record" in found
        assert "s1._domainkey.shop.example" in found
        assert "_dmarc.shop.example" in found
        assert "v=DKIM1; k=ed25519" in found
        # Anybody may call an SMTP server somebody else's; whose keys lie here is not told by that.
        daemon.json("account", "add", OTHER)
        other = stack.enter_context(sign_in(daemon, link_of(daemon.json("account", "link", OTHER))))
        for domain in ("shop.example", "unknown.example"):
            server = {"name": domain, "host": "127.0.0.1", "port": "25", "tls": "none", "address": f"me@{domain}"}
            assert other.post("/smtp-servers", server, page="/smtp-servers/new").status_code == 303
            found = words(other.post("/addresses/check", {"domain": domain}, page="/addresses").text)
            assert "is signed by that server, or by nobody" in found
            assert "DKIM s1" not in found
            assert "hepmaild dkim add" not in found
