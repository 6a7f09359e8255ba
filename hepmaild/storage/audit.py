# SPDX-License-Identifier: Apache-2.0
"""The audit log: who changed what, from where; append-only and hash-chained for each account, like the ledger.

A row is written in the unit of the change it tells of, as its last statement: the chain's head stays locked from there
to the commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hepmaild.storage.schema_people import audit, audit_head

GENESIS = "0" * 64
SERVICE = ""  # the chain of what concerns no single account
MAX_TEXT = 1000
_COLUMNS = ("account_id", "seq", "at_us", "user_id", "actor", "ip", "via", "action", "subject", "data")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it.  user_id and ip "": the command line.  email: or who ran it.  via: dashboard, api, cli."""

    user_id: str
    email: str
    ip: str
    via: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A chain that does not hold: at which row (None: its head), and why."""

    account_id: str
    seq: int | None
    why: str


def note(
    conn: Connection,
    *,
    account_id: str,
    actor: Actor,
    action: str,
    subject: str,
    data: Mapping[str, Any] | None = None,
    now_us: int,
) -> int:
    """Append a row; its number.  Call it last in a unit.

    action: such as "key.mint" (a noun and a verb).  subject: what was changed, as people know it.  data: further
    facts, never a secret.
    """
    seq, previous = _lock_head(conn, account_id)
    text = json.dumps(data or {}, sort_keys=True, separators=(",", ":"))
    row = (
        account_id,
        seq + 1,
        now_us,
        actor.user_id or None,
        clean(actor.email),
        actor.ip[:45],
        actor.via,
        action,
        clean(subject),
        text,
    )
    head = row_hash(previous, row)
    conn.execute(insert(audit).values(**dict(zip(_COLUMNS, row, strict=True)), hash=head))
    conn.execute(update(audit_head).where(audit_head.c.account_id == account_id).values(seq=seq + 1, hash=head))
    return seq + 1


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """What both engines can hold of a text from outside: no NUL, no half characters, not endless."""
    return text[:limit].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _lock_head(conn: Connection, account_id: str) -> tuple[int, str]:
    """The number and hash of the newest row, locked until the unit ends."""
    make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    conn.execute(make(audit_head).values(account_id=account_id, seq=0, hash=GENESIS).on_conflict_do_nothing())
    query = select(audit_head.c.seq, audit_head.c.hash).where(audit_head.c.account_id == account_id).with_for_update()
    row = conn.execute(query).one()
    return int(row.seq), str(row.hash)


def row_hash(previous: str, row: tuple[Any, ...]) -> str:
    """The hash of a row over itself and the one before; every value is written with its length."""
    parts = [previous]
    for value in row:
        text = "-" if value is None else f"={value}"
        parts.append(f"{len(text)}:{text}")
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def history(
    conn: Connection, account_id: str, *, limit: int = 50, before_seq: int | None = None, action: str = ""
) -> list[dict[str, Any]]:
    """Rows of an account, newest first, `data` decoded; `before_seq` pages on.

    action: only those of one kind ("key.mint"), or of all of one thing ("key").
    """
    query = select(audit).where(audit.c.account_id == account_id).order_by(audit.c.seq.desc()).limit(limit)
    if before_seq is not None:
        query = query.where(audit.c.seq < before_seq)
    if action:
        query = query.where((audit.c.action == action) | audit.c.action.startswith(f"{action}.", autoescape=True))
    return [{**row, "data": json.loads(row["data"])} for row in conn.execute(query).mappings()]


def chains(conn: Connection) -> list[str]:
    """The accounts that have an audit log, or have lost its rows or its head."""
    heads = select(audit_head.c.account_id)
    return sorted(conn.execute(heads.union(select(audit.c.account_id))).scalars())


def verify(conn: Connection, account_id: str) -> Fault | None:
    """Check one account's chain: every hash, no gap, and its head; None: it holds."""
    head = conn.execute(
        select(audit_head.c.seq, audit_head.c.hash).where(audit_head.c.account_id == account_id)
    ).one_or_none()
    seq, previous = 0, GENESIS
    for row in _rows(conn, account_id):
        seq += 1
        if row["seq"] != seq:
            return Fault(account_id, seq, f"row {seq} is missing")
        if row_hash(previous, tuple(row[name] for name in _COLUMNS)) != row["hash"]:
            return Fault(account_id, seq, f"row {seq} was changed: its hash does not fit")
        previous = row["hash"]
    ends = (0, GENESIS) if head is None else (head.seq, head.hash)
    if ends != (seq, previous):
        return Fault(account_id, None, f"the chain should end at row {ends[0]}, and ends at row {seq}")
    return None


def _rows(conn: Connection, account_id: str, piece: int = 5000) -> Iterator[dict[str, Any]]:
    """All rows of an account, oldest first, in pieces so that memory stays bounded."""
    after = -(10**9)
    while True:
        query = select(audit).where(audit.c.account_id == account_id, audit.c.seq > after)
        rows = conn.execute(query.order_by(audit.c.seq).limit(piece)).mappings().all()
        for row in rows:
            yield dict(row)
        if len(rows) < piece:
            return
        after = rows[-1]["seq"]


__all__ = ["GENESIS", "SERVICE", "Actor", "Fault", "chains", "clean", "history", "note", "row_hash", "verify"]
