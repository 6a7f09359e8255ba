# SPDX-License-Identifier: Apache-2.0
"""Every restriction of a key × door × allowed or refused, on connections that are open when it changes and on new ones.

The changes are made by another process than the daemon's.  On PostgreSQL two daemons share the database, and what is
changed is asked of both.  (Issue "The whole API", acceptance 5.)
"""

from __future__ import annotations

import base64
import http.client
import json
import smtplib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hepmaild.cli import backend
from hepmaild.config import Settings
from hepmaild.config_load import load
from hepmaild.key_rules import parse_networks
from hepmaild.storage import keys
from tests.e2e.conftest import UNLIMITED
from tests.peers.daemon import SENDER, Daemon, open_daemon, untrusting_context
from tests.peers.messages import new_id, plain_message
from tests.peers.sink import CaptureSink

TO, OTHER = "someone@example.net", "other@example.com"
CLIENT, BY_PROXY, V6 = "127.0.0.1", "proxy", "::1"
# Every door listens for both families at once, so that IPv4 comes as ::ffff:127.0.0.1.  A client at 127.0.0.1 that says
# so is a proxy of ours; one at ::1 that says so is not.
CHANGES: dict[str, Any] = {
    "smtp": {"starttls": ["127.0.0.1:0"], "implicit_tls": ["[::]:0"]},
    "http": {"listen": ["[::]:0"], "public_url": "https://localhost", "trusted_proxies": ["127.0.0.1/32"]},
    "sender": [
        {"address": SENDER, "route": "sink", "default": True},
        {"address": OTHER, "route": "sink"},
    ],
}
OK = (200, "")
SMTP_OK = 250
NOT_HERE, WRONG_DOOR = (403, "IP_NOT_ALLOWED"), (403, "CHANNEL_NOT_ALLOWED")
ALL = ("smtp", "http", "templates", "own_smtp")
NOT_THIS = (400, "SENDER_NOT_ALLOWED")


@dataclass(frozen=True)
class Row:
    """A restriction, and what each door says, by where the client is.  smtp: of MAIL, or (550) of the content."""

    what: str
    wish: dict[str, Any]
    http: dict[str, tuple[int, str]]
    smtp: dict[str, int]
    sender: str = SENDER


def _all(http: tuple[int, str], smtp: int) -> dict[str, Any]:
    return {"http": {CLIENT: http, V6: http, BY_PROXY: http}, "smtp": {CLIENT: smtp, V6: smtp}}


def _from(*networks: str, here: bool = False, v6: bool = False, proxied: bool = False) -> Row:
    """here, v6, proxied: from where it is allowed."""
    return Row(
        f"addresses {' '.join(networks)}",
        {"addresses": parse_networks(networks)},
        {
            CLIENT: OK if here else NOT_HERE,
            V6: OK if v6 else NOT_HERE,
            BY_PROXY: OK if proxied else NOT_HERE,
        },
        {CLIENT: SMTP_OK if here else 535, V6: SMTP_OK if v6 else 535},
    )


def _instant(**later: int) -> int:
    return round((datetime.now(UTC) + timedelta(**later)).timestamp() * 1_000_000)


