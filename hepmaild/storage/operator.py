# SPDX-License-Identifier: Apache-2.0
"""What operators see and change of all accounts.  Changes are those of the command line, with their audit rows in the
same unit; refusals are ValueErrors with a sentence for a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, or_, select

from hepmaild.mail.address import key_of
from hepmaild.storage import accounts, audit, cap_line, caps, links, senders, users
from hepmaild.storage import credits as money
from hepmaild.storage.audit import Actor
from hepmaild.storage.schema import account, api_key, message, sender
from hepmaild.storage.schema_people import user

PAGE = 50
GRANTS = 20


@dataclass(frozen=True, slots=True)
class AccountPage:
    """Accounts in the order of their addresses.  before, after: where the pages around this one begin; None: there is
    none."""

    rows: list[dict[str, Any]]
    before: str | None
    after: str | None


def page(
    conn: Connection, search: str = "", *, status: str = "", after: str | None = None, before: str | None = None
) -> AccountPage:
    """A page of accounts, by the index of their addresses.

    search: a piece of an account's or a user's address, or an account's id.  after, before: address keys.
    """
    last = (
        select(message.c.accepted_at_us)
        .where(message.c.account_id == account.c.id)
        .order_by(message.c.accepted_at_us.desc())
        .limit(1)
        .scalar_subquery()
    )
    columns = [account.c[name] for name in ("id", "email", "email_key", "balance", "plan", "status", "created_at_us")]
    query = select(*columns, last.label("last_message_us"))
    if search:
        piece = users.key_of_email(search)
        of_user = select(user.c.account_id).where(user.c.email_key.contains(piece, autoescape=True))
        query = query.where(
            or_(
                account.c.id == search,
                account.c.email_key.contains(piece, autoescape=True),
                account.c.id.in_(of_user),
            )
        )
    if status:
        query = query.where(account.c.status == status)
    if before is not None:
        query = query.where(account.c.email_key < before).order_by(account.c.email_key.desc())
    else:
        query = query.where(account.c.email_key > (after or "")).order_by(account.c.email_key)
    rows = [dict(row) for row in conn.execute(query.limit(PAGE + 1)).mappings()]
    has_more = len(rows) > PAGE
    rows = rows[:PAGE]
    if before is not None:
        rows.reverse()
    first, end = (rows[0]["email_key"], rows[-1]["email_key"]) if rows else (None, None)
    comes_from_behind = before is not None
    return AccountPage(
        rows,
        first if (has_more if comes_from_behind else after is not None) else None,
        end if (comes_from_behind or has_more) else None,
    )


def one(conn: Connection, account_id: str, now_us: int) -> dict[str, Any] | None:
    """Everything that is shown of an account; None: there is none."""
    row = conn.execute(select(account).where(account.c.id == account_id)).mappings().one_or_none()
    if row is None:
        return None
    last = select(func.max(message.c.accepted_at_us)).where(message.c.account_id == account_id)
    keys = select(func.count()).where(api_key.c.account_id == account_id, api_key.c.status != "deleted")
    grants = money.history(conn, account_id, limit=GRANTS, reason="grant")
    return {
        **row,
        "last_message_us": conn.execute(last).scalar(),
        "keys": conn.execute(keys).scalar_one(),
        "users": users.list_of(conn, account_id),
        "senders": senders_of(conn, account_id, now_us),
        "grants": grants,
        "last_grant": _newest(grants),
        "audit": audit.history(conn, account_id, limit=GRANTS),
    }


def _newest(grants: list[dict[str, Any]]) -> int:
    """Which row of the ledger is the newest grant; 0: there is none yet."""
    return int(grants[0]["seq"]) if grants else 0


def senders_of(conn: Connection, account_id: str, now_us: int) -> list[dict[str, Any]]:
    """The account's own senders (of "": the global ones of the database), with how much of each cap is used."""
    rows = conn.execute(select(sender).where(sender.c.account_id == account_id).order_by(sender.c.address_key))
    found = []
    for row in rows.mappings().all():
        key = caps.cap_key_of(account_id, row["address_key"])
        usage = cap_line.usage(conn, key, now_us, upcoming=1) if row["daily_cap"] else None
        found.append(
            {**row, "used": 0 if usage is None else usage.used, "waiting": 0 if usage is None else usage.waiting}
        )
    return found


