# SPDX-License-Identifier: Apache-2.0
"""Accounts and the people who log in to them.  Refusals are ValueErrors with a sentence for a person."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from hepmaild.storage import credits as money
from hepmaild.storage import sessions, users
from hepmaild.storage.directory import bump
from hepmaild.storage.schema import account
from hepmaild.storage.schema_people import user


def create(
    conn: Connection,
    *,
    account_id: str,
    user_id: str,
    email: str,
    plan: str,
    password_hash: str | None,
    is_operator: bool,
    credits_granted: int,
    granted_by: str,
    now_us: int,
) -> dict[str, Any]:
    """Make an account with its owner and, if asked, its first credits; `{"id", "email"}`."""
    key = email.casefold()
    taken = ValueError(f"there is an account for {email} already")
    if conn.execute(select(user.c.id).where(user.c.email_key == key)).first():
        raise taken
    # An account keeps its address when nobody of that address logs in to it any more.
    is_new = users.insert_new(
        conn,
        account,
        id=account_id,
        email=email,
        email_key=key,
        plan=plan,
        status="active",
        balance=0,
        ledger_seq=0,
        ledger_head=money.GENESIS,
        day=0,
        day_messages=0,
        created_at_us=now_us,
    ) and users.insert_new(
        conn,
        user,
        id=user_id,
        account_id=account_id,
        email=email,
        email_key=key,
        password_hash=password_hash,
        scope="owner",
        is_operator=is_operator,
        created_at_us=now_us,
        modified_at_us=now_us,
    )
    if not is_new:
        raise taken
    if credits_granted:
        money.grant(conn, account_id, credits_granted, granted_by=granted_by, note=None, now_us=now_us)
    bump(conn)
    return {"id": account_id, "email": email}


def find(conn: Connection, email: str) -> dict[str, Any]:
    """The account of this e-mail address."""
    row = conn.execute(select(account).where(account.c.email_key == email.casefold())).mappings().one_or_none()
    if row is None:
        raise ValueError(f"there is no account for {email}; `hepmaild account list` shows all")
    return _public(dict(row))


def list_all(conn: Connection) -> list[dict[str, Any]]:
    """All accounts, oldest first."""
    rows = conn.execute(select(account).order_by(account.c.created_at_us, account.c.id)).mappings()
    return [_public(dict(r)) for r in rows]


def set_status(conn: Connection, email: str, status: str, now_us: int) -> dict[str, Any]:
    """Suspend or resume; obeyed by the next MAIL or request of every process.  Suspended, its users are signed out."""
    found = find(conn, email)
    conn.execute(update(account).where(account.c.id == found["id"]).values(status=status))
    if status != "active":
        sessions.end_of_account(conn, found["id"], by="suspended", now_us=now_us)
    bump(conn)
    return {**found, "status": status}


def set_plan(conn: Connection, email: str, plan: str) -> dict[str, Any]:
    """Put the account on another plan; the caller has checked that the plan exists."""
    found = find(conn, email)
    conn.execute(update(account).where(account.c.id == found["id"]).values(plan=plan))
    bump(conn)
    return {**found, "plan": plan}


def set_password(conn: Connection, email: str, password_hash: str, now_us: int) -> dict[str, Any]:
    """Give a user (such as the account's owner) another password, which signs them out everywhere; their account."""
    found = users.find(conn, email)
    users.set_password(conn, found.user_id, password_hash, now_us)
    return by_id(conn, found.account_id)


def by_id(conn: Connection, account_id: str) -> dict[str, Any]:
    """The account with this id."""
    row = conn.execute(select(account).where(account.c.id == account_id)).mappings().one_or_none()
    if row is None:
        raise ValueError("there is no such account")
    return _public(dict(row))


def _public(row: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "email", "balance", "plan", "status", "created_at_us")
    return {name: row[name] for name in names}
