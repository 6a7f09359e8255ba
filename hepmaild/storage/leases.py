# SPDX-License-Identifier: Apache-2.0
"""Leases: who works on a queue row, and what becomes of it when he does so no more.

A lease is an owner, a token that grows with every lease, and "due never".  It is the process's: as long as the process
is alive (its row in `process`, or, alone on SQLite, its locks) its leases hold.  Only who brings
the newest token may write.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from hepmaild.config import InDoubt
from hepmaild.storage import caps, messages
from hepmaild.storage.bulk import Bulk
from hepmaild.storage.schema import NEVER_US, process, queue, recipient
from hepmaild.storage.settle import settle

AT_ONCE = 1000  # messages that one statement names
_DOUBT = "in doubt: the process ended before the next hop's answer to the final dot was recorded"


def _leased(message_id: str, destination: str, token: int) -> Any:
    return and_(
        queue.c.message_id == message_id,
        queue.c.destination == destination,
        queue.c.token == token,
        queue.c.owner.is_not(None),
    )


def release(conn: Connection, message_id: str, destination: str, token: int, now_us: int) -> bool:
    """Give a leased row back untried; due again at once.  False: the lease was lost."""
    gone = conn.execute(
        update(queue)
        .where(_leased(message_id, destination, token))
        .values(due_at_us=now_us, owner=null(), marked=False)
    )
    return bool(gone.rowcount)


def release_all(conn: Connection, leased: Collection[tuple[str, str, int]], now_us: int) -> None:
    """Give back many, each a message, a destination and a token; whoever locks several has them in this order."""
    for message_id, destination, token in sorted(leased):
        release(conn, message_id, destination, token, now_us)


def put_off(
    conn: Connection, message_id: str, destination: str, token: int, due_at_us: int, why: str, now_us: int
) -> bool:
    """Give a leased row back untried; due then, and why is shown.  False: the lease was lost."""
    gone = conn.execute(
        update(queue)
        .where(_leased(message_id, destination, token))
        .values(due_at_us=due_at_us, owner=null(), marked=False)
    )
    if not gone.rowcount:
        return False
    conn.execute(
        update(recipient)
        .where(
            recipient.c.message_id == message_id,
            recipient.c.destination == destination,
            recipient.c.due_at_us < due_at_us,
            or_(recipient.c.state == "queued", recipient.c.state == "deferred"),
        )
        .values(due_at_us=due_at_us, last_reply=why, changed_at_us=now_us)
    )
    return True


def forsake(
    conn: Connection, wanted: Mapping[tuple[str, str], int], now_us: int, in_doubt: InDoubt = InDoubt.RETRY
) -> dict[tuple[str, str], bool]:
    """Take back leases of a living process that could not say how its attempts ended.  wanted: by row, the token.

    Returns by row whether it was taken back; False: the lease was lost.  A row that somebody has locked just now is not
    waited for, and not in the answer: it may be ours still, so ask again.
    """
    ended = {}
    for (message_id, destination), token in sorted(wanted.items()):
        mine = _leased(message_id, destination, token)
        if _take_back(conn, mine, now_us, in_doubt):
            ended[message_id, destination] = True
        elif conn.execute(select(queue.c.token).where(mine)).first() is None:
            ended[message_id, destination] = False
    return ended


def free_uncertain(
    conn: Connection, owner: str, accepted: Mapping[tuple[str, str], int], claimed: Collection[int], now_us: int
) -> list[tuple[str, str]]:
    """Free leases of a living process that nobody works on, if they came to be: the unit that made them gave no answer.

    accepted: by row, the token.  claimed: the instants of claims.  Returns the rows of `accepted` that were freed.
    """
    mine = and_(queue.c.owner == owner, queue.c.marked.is_(False))
    found: list[tuple[str, str]] = []
    ids = sorted({m for m, _ in accepted})
    for n in range(0, len(ids), AT_ONCE):
        rows = conn.execute(
            select(queue.c.message_id, queue.c.destination, queue.c.token)
            .where(queue.c.message_id.in_(ids[n : n + AT_ONCE]), mine)
            .order_by(queue.c.message_id, queue.c.destination)
            .with_for_update()
        )
        found += [(m, where) for m, where, token in rows if accepted.get((m, where)) == token]
    _FREE.run(conn, [(now_us, *row) for row in found])
    for at_us in claimed:
        # Leases of accepted messages may be as old, to the microsecond, but their token is the first one.
        lost = and_(mine, queue.c.due_at_us == NEVER_US + at_us, queue.c.token > 1)
        conn.execute(update(queue).where(lost).values(owner=null(), due_at_us=now_us, token=queue.c.token + 1))
    return found


SERVER_CLOCK_US = cast(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)  # PostgreSQL's


def clock_us(conn: Connection, now_us: int) -> Any:
    """The clock by which processes live.  now_us: the caller's, which SQLite's one process goes by.

    With PostgreSQL it is the server's: by the clocks of two hosts one could be dead for the other while it works.
    """
    return SERVER_CLOCK_US if conn.dialect.name == "postgresql" else literal(now_us)


def stay_alive(conn: Connection, owner: str, lease_us: int, now_us: int) -> None:
    """Renew the lease of this process over all it holds: so long from now."""
    until_us = clock_us(conn, now_us) + lease_us
    # Its heartbeat and its claims may meet here; both engines have this statement, each its own class for it.
    make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    statement = make(process).values(id=owner, alive_until_us=until_us)
    conn.execute(
        statement.on_conflict_do_update(index_elements=[process.c.id], set_={"alive_until_us": until_us}),
    )


def say_goodbye(conn: Connection, owner: str, now_us: int, in_doubt: InDoubt = InDoubt.RETRY) -> None:
    """An orderly end: what this process still holds is due at once, and nobody waits for it."""
    _take_back(conn, queue.c.owner == owner, now_us, in_doubt)
    conn.execute(delete(process).where(process.c.id == owner))


def take_over(conn: Connection, now_us: int, *, alone: bool, in_doubt: InDoubt = InDoubt.RETRY) -> int:
    """Take back the leases of dead processes; how many.  alone: no other process can be alive (SQLite)."""
    if alone:
        return _take_back(conn, queue.c.owner.is_not(None), now_us, in_doubt)
    clock = clock_us(conn, now_us)
    alive = select(process.c.id).where(process.c.alive_until_us > clock)
    # Asked for first, by the index that holds leased rows only.  To lock them in order PostgreSQL may go through all
    # that waits, and all that is gone and not yet swept (nothing is while pg_dump runs); at every claim.
    dead = queue.c.owner.is_not(None) & queue.c.owner.not_in(alive)
    owners = conn.execute(select(queue.c.owner).where(dead).distinct().order_by(queue.c.owner)).scalars().all()
    taken = _take_back(conn, queue.c.owner.in_(owners) & dead, now_us, in_doubt) if owners else 0
    conn.execute(delete(process).where(process.c.alive_until_us <= clock))
    return taken


_FREE = Bulk(
    update(queue)
    .where(queue.c.message_id == bindparam("m"), queue.c.destination == bindparam("d"))
    .values(owner=null(), due_at_us=bindparam("due"), token=queue.c.token + 1, marked=False),
    "due",
    "m",
    "d",
)
_WAS_DUE = (
    recipient.c.message_id == bindparam("m"),
    recipient.c.destination == bindparam("d"),
    recipient.c.due_at_us <= bindparam("leased"),
    or_(recipient.c.state == "queued", recipient.c.state == "deferred"),
)


def _doubt(state: str) -> Bulk:
    return Bulk(
        update(recipient)
        .where(*_WAS_DUE)
        .values(
            doubts=recipient.c.doubts + 1,
            attempts=recipient.c.attempts + 1,
            state=literal(state),
            due_at_us=bindparam("due"),
            last_reply=literal(_DOUBT if state == "deferred" else f"{_DOUBT}; held until it is released"),
            changed_at_us=bindparam("at"),
        ),
        "due",
        "at",
        "m",
        "d",
        "leased",
    )


_DOUBTFUL = {InDoubt.RETRY: _doubt("deferred"), InDoubt.HOLD: _doubt("held")}


def _take_back(conn: Connection, whose: Any, now_us: int, in_doubt: InDoubt) -> int:
    """End leases.  What was not marked is due again at once; the rest is in doubt: counted, shown, and tried again or
    held."""
    rows = conn.execute(
        select(
            queue.c.message_id,
            queue.c.destination,
            queue.c.account_id,
            queue.c.marked,
            case((queue.c.due_at_us >= NEVER_US, queue.c.due_at_us - NEVER_US), else_=now_us).label("leased_at_us"),
            queue.c.expires_at_us,
            queue.c.cap_key,
        )
        .where(whose)
        .order_by(queue.c.message_id, queue.c.destination)
        .with_for_update(skip_locked=True)
    ).all()
    if not rows:
        return 0
    _FREE.run(conn, [(now_us, r.message_id, r.destination) for r in rows])
    doubtful = [r for r in rows if r.marked]
    holds = in_doubt is InDoubt.HOLD
    _DOUBTFUL[in_doubt].run(
        conn,
        [(r.expires_at_us if holds else now_us, now_us, r.message_id, r.destination, r.leased_at_us) for r in doubtful],
    )
    settle(conn, [(r.message_id, r.destination) for r in doubtful])
    caps.went(conn, [(r.cap_key, r.message_id, now_us) for r in doubtful if r.cap_key])
    messages.insert_events(
        conn,
        [(r.message_id, r.account_id, now_us, "recovered", _event(r, held=bool(r.marked) and holds)) for r in rows],
    )
    return len(rows)


def _event(r: Any, *, held: bool) -> str:
    data: dict[str, Any] = {"in_doubt": bool(r.marked)}
    if r.destination:
        data["destination"] = r.destination
    if held:
        data["held"] = True
    return json.dumps(data)
