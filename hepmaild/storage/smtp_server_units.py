# SPDX-License-Identifier: Apache-2.0
"""What people do to accounts' own SMTP servers: the change and its row in the account's audit log, in one unit.

account_id None: the operator, who may do it to anybody's.  No password is ever in the log; that it changed is.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from hepmaild.server_rules import ServerWish
from hepmaild.storage import audit
from hepmaild.storage import smtp_servers as rows
from hepmaild.storage.audit import Actor


def add(
    conn: Connection,
    actor: Actor,
    account_id: str,
    server_id: str,
    wish: ServerWish,
    sealed: bytes | None,
    limit: int,
    now_us: int,
) -> dict[str, Any]:
    """See `smtp_servers.add`."""
    made = rows.add(
        conn, account_id=account_id, server_id=server_id, wish=wish, sealed=sealed, limit=limit, now_us=now_us
    )
    facts = {"host": wish.host, "port": wish.port, "tls": wish.tls, "username": wish.username, "address": wish.address}
    _note(conn, actor, "add", made, facts, now_us)
    return made


def change(
    conn: Connection,
    actor: Actor,
    account_id: str | None,
    server_id: str,
    wish: ServerWish,
    sealed: bytes | None,
    now_us: int,
) -> dict[str, list[Any]]:
    """See `smtp_servers.change`."""
    row = rows.find(conn, account_id, server_id, is_to_change=True)
    changed = rows.change(conn, account_id, server_id, wish, sealed, now_us)
    if changed:
        shown: dict[str, Any] = {name: pair for name, pair in changed.items() if name != "address_key"}
        if "password" in shown:
            shown["password"] = "changed"  # noqa: S105  # a word about it
        _note(conn, actor, "change", row, shown, now_us)
    return changed


def make_default(conn: Connection, actor: Actor, account_id: str | None, server_id: str, now_us: int) -> dict[str, Any]:
    """See `smtp_servers.make_default`."""
    row = rows.make_default(conn, account_id, server_id)
    _note(conn, actor, "default", row, {}, now_us)
    return row


def pause(
    conn: Connection, actor: Actor, account_id: str | None, server_id: str, now_us: int, note: str = rows.PAUSE_NOTE
) -> dict[str, Any]:
    """See `smtp_servers.pause_one`."""
    row = rows.pause_one(conn, account_id, server_id, now_us, note)
    _note(conn, actor, "pause", row, {}, now_us)
    return row


def resume(conn: Connection, actor: Actor, account_id: str | None, server_id: str, now_us: int) -> dict[str, Any]:
    """See `smtp_servers.resume_one`."""
    row = rows.resume_one(conn, account_id, server_id)
    _note(conn, actor, "resume", row, {}, now_us)
    return row


def remove(conn: Connection, actor: Actor, account_id: str | None, server_id: str, now_us: int) -> dict[str, Any]:
    """See `smtp_servers.remove`."""
    row = rows.remove(conn, account_id, server_id)
    _note(conn, actor, "remove", row, {"host": row["host"], "address": row["address"]}, now_us)
    return row


def _note(conn: Connection, actor: Actor, deed: str, row: dict[str, Any], data: dict[str, Any], now_us: int) -> None:
    audit.note(
        conn,
        account_id=row["account_id"],
        actor=actor,
        action=f"smtp_server.{deed}",
        subject=row["name"],
        data={"server_id": row["id"], **data},
        now_us=now_us,
    )