PROXIED = "192.0.2.77"  # whom the proxy speaks for
ROWS = [
    Row("none", {}, **_all(OK, SMTP_OK)),
    Row("permission smtp", {"permissions": ["smtp"]}, **_all(WRONG_DOOR, SMTP_OK)),
    Row("permission http", {"permissions": ["http"]}, **_all(OK, 535)),
    Row("permission smtp http", {"permissions": ["http", "smtp"]}, **_all(OK, SMTP_OK)),
    Row("permission templates", {"permissions": ["templates"]}, **_all(WRONG_DOOR, 535)),
    Row("permission own_smtp", {"permissions": ["own_smtp"]}, **_all(WRONG_DOOR, 535)),
    Row("senders: this one", {"senders": [SENDER]}, **_all(OK, SMTP_OK)),
    Row("senders: another one", {"senders": [OTHER]}, **_all(NOT_THIS, 550)),
    Row("senders: the other one of two", {"senders": [OTHER]}, **_all(OK, SMTP_OK), sender=OTHER),
    _from("127.0.0.1", here=True),
    _from("127.0.0.0/8", here=True),
    _from("::ffff:127.0.0.1", here=True),
    _from("::1", v6=True),
    _from("::/16", v6=True),
    _from("2001:db8::/32"),
    _from("192.0.2.0/24", proxied=True),
    _from("192.0.2.77", "::1", proxied=True, v6=True),
    _from("0.0.0.0/0", here=True, proxied=True),
    Row("expiry to come", {"expires_at_us": _instant(days=2)}, **_all(OK, SMTP_OK)),
    Row("expired", {"expired": True}, **_all((403, "KEY_EXPIRED"), 535)),
    Row("disabled", {"disabled": True}, **_all((403, "KEY_DISABLED"), 535)),
]
FREE = {"name": "subject", "permissions": None, "senders": None, "addresses": None, "expires_at_us": None}


@contextmanager
def _daemons(sink: CaptureSink, urls: list[str]) -> Iterator[list[Daemon]]:
    with ExitStack() as stack:
        found = [
            stack.enter_context(
                open_daemon(sink_port=sink.port, database_url=url, changes=CHANGES, name=f"daemon{n}", start=False)
            )
            for n, url in enumerate(urls)
        ]
        found[0].setup(plan=UNLIMITED)
        for daemon in found:
            daemon.start()
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def daemons(request: pytest.FixtureRequest, sink: CaptureSink) -> Iterator[list[Daemon]]:
    if request.param == "sqlite":
        urls = ["sqlite:///hepmaild.db"]
    else:
        urls = [request.getfixturevalue("postgres_database")] * 2
    with _daemons(sink, urls) as found:
        yield found