# Changes


def _email(conn: Connection, account_id: str) -> str:
    email = conn.execute(select(account.c.email).where(account.c.id == account_id)).scalar_one_or_none()
    if email is None:
        raise ValueError("there is no such account any more")
    return str(email)


def add(
    conn: Connection,
    actor: Actor,
    *,
    account_id: str,
    user_id: str,
    email: str,
    plan: str,
    granted: int,
    is_operator: bool,
    token: str,
    now_us: int,
) -> None:
    """A new account, whose owner comes in by a one-time link."""
    accounts.create(
        conn,
        account_id=account_id,
        user_id=user_id,
        email=email,
        plan=plan,
        password_hash=None,
        is_operator=is_operator,
        credits_granted=granted,
        granted_by=actor.email,
        now_us=now_us,
    )
    links.make(conn, token=token, user_id=user_id, purpose=links.SIGN_IN, now_us=now_us)
    data = {"plan": plan, "credits": granted, "operator": is_operator}
    _note(conn, account_id, actor, "account.add", email, data, now_us)


def set_status(conn: Connection, actor: Actor, account_id: str, status: str, now_us: int) -> None:
    """Suspend ("suspended") or resume ("active")."""
    email = _email(conn, account_id)
    accounts.set_status(conn, email, status, now_us)
    _note(conn, account_id, actor, "account.resume" if status == "active" else "account.suspend", email, {}, now_us)


def set_plan(conn: Connection, actor: Actor, account_id: str, plan: str, now_us: int) -> None:
    """Another plan, which the caller has found in the settings."""
    before = accounts.find(conn, _email(conn, account_id))
    accounts.set_plan(conn, before["email"], plan)
    _note(conn, account_id, actor, "account.plan", before["email"], {"from": before["plan"], "to": plan}, now_us)


def grant(
    conn: Connection, actor: Actor, account_id: str, amount: int, note: str, last_grant: int | None, now_us: int
) -> int:
    """Credits given (or, below zero, taken back); the new balance.

    last_grant: as `one` said it to whoever gives them.  Another one since says no, so that a form that comes twice
    gives once; mail that was paid for meanwhile does not.
    """
    email = _email(conn, account_id)
    money.lock(conn, [account_id])  # before the look: of two at once the second sees the first
    if last_grant != _newest(money.history(conn, account_id, limit=1, reason="grant")):
        raise ValueError(
            "nothing was done: this account was granted credits, or some were taken back, after this page was loaded. "
            "The latest grants stand below; send this again if it is to come on top of them"
        )
    balance = money.grant(conn, account_id, amount, granted_by=actor.email, note=note or None, now_us=now_us)
    data = {"amount": amount, "note": note or None, "balance": balance}
    _note(conn, account_id, actor, "credits.grant", email, data, now_us)
    return balance


def put_sender(
    conn: Connection,
    actor: Actor,
    account_id: str,
    *,
    address: str,
    route: str,
    daily_cap: int,
    is_default: bool,
    now_us: int,
) -> None:
    """Assign a sender, or change the one that has this address."""
    _email(conn, account_id)
    senders.put(conn, address=address, account_id=account_id, route=route, daily_cap=daily_cap, is_default=is_default)
    data = {"route": route, "daily_cap": daily_cap, "default": is_default}
    _note(conn, account_id, actor, "sender.put", address, data, now_us)


def remove_sender(conn: Connection, actor: Actor, account_id: str, address: str, now_us: int) -> None:
    """Take a sender away."""
    _email(conn, account_id)
    key = sender.c.address_key == key_of(address)
    known = conn.execute(select(sender.c.address).where(sender.c.account_id == account_id, key)).scalar_one_or_none()
    if known is None:
        raise ValueError("this account has no such address any more")
    senders.remove(conn, address=known, account_id=account_id)
    _note(conn, account_id, actor, "sender.remove", known, {}, now_us)


def _note(
    conn: Connection, account_id: str, actor: Actor, action: str, subject: str, data: dict[str, Any], now_us: int
) -> None:
    audit.note(conn, account_id=account_id, actor=actor, action=action, subject=subject, data=data, now_us=now_us)
