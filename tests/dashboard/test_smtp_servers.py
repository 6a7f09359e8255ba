# SPDX-License-Identifier: Apache-2.0
"""The account's own SMTP servers on their pages, through the real daemon; the engine obeys at once."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.dashboard.conftest import Site
from tests.dashboard.visitor import Visitor, words
from tests.peers.daemon import post
from tests.peers.processes import wait_until

SECRET = "correct horse battery"
NEW = "/smtp-servers/new"


def fields(site: Site, **changes: str) -> dict[str, str]:
    plain = {"host": "127.0.0.1", "port": str(site.sink.port), "tls": "none", "address": "me@own.example"}
    return {"name": "mine", **plain, **changes}


def add(site: Site, who: Visitor | None = None, **changes: str) -> str:
    """A new server: its id."""
    response = (who or site.owner).post("/smtp-servers", fields(site, **changes), page=NEW)
    assert response.status_code == 303, words(response.text)
    found = re.fullmatch(r"/smtp-servers/([0-9a-f-]{36})", response.headers["Location"])
    assert found is not None
    return found[1]


def send(site: Site, server_id: str | None, sender: str, key: str | None = None) -> tuple[int, dict[str, object]]:
    body = {"smtpId": server_id, "from": sender, "to": "joe@example.net", "subject": "Hi", "html": "<p>Hello</p>"}
    status, answer, _headers = post(site.daemon, body, key or site.key, path="/v1/emails")
    return status, answer


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    """A test's servers go with it."""
    yield
    for server_id in set(re.findall(r'href="/smtp-servers/([0-9a-f-]{36})"', site.owner.get("/smtp-servers"))):
        name = re.search(r"<h1>([^<]*)</h1>", site.owner.get(f"/smtp-servers/{server_id}"))
        assert name is not None
        page = f"/smtp-servers/{server_id}"
        site.owner.follow(f"{page}/delete", {"confirm": name[1]}, page=page)


def test_the_life_of_a_server(site: Site) -> None:
    assert "No server yet" in words(site.owner.get("/smtp-servers"))
    server_id = add(site, from_name="Me & co", daily_cap="50")
    page = words(site.owner.get(f"/smtp-servers/{server_id}"))
    for said in ("default", "me@own.example", f"127.0.0.1:{site.sink.port}", server_id, "Me & co"):
        assert said in page
    assert "its SMTP server" in words(site.owner.get("/addresses"))
    assert "own:" not in words(site.owner.get("/addresses"))
    tested = site.owner.post(f"/smtp-servers/{server_id}/test", page=f"/smtp-servers/{server_id}")
    assert "It works" in words(tested.text)
    assert "EHLO" in words(tested.text)
    status, answer = send(site, server_id, "me@own.example")
    assert (status, set(answer)) == (200, {"success", "messageId"})
    assert str(answer["messageId"]).endswith("@own.example>")
    line = site.owner.get("/logs")
    message_id = re.search(r'href="/logs/([0-9a-f]{16})"', line)
    assert message_id is not None
    message = words(site.owner.get(f"/logs/{message_id[1]}"))
    assert "SMTP server mine" in message
    assert "Door HTTP" in message

    site.owner.follow(f"/smtp-servers/{server_id}/pause", page=f"/smtp-servers/{server_id}")
    status, answer = send(site, server_id, "me@own.example")
    assert (status, answer.get("queued")) == (202, True)
    page = words(site.owner.get(f"/smtp-servers/{server_id}"))
    assert "This server is paused" in page
    assert "Waiting 1 message" in page
    message_id = re.search(r'href="/logs/([0-9a-f]{16})"', site.owner.get("/logs"))
    assert message_id is not None
    path = f"/logs/{message_id[1]}"
    assert "It waits: the SMTP server mine is paused" in words(site.owner.get(path))
    site.owner.follow(f"/smtp-servers/{server_id}/resume", page=f"/smtp-servers/{server_id}")
    wait_until(lambda: 'data-state="sent"' in site.owner.get(path), "what waited to leave")

    refused = site.owner.post(f"/smtp-servers/{server_id}/delete", {"confirm": "x"}, page=f"/smtp-servers/{server_id}")
    assert (refused.status_code, "Nothing was deleted" in words(refused.text)) == (422, True)
    site.owner.follow(f"/smtp-servers/{server_id}/delete", {"confirm": "mine"}, page=f"/smtp-servers/{server_id}")
    assert send(site, server_id, "me@own.example")[1]["code"] == "smtp_not_found"
    assert "me@own.example" not in words(site.owner.get("/addresses"))
    assert "an SMTP server that was deleted" in words(site.owner.get(path))
    audit = [row["action"] for row in site.daemon.json("audit", "list", "owner@example.com")]
    shown = words(site.owner.get("/security/audit"))
    for deed, said in (("add", "added"), ("pause", "paused"), ("resume", "resumed"), ("remove", "deleted")):
        assert f"smtp_server.{deed}" in audit
        assert f"SMTP server {said}" in shown


