# SPDX-License-Identifier: Apache-2.0
"""Sender addresses that live in the database: global ones made by the operator and those of accounts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from hepmaild.mail.address import key_of
from hepmaild.own_routes import is_own, server_of
from hepmaild.storage import caps
from hepmaild.storage.directory import bump
from hepmaild.storage.schema import account, sender


def put(
    conn: Connection, *, address: str, account_id: str, route: str, daily_cap: int, is_default: bool
) -> dict[str, Any]:
    """Add a sender, or change the one that has this address.  account_id "": global.

    Another cap is obeyed at once, also by what waits.
    """
    key = key_of(address)
    same = (sender.c.account_id == account_id) & (sender.c.address_key == key)
    _refuse_own(conn, account_id, key)
    if is_default:
        conn.execute(update(sender).where(sender.c.account_id == account_id).values(is_default=False))
    values = {"address": address, "route": route, "daily_cap": daily_cap, "is_default": is_default}
    if not conn.execute(update(sender).where(same).values(**values)).rowcount:
        conn.execute(insert(sender).values(account_id=account_id, address_key=key, **values))
    caps.set_cap(conn, caps.cap_key_of(account_id, key), daily_cap)
    bump(conn)
    return {"address": address, "route": route, "daily_cap": daily_cap, "default": is_default}


def remove(conn: Connection, *, address: str, account_id: str) -> None:
    """Take a sender away; raises ValueError when there is none."""
    _refuse_own(conn, account_id, key_of(address))
    gone = conn.execute(
        delete(sender).where(sender.c.account_id == account_id, sender.c.address_key == key_of(address))
    )
    if not gone.rowcount:
        raise ValueError(f"there is no sender {address} there; `hepmaild sender list` shows all")
    bump(conn)


def _refuse_own(conn: Connection, account_id: str, address_key: str) -> None:
    """The sender of an account's own SMTP server comes, changes and goes with it."""
    here = (sender.c.account_id == account_id) & (sender.c.address_key == address_key)
    row = conn.execute(select(sender.c.address, sender.c.route).where(here)).one_or_none()
    if row is not None and is_own(row.route):
        server_id = server_of(row.route)
        raise ValueError(
            f"{row.address} belongs to its account's SMTP server; `hepmaild smtp-server edit {server_id}` changes it"
        )


def list_all(conn: Connection) -> list[dict[str, Any]]:
    """All senders in the database; `account` is the account's e-mail address, None for a global one."""
    rows = conn.execute(
        select(sender, account.c.email)
        .join_from(sender, account, account.c.id == sender.c.account_id, isouter=True)
        .order_by(sender.c.account_id, sender.c.address_key)
    )
    return [
        {
            "address": r.address,
            "account": r.email,
            "route": r.route,
            "daily_cap": r.daily_cap,
            "default": r.is_default,
        }
        for r in rows
    ]
