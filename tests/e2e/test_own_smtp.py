# SPDX-License-Identifier: Apache-2.0
"""`POST /v1/emails` through an account's own server, a real Postfix with TLS and SASL: for whatever may be wrong there,
the answer, the log and the money."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import pytest

from tests.peers.certificates import make_certificate
from tests.peers.daemon import ACCOUNT, CommandFailed, Daemon, open_daemon, open_smtp, post
from tests.peers.messages import new_id, plain_message
from tests.peers.postfix import Postfix, submission_server
from tests.peers.processes import assert_no_traceback, free_port, open_folder, wait_until
from tests.peers.sink import CaptureSink, capture_sink

USER = "shop@postfix.test"
PASSWORD = "wörd with spaces & signs"
WRONG = "not the password"
NEVER, LATER, FINE = "never@example.net", "later@example.net", "fine@example.net"
ANSWERS = {NEVER: "550 5.1.1 no such user at 10.0.0.3", LATER: "450 4.2.1 come back in 1 hour"}


@dataclass(frozen=True, slots=True)
class World:
    """postfix: the account's server; expired: the same with a certificate that was good until a minute ago."""

    daemon: Daemon
    postfix: Postfix
    expired: Postfix
    sink: CaptureSink
    key: str

    def add(self, *options: str, password: str = PASSWORD, name: str | None = None, user: str = USER) -> str:
        """A server of the account with this login: its id."""
        command = ("smtp-server", "add", ACCOUNT, "--name", name or new_id(), "--host", "localhost")
        login = ("--username", user, "--password-stdin") if user else ()
        return str(json.loads(self.daemon.cli(*command, *login, *options, "--json", stdin=password + "\n"))["id"])

    def remove(self, server_id: str) -> None:
        self.daemon.cli("smtp-server", "remove", server_id)

    def send(self, server_id: str | None, to: str | list[str] = FINE, **more: Any) -> tuple[int, Any]:
        body = {"smtpId": server_id, "from": USER, "to": to, "subject": "Hi", "html": "<p>Hello</p>", **more}
        status, answer, _headers = post(self.daemon, body, self.key, path="/v1/emails")
        return status, answer

    def arrived(self, header_id: str) -> bytes:
        """The message with this Message-ID, behind the account's server; empty: not there yet."""
        found = [entry for entry in self.sink.deliveries() if entry["message_id"] == header_id]
        return self.sink.content(found[0]) if found else b""

    def ask(self, query: str) -> Any:
        """One value of the database, which is quicker than a command."""
        with closing(sqlite3.connect(self.daemon.state_dir / "hepmaild.db")) as connection:
            return connection.execute(query).fetchone()[0]

    def balance(self) -> int:
        return int(self.ask("SELECT balance FROM account"))

    def log_of(self, answer: Any) -> dict[str, Any]:
        """The log of the message with this Message-ID, or of the newest one."""
        newest = self.ask("SELECT id FROM message ORDER BY accepted_at_us DESC LIMIT 1")
        shown: dict[str, Any] = self.daemon.json("log", "show", newest)
        if isinstance(answer, dict) and "messageId" in answer:
            assert shown["header_message_id"] == answer["messageId"]
        return shown


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder("own-smtp"))
        good = make_certificate(folder)
        bad = make_certificate(folder, name="expired", is_expired=True)
        trusted = folder / "trusted.pem"
        trusted.write_bytes(good.certificate.read_bytes() + bad.certificate.read_bytes())
        sink = stack.enter_context(capture_sink())
        login = {"next_hop": sink.port, "user": "shop", "password": PASSWORD}
        servers = [
            stack.enter_context(
                submission_server(
                    certificate=made.certificate,
                    private_key=made.private_key,
                    answers=ANSWERS,
                    **login,  # type: ignore[arg-type]
                )
            )
            for made in (good, bad)
        ]
        settings = {
            "own_smtp": {"allow_private_addresses": True, "tls_ca": str(trusted)},
            "delivery": {"relay_wait_s": 20, "retry_after_s": [3600]},
        }
        daemon = stack.enter_context(open_daemon(sink_port=sink.port, changes=settings, start=False))
        key = daemon.setup()
        daemon.start()
        yield World(daemon, servers[0], servers[1], sink, key)
        log = daemon.log()
        assert_no_traceback(log)
        for secret in (PASSWORD, WRONG):
            assert secret not in log
            assert secret not in str(daemon.json("audit", "list", ACCOUNT))