def test_what_waits_for_a_server_that_is_deleted_fails_and_is_refunded(site: Site) -> None:
    server_id = add(site)
    site.owner.follow(f"/smtp-servers/{server_id}/pause", page=f"/smtp-servers/{server_id}")
    before = site.daemon.json("credits", "show", "owner@example.com")["balance"]
    assert send(site, server_id, "me@own.example")[0] == 202
    assert site.daemon.json("credits", "show", "owner@example.com")["balance"] == before - 1
    page = words(site.owner.get(f"/smtp-servers/{server_id}"))
    assert "1 message that waits for it will fail and be refunded" in page
    site.owner.follow(f"/smtp-servers/{server_id}/delete", {"confirm": "mine"}, page=f"/smtp-servers/{server_id}")
    wait_until(
        lambda: site.daemon.json("credits", "show", "owner@example.com")["balance"] == before, "the refund to come"
    )
    found = re.search(r'href="/logs/([0-9a-f]{16})"', site.owner.get("/logs"))
    assert found is not None
    message = site.daemon.json("log", "show", found[1])
    assert message["recipients"][0]["state"] == "failed"
    assert message["recipients"][0]["last_reply"].startswith("550 5.3.5")


def test_a_change_holds_from_the_next_attempt_on_and_what_waits_is_tried(site: Site) -> None:
    server_id = add(site, port="1")
    page = f"/smtp-servers/{server_id}"
    tested = site.owner.post(f"{page}/test", page=page)
    assert "It does not work" in words(tested.text)
    assert "connection refused" in words(tested.text)
    assert send(site, server_id, "me@own.example")[0] == 202
    wait_until(lambda: "connection refused" in words(site.owner.get(page)), "the first attempt to fail")
    found = re.search(r'href="/logs/([0-9a-f]{16})"', site.owner.get("/logs"))
    assert found is not None
    site.owner.follow(page, fields(site), page=page)
    wait_until(lambda: 'data-state="sent"' in site.owner.get(f"/logs/{found[1]}"), "it to leave by the changed server")


def test_a_password_goes_in_and_never_comes_out(site: Site) -> None:
    login = {"tls": "starttls", "username": "me@own.example", "address": "", "password": SECRET}
    server_id = add(site, **login)
    page = f"/smtp-servers/{server_id}"
    for path in ("/smtp-servers", page):
        assert SECRET not in site.owner.get(path)
    refused = site.owner.post(page, fields(site, **login, host="evil.example") | {"password": ""}, page=page)
    assert refused.status_code == 422
    assert "Enter the password again" in words(refused.text)
    assert 'value="evil.example"' in refused.text
    bad = site.owner.post(page, fields(site, **login, name="") | {"password": SECRET}, page=page)
    assert (bad.status_code, SECRET in bad.text) == (422, False)
    site.owner.follow(page, fields(site, **login, name="renamed") | {"password": ""}, page=page)
    assert "renamed" in words(site.owner.get(page))
    assert SECRET not in site.daemon.log()
    assert SECRET not in str(site.daemon.json("audit", "list", "owner@example.com"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": ""}, "Give the server a name"),
        ({"host": "a b"}, "Give a host name"),
        ({"port": "x"}, "A port is a number"),
        ({"address": ""}, "the address for From must be given"),
        ({"username": "me@own.example", "address": "", "tls": "starttls"}, "A login needs a password"),
        ({"username": "me@own.example", "address": "", "password": "x"}, "never sent in clear text"),
        ({"from_name": "a\nb"}, "From name"),
        ({"daily_cap": "-1"}, "whole number"),
    ],
)
def test_what_is_wrong_is_said_and_what_was_typed_stays(site: Site, changes: dict[str, str], says: str) -> None:
    response = site.owner.post("/smtp-servers", fields(site, **changes), page=NEW)
    assert response.status_code == 422
    assert says in words(response.text)
    assert "No server yet" in words(site.owner.get("/smtp-servers"))


def test_the_plans_number_is_kept(site: Site) -> None:
    site.daemon.cli("account", "plan", "owner@example.com", "free")
    try:
        add(site)
        page = site.owner.get("/smtp-servers")
        assert "Your plan allows 1 server, and all are used" in words(page)
        again = site.owner.post("/smtp-servers", fields(site, name="two", address="b@own.example"), page=NEW)
        assert (again.status_code, "as many as its plan allows" in words(again.text)) == (422, True)
    finally:
        site.daemon.cli("account", "plan", "owner@example.com", "standard")


def test_who_may(site: Site) -> None:
    server_id = add(site)
    page = f"/smtp-servers/{server_id}"
    assert "mine" in words(site.reader.get("/smtp-servers"))
    assert f'action="{page}' not in site.reader.get(page)
    site.reader.get(NEW, status=403)
    deeds = ("test", "default", "pause", "resume", "delete")
    for path in ("/smtp-servers", page, *(f"{page}/{deed}" for deed in deeds)):
        assert site.reader.post(path, fields(site, confirm="mine"), page="/security").status_code == 403, path
        assert site.owner.post(path, fields(site, confirm="mine"), token="x").status_code == 403, path
        if path != "/smtp-servers":
            assert site.other.post(path, fields(site, confirm="mine"), page=NEW).status_code == 404, path
    site.other.get(page, status=404)
    site.other.get("/smtp-servers/nothing", status=404)
    assert "paused" not in words(site.owner.get("/smtp-servers"))


def test_the_operators_pause_is_not_the_accounts_to_end(site: Site) -> None:
    server_id = add(site)
    page = f"/smtp-servers/{server_id}"
    site.daemon.json("smtp-server", "pause", server_id, "--note", "too many complaints")
    assert "too many complaints" in words(site.owner.get(page))
    assert "The operator of this service paused this server" in site.owner.follow(f"{page}/resume", page=page)
    assert f"{page}/delete" not in site.owner.get(page)
    form = fields(site, confirm="mine")
    assert "The operator of this service paused this server" in site.owner.follow(f"{page}/delete", form, page=page)
    site.daemon.json("smtp-server", "resume", server_id)
    assert "paused this server" not in words(site.owner.get(page))
    assert f"{page}/delete" in site.owner.get(page)