@dataclass
class Client:
    """One program with a key: an SMTP session and a keep-alive connection, open all the time."""

    daemon: Daemon
    key: str
    where: str
    session: smtplib.SMTP = field(init=False)
    connection: http.client.HTTPSConnection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = self.new_connection()
        if self.where != BY_PROXY:  # nothing stands before SMTP
            self.session = self.new_session()
            self.log_in()

    @property
    def address(self) -> str:
        return V6 if self.where == V6 else CLIENT

    def new_session(self) -> smtplib.SMTP:
        port, context = self.daemon.ports["implicit"], untrusting_context()
        session = smtplib.SMTP_SSL(self.address, port, "client.test", timeout=60, context=context)
        session.ehlo()
        return session

    def new_connection(self) -> http.client.HTTPSConnection:
        port, context = self.daemon.ports["https"], untrusting_context()
        return http.client.HTTPSConnection(self.address, port, timeout=60, context=context)

    def auth(self, session: smtplib.SMTP) -> int:
        return session.docmd("AUTH", "PLAIN " + base64.b64encode(f"\0api\0{self.key}".encode()).decode())[0]

    def log_in(self) -> None:
        """Once more, where it was thrown out: by a new session, since the third refusal would end the old one."""
        code = self.auth(self.session)
        if code == 235:
            self.session.close()
            self.session = self.new_session()
            code = self.auth(self.session)
        assert code in {235, 503}, code

    def post(
        self,
        connection: http.client.HTTPSConnection,
        sender: str,
        *,
        path: str = "/api/v1/email/send",
        more: dict[str, Any] | None = None,
    ) -> tuple[int, str]:
        before = connection.sock
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        if self.where != CLIENT:  # at ::1 nobody believes it
            headers["X-Forwarded-For"] = PROXIED
        body = json.dumps({"to": TO, "from": sender, "text": "x", **(more or {})})
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert before is None or connection.sock is before, "the same connection"
        return response.status, answer.get("code", "")

    def mail(self, session: smtplib.SMTP, sender: str) -> int:
        """What MAIL is told, or else the content."""
        code = session.mail(sender)[0]
        if code != SMTP_OK:
            return code
        assert session.rcpt(TO)[0] == SMTP_OK
        return session.data(plain_message(new_id(), sender=sender, to=TO))[0]

    def check(self, row: Row) -> list[str]:
        """What is otherwise than the row says: of what is open, and of what begins now."""
        found = []
        told = self.post(self.connection, row.sender)
        if told != row.http[self.where]:
            found.append(f"an open HTTP connection: {told}")
        with ExitStack() as stack:
            connection = self.new_connection()
            stack.callback(connection.close)
            told = self.post(connection, row.sender)
            if told != row.http[self.where]:
                found.append(f"a new HTTP connection: {told}")
            found += self.check_other_calls(row)
            if self.where == BY_PROXY:
                return found
            code = self.mail(self.session, row.sender)
            if code != row.smtp[self.where]:
                found.append(f"an open session: {code}")
            if code == 535 and (again := self.mail(self.session, row.sender)) != 530:
                found.append(f"the open session is not as before AUTH: {again}")
            session = self.new_session()
            stack.callback(session.close)
            code = self.auth(session)
            if code != (535 if row.smtp[self.where] == 535 else 235):
                found.append(f"AUTH of a new session: {code}")
            if code == 235 and (code := self.mail(session, row.sender)) != row.smtp[self.where]:
                found.append(f"a new session: {code}")
        return found

    def check_other_calls(self, row: Row) -> list[str]:
        """`POST /v1/emails` needs `own_smtp` and not `http`; a template needs `templates`.

        There is neither a server nor a template, and whoever may ask is told that.
        """
        may = set(row.wish.get("permissions") or ALL)
        is_good = row.http[self.where] in {OK, WRONG_DOOR, NOT_THIS}
        found = []
        told = self.post(self.connection, row.sender, path="/v1/emails", more={"subject": "x"})
        if (told[0] in {401, 403}) is (is_good and "own_smtp" in may):
            found.append(f"/v1/emails: {told}")
        if is_good and "http" in may:
            told = self.post(self.connection, row.sender, more={"templateKey": "none"})
            if told != ((400, "UNKNOWN_TEMPLATE") if "templates" in may else WRONG_DOOR):
                found.append(f"a template: {told}")
        return found

    def close(self) -> None:
        self.connection.close()
        if self.where != BY_PROXY:
            self.session.close()


def test_every_restriction_by_every_door(daemons: list[Daemon]) -> None:
    minted = daemons[0].mint(name="subject")
    settings = load(daemons[0].config_path, {})
    with ExitStack() as stack:
        clients = [Client(d, minted["key"], where) for d in daemons for where in (CLIENT, V6, BY_PROXY)]
        for client in clients:
            stack.callback(client.close)
        assert _play(settings, minted["id"], clients) == []


def _play(settings: Settings, key_id: str, clients: list[Client]) -> list[str]:
    """Every row; what is otherwise than it says."""
    wrong = []
    for row in ROWS:
        backend.write(settings, backend.KEYS, _restrict, key_id, row.wish)
        for client in clients:
            wrong += [f"{row.what}, {client.where}, {client.daemon.name}: {text}" for text in client.check(row)]
        backend.write(settings, backend.KEYS, _restrict, key_id, {})
        for client in clients:
            if client.where != BY_PROXY:
                client.log_in()
    return wrong


def _restrict(conn: Any, key_id: str, wish: dict[str, Any]) -> None:
    from sqlalchemy import update

    from hepmaild.storage.directory import bump
    from hepmaild.storage.schema import api_key

    wish = dict(wish)
    keys.set_status(conn, key_id, "disabled" if wish.pop("disabled", False) else "active")
    expired = wish.pop("expired", False)
    keys.change(conn, key_id, now_us=backend.now_us(), **{**FREE, **wish})
    if expired:  # as time would have it; no command sets an expiry that is over
        conn.execute(update(api_key).where(api_key.c.id == key_id).values(expires_at_us=backend.now_us() - 1))
        bump(conn)