def steps_of(shown: dict[str, Any]) -> str:
    return "\n".join(step["text"] for event in shown["events"] for step in event["data"].get("steps", ()))


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_the_right_password(world: World, tls: str) -> None:
    server_id = world.add("--tls", tls, "--port", str(world.postfix.ports[tls]), "--from-name", "The shop")
    before = world.balance()
    status, answer = world.send(server_id, [FINE, "Fine@example.net", "other@example.net"])
    assert (status, list(answer)) == (200, ["success", "messageId"])
    assert world.balance() == before - 2
    content = wait_until(lambda: world.arrived(answer["messageId"]), "it to arrive")
    assert b"From: The shop <shop@postfix.test>" in content.replace(b'"', b"")
    assert b"DKIM-Signature" not in content
    shown = world.log_of(answer)
    assert (shown["door"], shown["state"], shown["route"]) == ("http", "sent", f"own:{server_id}")
    said = steps_of(shown)
    assert "POST /v1/emails" in said
    assert "TLSv1.3" in said
    assert "235 2.7.0" in said
    assert PASSWORD not in json.dumps(shown, ensure_ascii=False)
    # The same again goes over the connection that was kept, and needs no login.
    status, answer = world.send(server_id)
    assert status == 200
    assert "kept connection" in steps_of(world.log_of(answer))
    world.remove(server_id)


def test_a_wrong_password_and_its_correction(world: World) -> None:
    port = ("--port", str(world.postfix.ports["starttls"]))
    server_id = world.add(*port, password=WRONG)
    tested = refused(world, "smtp-server", "test", server_id)
    assert "535 5.7.8" in tested
    before = world.balance()
    status, answer = world.send(server_id)
    assert (status, answer["success"], answer["queued"]) == (202, True, True)
    shown = world.log_of(answer)
    assert shown["recipients"][0]["state"] == "deferred"
    assert shown["recipients"][0]["last_reply"].startswith("535 5.7.8")
    assert world.balance() == before - 1
    world.daemon.cli("queue", "cancel", shown["message_id"])
    assert world.balance() == before
    status, answer = world.send(server_id)
    assert status == 202
    waiting = world.log_of(answer)["message_id"]
    world.daemon.cli("smtp-server", "edit", server_id, "--password-stdin", stdin=PASSWORD + "\n")
    query = f"SELECT state FROM message WHERE id = '{waiting}'"
    wait_until(lambda: world.ask(query) == "sent", "what waited to leave at once")
    assert json.loads(world.daemon.cli("smtp-server", "test", server_id, "--json"))["ok"]
    world.remove(server_id)


def refused(world: World, *arguments: str) -> str:
    with pytest.raises(CommandFailed) as error:
        world.daemon.cli(*arguments)
    assert PASSWORD not in str(error.value)
    return str(error.value)


def test_an_expired_certificate_gets_no_password(world: World) -> None:
    server_id = world.add("--port", str(world.expired.ports["starttls"]))
    assert "certificate has expired" in refused(world, "smtp-server", "test", server_id)
    before = world.balance()
    status, answer = world.send(server_id)
    assert (status, answer["queued"]) == (202, True)
    shown = world.log_of(answer)
    assert "certificate has expired" in shown["recipients"][0]["last_reply"]
    assert "AUTH" not in steps_of(shown)
    world.daemon.cli("queue", "cancel", shown["message_id"])
    assert world.balance() == before
    world.remove(server_id)


def test_a_server_that_is_down(world: World) -> None:
    server_id = world.add("--port", str(free_port()))
    before = world.balance()
    status, answer = world.send(server_id)
    assert (status, answer["queued"]) == (202, True)
    shown = world.log_of(answer)
    assert "connection refused" in shown["recipients"][0]["last_reply"]
    assert shown["recipients"][0]["state"] == "deferred"
    # It is removed while mail waits for it: that fails, and is refunded.
    world.remove(server_id)
    wait_until(lambda: world.balance() == before, "the refund")
    shown = world.daemon.json("log", "show", shown["message_id"])
    assert shown["recipients"][0]["last_reply"].startswith("550 5.3.5")
    assert [row["reason"] for row in shown["ledger"]] == ["debit", "refund"]


