# SPDX-License-Identifier: Apache-2.0
"""The pages of the log on the real daemon: lines, search, a message and its content, deeds, files; other accounts."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.dashboard.conftest import OTHER, Site
from tests.dashboard.visitor import Visitor, link_of, sign_in, words
from tests.peers.daemon import ACCOUNT, Daemon, open_daemon, open_smtp, post
from tests.peers.processes import assert_no_traceback, wait_until

HOSTILE = "<script>alert('x')</script>\"onmouseover=\"y"
PDF = b"%PDF-1.4 not really"
MAIL = (
    "From: noreply@example.com\r\nTo: kept@example.com\r\nSubject: Kept\r\nMIME-Version: 1.0\r\n"
    'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n'
    "Plain <b>words</b>\r\n--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    "<p>Rich</p><script>fetch('/')</script><img src='https://evil.example/x.png'>\r\n"
    '--b\r\nContent-Type: text/html\r\nContent-Disposition: attachment; filename="../../<b>bill.html"\r\n\r\n'
    "%PDF-1.4 not really\r\n--b--\r\n"
)


def send(daemon: Daemon, key: str, **fields: Any) -> str:
    """A message by the API; its id."""
    status, answer, _ = post(daemon, {"to": "anna@example.com", "subject": "Hi", "text": "Hello", **fields}, key)
    assert status in (200, 202), answer
    return str(answer["data"]["messageId"])


def test_a_message_has_a_line_and_a_story(site: Site) -> None:
    message_id = send(site.daemon, site.key, to="line@example.com", subject="A line of the log")
    page = site.owner.get("/logs")
    assert f'data-id="{message_id}"' in page
    assert "line@example.com" in words(page)
    assert "A line of the log" in words(page)
    # What the caller heard is written behind its back, a moment later.
    told = "The client was told"
    wait_until(lambda: told in words(site.owner.get(f"/logs/{message_id}")), "the answer to be recorded")
    story = words(site.owner.get(f"/logs/{message_id}"))
    for said in ("Client → us, by the HTTPS API", "TLSv1.3", "Request", "Stored and paid for", told):
        assert said in story
    assert "Us → 127.0.0.1" in story
    for step in ("Greeting", "Hello", "Sender noreply@example.com", "Recipient line@example.com", "Content"):
        assert step in story
    assert re.search(r"\d+\.\d ms", story)
    assert "1 credit paid" in story


def test_both_legs_of_a_message_by_smtp(site: Site) -> None:
    session = open_smtp(site.daemon, site.key)
    session.sendmail("noreply@example.com", ["one@example.com", "two@example.com"], "Subject: by SMTP\r\n\r\nHello\r\n")
    session.quit()
    page = site.owner.get("/logs?q=two%40example.com")
    message_id = re.search(r'data-id="([0-9a-f]{16})"', page)
    assert message_id is not None
    story = words(site.owner.get(f"/logs/{message_id[1]}"))
    for step in ("Client → us, by SMTP", "Start TLS", "Log in", "Announce the content", "AUTH PLAIN ***"):
        assert step in story
    assert site.key not in site.owner.get(f"/logs/{message_id[1]}")


@pytest.mark.parametrize("text", [HOSTILE, "مرحبا \u202eevil", "Grüße 🎉", "a" * 900])
def test_hostile_subjects_are_only_text(site: Site, text: str) -> None:
    message_id = send(site.daemon, site.key, subject=text)
    for path in ("/logs", f"/logs/{message_id}", "/logs?q=" + "script"):
        page = site.owner.get(path)
        assert "<script>alert" not in page
        assert '"onmouseover="' not in page
    assert site.owner.client.get("/logs?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E").text.count("<script>alert") == 0


def test_searching(site: Site) -> None:
    message_id = send(site.daemon, site.key, to="needle@example.com", subject="Haystack")
    for text in ("needle@example.com", "to:needle", "haystack", f"id:{message_id}", "door:http needle"):
        assert message_id in site.owner.client.get("/logs", params={"q": text}).text, text
    for text in ("to:nobody@example.com", "needle door:smtp", "needle before:2020-01-01"):
        page = site.owner.client.get("/logs", params={"q": text}).text
        assert message_id not in page, text
        assert "Nothing fits this search" in page
    page = site.owner.client.get("/logs", params={"q": "needle door:http"}).text
    assert 'href="/logs?q=needle"' in page, "a chip takes its word away"
    refused = site.owner.client.get("/logs", params={"q": "status:open"})
    assert refused.status_code == 400
    assert "There is no state" in refused.text


def test_pages_are_stable(site: Site) -> None:
    for n in range(55):
        send(site.daemon, site.key, subject=f"paged {n}")
    first = site.owner.client.get("/logs", params={"q": "paged"}).text
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    second = site.owner.get(older[1].replace("&amp;", "&"))
    send(site.daemon, site.key, subject="paged 99")
    ids = re.compile(r'data-id="([0-9a-f]{16})"')
    again = site.owner.get(older[1].replace("&amp;", "&"))
    assert ids.findall(again) == ids.findall(second)
    assert len(ids.findall(first)) == 50
    assert len(ids.findall(second)) == 5
    assert 'rel="prev"' in second


def test_an_account_without_mail_is_told_how(site: Site) -> None:
    page = words(site.other.get("/logs"))
    assert "Nothing was sent yet" in page
    assert "curl" in page
    assert "swaks" in page


def test_another_account_sees_nothing(site: Site) -> None:
    message_id = send(site.daemon, site.key, subject="Mine")
    for path in ("", "/html", "/raw", "/attachments/1"):
        site.other.get(f"/logs/{message_id}{path}", status=404)
    for deed in ("retry", "cancel"):
        assert site.other.post(f"/logs/{message_id}/{deed}").status_code == 404
    assert f'data-id="{message_id}"' not in site.other.get(f"/logs?q={message_id}")
    assert message_id not in site.other.get(f"/logs/export.jsonl?q={message_id}")
    site.owner.get("/logs/../logs/xyz", status=404)
    site.owner.get("/logs/" + "0" * 16, status=404)


def test_export(site: Site) -> None:
    for subject in ("=HYPERLINK(1)", "+1", "-1", "@x", " =1+1", 'quote" and, comma'):
        send(site.daemon, site.key, subject=subject, to="export@example.com")
    answer = site.owner.client.get("/logs/export.csv", params={"q": "to:export@example.com"})
    assert answer.headers["content-disposition"].startswith("attachment")
    rows = list(csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff"))))
    assert len(rows) == 6
    assert not [r for r in rows if r["subject"].strip().startswith(("=", "+", "-", "@"))]
    assert rows[0]["recipients"] == "export@example.com"
    lines = site.owner.client.get("/logs/export.jsonl", params={"q": "to:export@example.com"}).text.splitlines()
    assert json.loads(lines[0])["subject"] == 'quote" and, comma'
    assert site.owner.client.get("/logs/export.csv?q=status:open").status_code == 400
    site.owner.get("/logs/export.exe", status=404)


# Content and deeds: a daemon that keeps bodies, and a next hop that is away


@pytest.fixture(scope="module")
def keeper() -> Iterator[tuple[Daemon, str, Visitor, Visitor]]:
    changes = {
        "delivery": {"body_days": 7, "retry_after_s": [3600]},
        "route": [
            {"name": "sand", "kind": "sandbox"},
            {"name": "away", "kind": "smtp", "host": "127.0.0.1", "port": 1, "tls": "none"},
        ],
        "sender": [
            {"address": "noreply@example.com", "route": "sand", "default": True},
            {"address": "late@example.com", "route": "away"},
        ],
    }
    with open_daemon(sink_port=1, changes=changes, start=False) as daemon:
        key = daemon.setup()
        daemon.start()
        made = daemon.json("user", "add", ACCOUNT, OTHER, "--scope", "read_only")
        with (
            sign_in(daemon, link_of(daemon.json("account", "link", ACCOUNT))) as owner,
            sign_in(daemon, link_of(made)) as reader,
        ):
            yield daemon, key, owner, reader
        assert_no_traceback(daemon.log())


Keeper = tuple[Daemon, str, Visitor, Visitor]


def test_the_way_back_leads_to_the_log_as_it_was(keeper: Keeper) -> None:
    """Its search and its page, over the tabs and what is done to the message; from elsewhere to all of the log."""
    daemon, key, owner, _ = keeper
    message_id = send(daemon, key, to="back@example.com", html="<p>x</p>", **{"from": "late@example.com"})

    def back_to(path: str, referrer: str = "") -> str:
        answer = owner.client.get(path, headers={"Referer": referrer} if referrer else {})
        assert answer.status_code == 200
        found = re.search(r'<a href="([^"]+)" data-back>Logs</a>', answer.text)
        assert found is not None
        pages.append(answer.text)
        return html.unescape(found[1])

    pages: list[str] = []
    path, origin = f"/logs/{message_id}", "https://localhost"
    view = f"/logs?q=to%3Aback%40example.com+%26x&before=17-{message_id}"
    assert back_to(path, f"{origin}{view}&other=x") == view
    tabs = [html.unescape(each) for each in re.findall(rf'href="({path}\?tab=[^"]+)"', pages[-1])]
    assert len(tabs) > 1
    for tab in tabs:
        assert back_to(tab, f"{origin}{path}") == view
    handed_on = re.findall(r'name="view" value="([^"]*)"', pages[-1])
    assert [html.unescape(each) for each in handed_on] == [view.partition("?")[2]] * 2, "retry and cancel"
    done = owner.post(f"{path}/cancel", {"view": html.unescape(handed_on[0])}, page=path)
    assert back_to(done.headers["location"], f"{origin}{path}") == view
    assert owner.post(f"{path}/cancel", {"view": ""}, page=path).headers["location"] == path
    for elsewhere in ("", f"{origin}/credits", f"{origin}/logs", "https://[", f"{origin}/logs?before=x&q="):
        assert back_to(path, elsewhere) == "/logs"


def test_content_is_shown_without_being_let_loose(keeper: Keeper) -> None:
    daemon, key, owner, _ = keeper
    session = open_smtp(daemon, key)
    session.sendmail("noreply@example.com", ["kept@example.com"], MAIL)
    session.quit()
    found = re.search(r'data-id="([0-9a-f]{16})"', owner.get("/logs?q=kept%40example.com"))
    assert found is not None
    base = f"/logs/{found[1]}"
    page = owner.get(base)
    assert "<iframe" in page
    assert " sandbox " in page
    assert "fetch('/')" not in page
    framed = owner.client.get(f"{base}/html")
    policy = framed.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'; img-src data:")
    assert "allow-scripts" not in policy
    assert framed.headers["x-frame-options"] == "SAMEORIGIN"
    assert "Plain &lt;b&gt;words&lt;/b&gt;" in owner.get(f"{base}?tab=text")
    assert "Subject: Kept" in words(owner.get(f"{base}?tab=headers"))
    listed = owner.get(f"{base}?tab=attachments")
    link = re.search(rf'href="({base}/attachments/\d+)"', listed)
    assert link is not None
    saved = owner.client.get(link[1])
    assert saved.content.strip() == PDF
    assert saved.headers["content-type"] == "application/octet-stream"
    assert saved.headers["x-content-type-options"] == "nosniff"
    assert saved.headers["content-disposition"].startswith("attachment;")
    assert "/" not in saved.headers["content-disposition"].replace("UTF-8''", "")
    assert "<b>" not in listed
    raw = owner.client.get(f"{base}/raw")
    assert raw.headers["content-type"] == "message/rfc822"
    assert b"Subject: Kept" in raw.content
    owner.get(f"{base}/attachments/99", status=404)


def test_retry_and_cancel(keeper: Keeper) -> None:
    daemon, key, owner, reader = keeper
    message_id = send(daemon, key, **{"from": "late@example.com"}, subject="Late")
    page = owner.get(f"/logs/{message_id}")
    assert "Next attempt" in page
    assert "Retry now" in page
    assert "Retry now" not in reader.get(f"/logs/{message_id}")
    for deed in ("retry", "cancel"):
        assert reader.post(f"/logs/{message_id}/{deed}").status_code == 403
        assert owner.post(f"/logs/{message_id}/{deed}", token="forged").status_code == 403
    assert "It is tried again now" in owner.follow(f"/logs/{message_id}/retry")
    done = words(owner.follow(f"/logs/{message_id}/cancel"))
    assert "cancelled" in done
    assert "refunded" in done
    again = words(owner.follow(f"/logs/{message_id}/cancel"))
    assert "is final" in again
    with closing(sqlite3.connect(daemon.state_dir / "hepmaild.db")) as database:
        rows = database.execute("select action, via from audit where subject = ?", [message_id]).fetchall()
    assert rows == [("message.retry", "dashboard"), ("message.cancel", "dashboard")]
