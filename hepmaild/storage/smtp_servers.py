# SPDX-License-Identifier: Apache-2.0
"""Accounts' own SMTP servers in the database: added, changed, paused, taken away (contract: own-smtp-api.md).

A server and the sender with its address are one thing: both are written in the same unit, and a server that is gone
takes its sender along.  Passwords come and go sealed (`vault`).  Refusals are `keys.Refused`, which name the input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, delete, exists, func, insert, literal, select, update

from hepmaild.counted import counted
from hepmaild.own_routes import PREFIX, route_of
from hepmaild.server_rules import ServerWish, leads_elsewhere
from hepmaild.storage import caps, queue
from hepmaild.storage.directory import bump
from hepmaild.storage.keys import Refused
from hepmaild.storage.schema import account, pause, recipient, sender
from hepmaild.storage.schema import queue as waits_of
from hepmaild.storage.schema_own_smtp import smtp_server

MOST_COUNTED = 10_000
PAUSE_NOTE = "paused by its account"  # what `pause` says of it; a pause with another word is the operator's

_IS_PAUSED = (
    exists()
    .where(pause.c.route == literal(PREFIX).concat(smtp_server.c.id), pause.c.destination == "")
    .label("is_paused")
)
_SHOWN = tuple(column for column in smtp_server.c if column.name != "password_sealed")


@dataclass(frozen=True, slots=True)
class ServerRow:
    """A server as the engine and the API know it.  sealed: its password, None: no login."""

    id: str
    account_id: str
    name: str
    host: str
    port: int
    tls: str
    username: str
    address: str
    address_key: str
    from_name: str
    is_default: bool
    is_paused: bool
    sealed: bytes | None = field(default=None, repr=False)


def _shown() -> Select[Any]:
    return select(*_SHOWN, smtp_server.c.password_sealed.is_not(None).label("has_password"), _IS_PAUSED)


def list_of(conn: Connection, account_id: str | None = None) -> list[dict[str, Any]]:
    """The servers of an account, or (None) of all, oldest first; without their passwords.  `account`: its e-mail."""
    query = _shown().add_columns(account.c.email.label("account")).join(account)
    if account_id is not None:
        query = query.where(smtp_server.c.account_id == account_id)
    return [dict(r) for r in conn.execute(query.order_by(smtp_server.c.created_at_us, smtp_server.c.id)).mappings()]


def find(conn: Connection, account_id: str | None, server_id: str, *, is_to_change: bool = False) -> dict[str, Any]:
    """A server without its password.  account_id None: whosever it is.  Raises `Refused` when there is none.

    is_to_change: its account is locked, and with it all of the account's servers, until the unit ends.
    """
    here = smtp_server.c.id == server_id
    if account_id is not None:
        here &= smtp_server.c.account_id == account_id
    owner = conn.execute(select(smtp_server.c.account_id).where(here)).scalar()
    if owner is not None and is_to_change:
        _lock(conn, owner)
    row = conn.execute(_shown().where(here)).mappings().one_or_none()
    if row is None:
        raise Refused(f"there is no SMTP server {server_id}", "id")
    return dict(row)


def rows_of(conn: Connection, account_id: str) -> list[ServerRow]:
    """The servers of an account, for the API: without their passwords."""
    query = _shown().where(smtp_server.c.account_id == account_id).order_by(smtp_server.c.created_at_us)
    return [_row(r) for r in conn.execute(query).mappings()]


def sealed_row(conn: Connection, server_id: str) -> ServerRow | None:
    """A server with its sealed password, for the engine; None: there is none."""
    query = _shown().add_columns(smtp_server.c.password_sealed).where(smtp_server.c.id == server_id)
    row = conn.execute(query).mappings().one_or_none()
    return None if row is None else _row(row, row["password_sealed"])


def _row(r: RowMapping, sealed: bytes | None = None) -> ServerRow:
    names = [name for name in ServerRow.__slots__ if name != "sealed"]
    return ServerRow(**{name: r[name] for name in names}, sealed=None if sealed is None else bytes(sealed))


def are_there(conn: Connection) -> bool:
    """Whether any account has a server."""
    return conn.execute(select(smtp_server.c.id).limit(1)).first() is not None


def add(
    conn: Connection,
    *,
    account_id: str,
    server_id: str,
    wish: ServerWish,
    sealed: bytes | None,
    limit: int,
    now_us: int,
) -> dict[str, Any]:
    """Store a new server and its sender; the account's first is its default.  limit: how many the plan allows."""
    _lock(conn, account_id)
    mine = smtp_server.c.account_id == account_id
    count = conn.execute(select(func.count()).select_from(smtp_server).where(mine)).scalar_one()
    if count >= limit:
        raise Refused(f"the account has {counted(count, 'SMTP server')}, as many as its plan allows: remove one first")
    _check_free(conn, account_id, wish)
    conn.execute(
        insert(smtp_server).values(
            id=server_id,
            account_id=account_id,
            **wish.values(),
            password_sealed=sealed,
            is_default=count == 0,
            created_at_us=now_us,
            changed_at_us=now_us,
        )
    )
    _add_sender(conn, account_id, server_id, wish)
    bump(conn)
    return find(conn, account_id, server_id)


