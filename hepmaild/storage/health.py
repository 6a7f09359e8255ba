# SPDX-License-Identifier: Apache-2.0
"""What the doctor and the Health page read: clock, leases, processes.  Bounded by indexes, whatever there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, func, select

from hepmaild.own_routes import PREFIX
from hepmaild.storage.leases import clock_us
from hepmaild.storage.schema import NEVER_US, account, event, process, queue, sender


def clock(conn: Connection) -> tuple[int | None, int | None]:
    """PostgreSQL's clock (Unix µs; None on SQLite, which has the machine's), and when the newest event happened."""
    theirs = None
    if conn.dialect.name == "postgresql":
        theirs = int(conn.execute(select(func.extract("epoch", func.clock_timestamp()) * 1_000_000)).scalar_one())
    newest = conn.execute(select(event.c.at_us).order_by(event.c.seq.desc()).limit(1)).scalar()
    return theirs, newest


@dataclass(frozen=True, slots=True)
class Leases:
    """held: how many there are.  oldest_us: since when the oldest is held.  orphans: those of processes that are not
    alive (several processes only)."""

    held: int
    oldest_us: int | None
    orphans: int


def leases(conn: Connection, now_us: int, *, several: bool) -> Leases:
    """Who works on what."""
    owned = queue.c.owner.is_not(None)
    row = conn.execute(
        select(func.count(), func.min(queue.c.due_at_us)).where(owned, queue.c.due_at_us >= NEVER_US)
    ).one()
    oldest_us = None if row[1] is None else int(row[1]) - NEVER_US
    alive = select(process.c.id).where(process.c.alive_until_us > clock_us(conn, now_us))
    lost = select(func.count()).select_from(queue).where(and_(owned, queue.c.owner.not_in(alive)))
    return Leases(int(row[0]), oldest_us, int(conn.execute(lost).scalar_one()) if several else 0)


def processes(conn: Connection, now_us: int) -> list[dict[str, Any]]:
    """Those that said they hold work, the ones alive first; `id` begins with the process's number."""
    left_us = process.c.alive_until_us - clock_us(conn, now_us)
    rows = conn.execute(select(process.c.id, left_us).order_by(process.c.alive_until_us.desc()).limit(100))
    return [{"id": r[0], "alive_until_us": now_us + int(r[1]), "is_alive": r[1] > 0} for r in rows]


def sender_routes(conn: Connection, limit: int = 2000) -> list[tuple[str, str]]:
    """Address and route of the senders of accounts that are not suspended, and of the global ones; not of those that
    leave by an account's own server."""
    of_account = account.c.id == sender.c.account_id
    rows = conn.execute(
        select(sender.c.address, sender.c.route)
        .join_from(sender, account, of_account, isouter=True)
        .where((sender.c.account_id == "") | (account.c.status == "active"), ~sender.c.route.startswith(PREFIX))
        .order_by(sender.c.id)
        .limit(limit)
    )
    return [(r.address, r.route) for r in rows]
