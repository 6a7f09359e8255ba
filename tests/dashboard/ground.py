# SPDX-License-Identifier: Apache-2.0
"""What attacks are tried on: a daemon with a victim that has one of everything, and everybody who might attack it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, or_, select

from hepmaild.cli.backend import with_store
from hepmaild.config_load import load
from hepmaild.storage.schema import account, metadata
from hepmaild.storage.schema_people import user
from hepmaild.storage.store import Store
from tests.dashboard.visitor import Visitor, link_of, open_client, sign_in
from tests.peers.daemon import ACCOUNT, SENDER, Daemon, open_daemon, open_smtp
from tests.peers.processes import assert_no_traceback

OTHER = "other@elsewhere.example"
OPERATOR = "operator@service.example"
READER = "reader@example.com"
MARKS = (
    "Sesame-subject",
    "sesame-recipient",
    "sesame-key",
    "sesame-reason",
    "sesame-file",
    "sesame-template",
    "sesame-words",
    ACCOUNT,
    READER,
)
SUPPRESSED = "suppressed@example.net"
MAIL = """From: noreply@example.com
To: sesame-recipient@example.net
Subject: Sesame-subject
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: text/html

<p>Sesame-subject</p>
--b
Content-Type: application/pdf
Content-Disposition: attachment; filename="sesame-file.pdf"

PDF
--b--
""".replace("\n", "\r\n")
# What moves by itself, or by looking.
UNWATCHED = {"tally", "event", "rate_call", "token_key", "refresh_token"}
MOVING = {"seen_at_us", "last_used_at_us", "last_used_ip", "last_used_door", "recount_at_us"}


@dataclass(frozen=True, slots=True)
class Ground:
    """victim: owns account one, reader belongs to it; other: owns account two; operator: of the service.

    values: ids of the victim's, by the names that parameters of rules have.  A new kind of thing is made in `_things`
    and named there.
    """

    daemon: Daemon
    key: str
    victim: Visitor
    reader: Visitor
    other: Visitor
    operator: Visitor
    nobody: Visitor
    values: dict[str, str]

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """All that the database has of the victim's account, by table."""
        settings = load(self.daemon.config_path, {})

        async def run(store: Store) -> dict[str, list[dict[str, Any]]]:
            return await store.read(_rows_of, self.values["account_id"])

        return with_store(settings, run, upgrade=False)


def _rows_of(conn: Connection, account_id: str) -> dict[str, list[dict[str, Any]]]:
    users = select(user.c.id).where(user.c.account_id == account_id)
    found = {}
    for table in metadata.sorted_tables:
        whose = _whose(table, account_id, users)
        if whose is not None and table.name not in UNWATCHED:
            columns = [column for column in table.columns if column.name not in MOVING]
            order = [*table.primary_key.columns]
            query = select(*columns).where(whose).order_by(*order)
            found[table.name] = [dict(row) for row in conn.execute(query).mappings()]
    return found


def _whose(table: Table, account_id: str, users: Any) -> Any:
    if table is account:
        return account.c.id == account_id
    parts = []
    if "account_id" in table.c:
        parts.append(table.c.account_id == account_id)
    if "user_id" in table.c:
        parts.append(table.c.user_id.in_(users))
    return or_(*parts) if parts else None


@contextmanager
def open_ground(database_url: str) -> Iterator[Ground]:
    """Everything made, everybody signed in."""
    changes: dict[str, Any] = {
        "delivery": {"body_days": 7},
        "route": [{"name": "sand", "kind": "sandbox"}],
        "sender": [{"address": SENDER, "route": "sand", "default": True}],
    }
    with ExitStack() as stack:
        daemon = stack.enter_context(open_daemon(sink_port=1, database_url=database_url, changes=changes, start=False))
        daemon.write_settings()
        daemon.json("account", "add", ACCOUNT, "--credits", "1000")
        daemon.json("account", "add", OTHER, "--credits", "10")
        daemon.json("account", "add", OPERATOR, "--operator")
        key = daemon.mint(name="sesame-key")
        invited = daemon.json("user", "add", ACCOUNT, READER, "--scope", "read_only")
        daemon.start()
        daemon.write_settings()
        victim, other, operator = (
            stack.enter_context(sign_in(daemon, link_of(daemon.json("account", "link", email))))
            for email in (ACCOUNT, OTHER, OPERATOR)
        )
        reader = stack.enter_context(sign_in(daemon, link_of(invited)))
        nobody = Visitor(stack.enter_context(open_client(daemon)))
        values = _things(daemon, key, victim)
        yield Ground(daemon, key["key"], victim, reader, other, operator, nobody, values)
        log = daemon.log()
        assert_no_traceback(log)


def _things(daemon: Daemon, key: dict[str, str], victim: Visitor) -> dict[str, str]:
    """One of everything that has an id, and what stands in addresses besides."""
    with open_smtp(daemon, key["key"]) as session:
        session.sendmail(SENDER, ["sesame-recipient@example.net"], MAIL)
    suppressed = {"address": SUPPRESSED, "days": "9", "reason": "sesame-reason"}
    victim.follow("/suppressions", suppressed, page="/suppressions")
    logs = victim.get("/logs")
    message_id = _only(r'data-id="([0-9a-f]{16})"', logs)
    attachment = _only(r"/attachments/(\d+)\"", victim.get(f"/logs/{message_id}?tab=attachments"))
    security = victim.get("/security")
    shown = daemon.json("account", "show", ACCOUNT)
    users = daemon.json("user", "list", ACCOUNT)
    template = {"name": "sesame-template", "subject": "Sesame-subject", "html": "<p>sesame-words</p>"}
    page = victim.follow("/templates", template, page="/templates/new")
    server = {"name": "sesame-server", "host": "127.0.0.1", "port": "2525", "tls": "none", "address": "me@own.example"}
    added = victim.post("/smtp-servers", server, page="/smtp-servers/new")
    return {
        "server_id": added.headers["Location"].rpartition("/")[2],
        "account_id": shown["id"],
        "template_id": _only(r'data-page-id="([0-9a-f-]{36})"', page),
        "revision": "1",
        "key_id": key["id"],
        "message_id": message_id,
        "n": attachment,
        "session_id": _only(r'action="/security/sessions/([0-9a-f-]{36})/end"', security),
        "user_id": next(u["id"] for u in users if u["email"] == ACCOUNT),
        # No ids of anybody's.
        "kind": "csv",
        "token": "A" * 43,
        "version": "x",
        "name": "app.css",
    }


def _only(pattern: str, page: str) -> str:
    found = re.search(pattern, page)
    assert found is not None, (pattern, page[:3000])
    return found[1]