def change(
    conn: Connection,
    account_id: str | None,
    server_id: str,
    wish: ServerWish,
    sealed: bytes | None,
    now_us: int,
) -> dict[str, list[Any]]:
    """Make a server what the wish says; what changed: `{column: [before, after]}`, a password as `[None, None]`.

    sealed: another password; None: the one that is there stays, unless there is no login any more.
    """
    before = find(conn, account_id, server_id, is_to_change=True)
    account_id = before["account_id"]
    if wish.username and sealed is None and (not before["has_password"] or leads_elsewhere(before, wish)):
        raise Refused("the password must be given again: host, port, TLS or user name changed", "password")
    after = wish.values()
    changed = {name: [before[name], value] for name, value in after.items() if before[name] != value}
    values: dict[str, Any] = {}
    if sealed is not None or (before["has_password"] and not wish.username):
        changed["password"] = [None, None]
        values = {"password_sealed": sealed}
    if not changed:
        return {}
    _check_free(conn, account_id, wish, but=server_id)
    conn.execute(
        update(smtp_server).where(smtp_server.c.id == server_id).values(**after, **values, changed_at_us=now_us)
    )
    _remove_sender(conn, account_id, server_id, before["address_key"])
    _add_sender(conn, account_id, server_id, wish)
    bump(conn)
    return changed


def make_default(conn: Connection, account_id: str | None, server_id: str) -> dict[str, Any]:
    """Have calls that name no server use this one."""
    row = find(conn, account_id, server_id, is_to_change=True)
    mine = smtp_server.c.account_id == row["account_id"]
    conn.execute(update(smtp_server).where(mine).values(is_default=smtp_server.c.id == server_id))
    bump(conn)
    return find(conn, account_id, server_id)


def pause_one(
    conn: Connection, account_id: str | None, server_id: str, now_us: int, note: str = PAUSE_NOTE
) -> dict[str, Any]:
    """Keep mail from leaving by a server until `resume_one`; what waits is held back, up to its expiry.

    The operator's takes the place of the account's, which can end that no more.
    """
    row = find(conn, account_id, server_id, is_to_change=True)
    if account_id is None or not row["is_paused"]:
        queue.pause_route(conn, route_of(server_id), "", note, now_us)
    return find(conn, account_id, server_id)


def resume_one(conn: Connection, account_id: str | None, server_id: str) -> dict[str, Any]:
    """End a pause.  An account (account_id not None) cannot end the operator's."""
    row = find(conn, account_id, server_id, is_to_change=True)
    if row["is_paused"]:
        _check_own_pause(conn, account_id, row)
        queue.resume(conn, route_of(server_id), "")
    return find(conn, account_id, server_id)


def _check_own_pause(conn: Connection, account_id: str | None, row: dict[str, Any]) -> None:
    if account_id is not None and row["is_paused"] and pause_note(conn, row["id"]) != PAUSE_NOTE:
        raise Refused("the operator of this service paused this server: ask there", "id")


@dataclass(frozen=True, slots=True)
class Waits:
    """What waits for a server.  messages: as far as they were counted; are_more: that is not all.  last_reply: why, of
    the one that was tried last."""

    messages: int
    are_more: bool
    last_reply: str | None