def test_what_the_server_says_of_recipients(world: World) -> None:
    server_id = world.add("--port", str(world.postfix.ports["starttls"]))
    before = world.balance()
    status, answer = world.send(server_id, NEVER)
    assert (status, answer["code"], set(answer)) == (502, "email_send_failed", {"error", "code"})
    assert "10.0.0.3" not in str(answer)
    shown = world.log_of(answer)
    assert "10.0.0.3" in shown["recipients"][0]["last_reply"]
    assert world.balance() == before
    assert sorted(row["reason"] for row in shown["ledger"]) == ["debit", "refund"]

    status, answer = world.send(server_id, LATER)
    assert (status, answer["queued"]) == (202, True)
    shown = world.log_of(answer)
    assert shown["recipients"][0]["last_reply"].startswith("450 4.2.1")
    world.daemon.cli("queue", "cancel", shown["message_id"])
    assert world.balance() == before

    status, answer = world.send(server_id, [FINE, NEVER])
    assert (status, answer["success"]) == (200, True)
    assert world.balance() == before - 1
    world.remove(server_id)


def test_a_server_that_takes_nothing_without_a_login(world: World) -> None:
    port = ("--port", str(world.postfix.ports["starttls"]), "--address", USER)
    server_id = world.add(*port, user="")
    before = world.balance()
    status, answer = world.send(server_id)
    assert (status, answer["code"]) == (502, "email_send_failed")
    assert world.log_of(answer)["recipients"][0]["last_reply"].startswith("554 5.7.1")
    assert world.balance() == before
    world.remove(server_id)


def test_permissions_words_and_the_other_doors(world: World) -> None:
    server_id = world.add("--port", str(world.postfix.ports["starttls"]))
    only = world.daemon.json("key", "mint", ACCOUNT, "--name", "own", "--permission", "own_smtp")["key"]
    http = world.daemon.json("key", "mint", ACCOUNT, "--name", "http", "--permission", "http")["key"]
    body = {"from": f"Me <{USER}>", "to": FINE, "subject": "Hi {{name}}", "html": "<p>{{name}}</p>"}
    body["variables"] = {"name": "<Joe & co>"}  # type: ignore[assignment]
    word = {"Idempotency-Key": "one"}
    before = world.balance()
    assert post(world.daemon, body, http, path="/v1/emails")[:2][1]["code"] == "forbidden"
    assert post(world.daemon, {**body, "text": "x"}, only)[1]["code"] == "CHANNEL_NOT_ALLOWED"
    first = post(world.daemon, body, only, path="/v1/emails", headers=word)
    assert first[0] == 200, first
    again = post(world.daemon, body, only, path="/v1/emails", headers=word)
    assert (again[0], again[1]) == first[:2]
    assert again[2]["idempotency-replayed"] == "true"
    other = post(world.daemon, {**body, "text": "x"}, only, path="/v1/emails", headers=word)
    assert (other[0], other[1]["code"]) == (409, "idempotency_mismatch")
    assert world.balance() == before - 1
    content = wait_until(lambda: world.arrived(first[1]["messageId"]), "it to arrive")
    assert b"Subject: Hi <Joe & co>" in content
    assert b"&lt;Joe &amp; co&gt;" in content
    # Its address is a sender of the account, at the other doors too.
    status, answer, _ = post(world.daemon, {"from": USER, "to": FINE, "text": "x"}, http)
    assert (status, answer["data"]["from"]) == (200, USER)
    test_id = new_id()
    with open_smtp(world.daemon, world.key) as session:
        session.sendmail(USER, [FINE], plain_message(test_id, sender=USER, to=FINE))
    world.sink.wait_for_id(test_id)
    assert world.log_of(None)["route"] == f"own:{server_id}"
    world.remove(server_id)


def test_figures_have_one_label_for_all(world: World) -> None:
    ids = [world.add("--port", str(free_port()), "--address", f"a{n}@example.com", user="") for n in range(2)]
    for n, server_id in enumerate(ids):
        assert world.send(server_id, **{"from": f"a{n}@example.com"})[0] == 202
    stats = world.daemon.json("queue", "stats")
    assert stats["by_route"] == {"own:*": 2}
    for server_id in ids:
        world.remove(server_id)