def waiting(conn: Connection, server_id: str) -> Waits:
    """What waits for a server."""
    here = waits_of.c.route == route_of(server_id)
    counted = select(waits_of.c.message_id).where(here).limit(MOST_COUNTED + 1).subquery()
    count = conn.execute(select(func.count()).select_from(counted)).scalar_one()
    last = select(waits_of.c.message_id).where(here, waits_of.c.owner.is_(None)).order_by(waits_of.c.due_at_us.desc())
    ids = list(conn.execute(last.limit(5)).scalars()) if count else []
    replies = select(recipient.c.last_reply).where(
        recipient.c.message_id.in_(ids), recipient.c.due_at_us.is_not(None), recipient.c.last_reply.is_not(None)
    )
    reply = conn.execute(replies.order_by(recipient.c.changed_at_us.desc()).limit(1)).scalar() if ids else None
    return Waits(min(count, MOST_COUNTED), count > MOST_COUNTED, reply)


def pause_note(conn: Connection, server_id: str) -> str:
    """Why a server is paused; "": it is not."""
    here = (pause.c.route == route_of(server_id)) & (pause.c.destination == "")
    return conn.execute(select(pause.c.note).where(here)).scalar() or ""


def remove(conn: Connection, account_id: str | None, server_id: str) -> dict[str, Any]:
    """Take a server and its sender away.  What waits for it fails at its next attempt, which is refunded.

    An account (account_id not None) cannot take away what the operator paused: added anew it would not be paused.
    """
    row = find(conn, account_id, server_id, is_to_change=True)
    _check_own_pause(conn, account_id, row)
    conn.execute(delete(smtp_server).where(smtp_server.c.id == server_id))
    _remove_sender(conn, row["account_id"], server_id, row["address_key"])
    conn.execute(delete(pause).where(pause.c.route == route_of(server_id)))
    mine = smtp_server.c.account_id == row["account_id"]
    rest = conn.execute(select(smtp_server.c.id).where(mine).limit(2)).scalars().all()
    if len(rest) == 1:  # the only one is what is meant
        conn.execute(update(smtp_server).where(smtp_server.c.id == rest[0]).values(is_default=True))
    bump(conn)
    return row


def _lock(conn: Connection, account_id: str) -> None:
    """Two at once must not both be the last that the plan allows: the account's row is the lock."""
    conn.execute(select(account.c.id).where(account.c.id == account_id).with_for_update(key_share=True)).one()


def _check_free(conn: Connection, account_id: str, wish: ServerWish, but: str = "") -> None:
    """The account's row is locked."""
    others = (smtp_server.c.account_id == account_id) & (smtp_server.c.id != but)
    if conn.execute(select(smtp_server.c.id).where(others, smtp_server.c.name == wish.name)).first():
        raise Refused(f"the account has an SMTP server named {wish.name!r} already: choose another name", "name")
    same = (sender.c.account_id == account_id) & (sender.c.address_key == wish.values()["address_key"])
    route = conn.execute(select(sender.c.route).where(same)).scalar()
    if route is not None and route != route_of(but):
        field = "username" if "@" in wish.username else "address"
        raise Refused(f"{wish.address} is a sender of the account already, and leaves another way", field)


def _add_sender(conn: Connection, account_id: str, server_id: str, wish: ServerWish) -> None:
    values = wish.values()
    key = values["address_key"]
    conn.execute(
        insert(sender).values(
            account_id=account_id,
            address=wish.address,
            address_key=key,
            route=route_of(server_id),
            daily_cap=wish.daily_cap,
            is_default=False,
        )
    )
    caps.set_cap(conn, caps.cap_key_of(account_id, key), wish.daily_cap)


def _remove_sender(conn: Connection, account_id: str, server_id: str, address_key: str) -> None:
    """And nothing waits behind its cap any more."""
    conn.execute(
        delete(sender).where(
            sender.c.account_id == account_id,
            sender.c.address_key == address_key,
            sender.c.route == route_of(server_id),
        )
    )
    caps.set_cap(conn, caps.cap_key_of(account_id, address_key), 0)
