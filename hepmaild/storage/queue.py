# SPDX-License-Identifier: Apache-2.0
"""The queue: claims, leases, expiry, and what the operator sees and does.

A claim leases a queue row: owner, a higher fencing token, due at NEVER_US.  The lease is the process's: as long as the
process is alive (its row in `process`, or, alone on SQLite, its lock on the state directory) its leases hold.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, null, select, update

from hepmaild.delivery.job import Job, JobRecipient
from hepmaild.mail.content import Content
from hepmaild.storage import credits as money
from hepmaild.storage import messages
from hepmaild.storage.schema import NEVER_US, body, message, process, queue, recipient

WAITING = ("queued", "deferred")
AT_HAND_OCTETS = 64 << 10  # contents up to this size come with the claim
_NEXT_ROUTE = select(func.min(queue.c.route)).where(queue.c.route > bindparam("last"))
_DUE = (
    select(queue.c.message_id, queue.c.destination, queue.c.due_at_us)
    .where(queue.c.route == bindparam("route"), queue.c.due_at_us <= bindparam("now"))
    .order_by(queue.c.due_at_us)
    .limit(bindparam("most"))
)
_LOCK_DUE = (
    select(queue.c.message_id, queue.c.destination, queue.c.token)
    .where(
        queue.c.message_id.in_(bindparam("ids", expanding=True)),
        queue.c.due_at_us <= bindparam("now"),
    )
    .with_for_update(skip_locked=True)
)
_NEXT_DUE = select(func.min(queue.c.due_at_us)).where(queue.c.route == bindparam("route"))
_LEASE = (
    update(queue)
    .where(queue.c.message_id == bindparam("m"), queue.c.destination == bindparam("d"))
    .values(owner=bindparam("o"), token=bindparam("t"), due_at_us=NEVER_US + bindparam("at"), marked=False)
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """What one claim brought: jobs to attempt, and how many recipients expired on the way."""

    jobs: list[Job]
    expired: int


def _routes(conn: Connection, exclude: Collection[str]) -> list[str]:
    """The routes that something waits on: one step down the index for each, however much waits."""
    found, last = [], ""
    while (route := conn.execute(_NEXT_ROUTE, {"last": last}).scalar_one()) is not None:
        if route not in exclude:
            found.append(route)
        last = route
    return found


def claim(
    conn: Connection, owner: str, now_us: int, most: int, body_keep_us: int, exclude: Collection[str] = ()
) -> Claimed:
    """Lease up to `most` due rows, oldest first; those past their expiry are finished and refunded instead."""
    due_rows = [
        row
        for route in _routes(conn, exclude)
        for row in conn.execute(_DUE, {"route": route, "now": now_us, "most": most})
    ]
    due_rows.sort(key=lambda row: row.due_at_us)
    ids = sorted({r.message_id for r in due_rows[:most]})
    if not ids:
        return Claimed([], 0)
    rows = conn.execute(_LOCK_DUE, {"ids": ids, "now": now_us}).all()
    if not rows:
        return Claimed([], 0)
    conn.execute(
        _LEASE, [{"m": r.message_id, "d": r.destination, "o": owner, "t": r.token + 1, "at": now_us} for r in rows]
    )
    ids = sorted({r.message_id for r in rows})  # others may have been faster with some
    heads = {r.id: r for r in conn.execute(select(message).where(message.c.id.in_(ids)))}
    due: dict[tuple[str, str], list[JobRecipient]] = {}
    for r in conn.execute(
        select(recipient)
        .where(recipient.c.message_id.in_(ids), recipient.c.due_at_us <= now_us)
        .order_by(recipient.c.message_id, recipient.c.n)
    ):
        due.setdefault((r.message_id, r.destination), []).append(JobRecipient(r.n, r.address, r.attempts))
    contents = messages.small_contents(conn, [i for i in ids if heads[i].size <= AT_HAND_OCTETS])
    jobs: list[Job] = []
    expired = 0
    for r in rows:
        head = heads[r.message_id]
        if head.expires_at_us <= now_us:
            expired += _finish_waiting(conn, r.message_id, "expired", now_us, body_keep_us)
        elif recipients := due.get((r.message_id, r.destination)):
            jobs.append(_job(head, r.destination, r.token + 1, tuple(recipients), contents.get(head.id)))
        else:
            _settle(conn, r.message_id, r.destination)
    return Claimed(jobs, expired)


def _job(head: Any, destination: str, token: int, recipients: tuple[JobRecipient, ...], content: Content | None) -> Job:
    return Job(
        message_id=head.id,
        account_id=head.account_id,
        route=head.route,
        reverse_path=head.reverse_path,
        recipients=recipients,
        token=token,
        size=head.size,
        smtputf8=head.smtputf8,
        accepted_at_us=head.accepted_at_us,
        expires_at_us=head.expires_at_us,
        content=content,
        destination=destination,
    )


def _settle(conn: Connection, message_id: str, destination: str) -> None:
    """Put a row back to when its next recipient is due, or take it away when none waits."""
    here = and_(queue.c.message_id == message_id, queue.c.destination == destination)
    due = conn.execute(
        select(func.min(recipient.c.due_at_us)).where(
            recipient.c.message_id == message_id, recipient.c.destination == destination
        )
    ).scalar_one()
    if due is None:
        conn.execute(delete(queue).where(here))
    else:
        conn.execute(update(queue).where(here).values(due_at_us=due, owner=null(), marked=False))


def next_due_at_us(conn: Connection, exclude: Collection[str] = ()) -> int | None:
    """When something is due next: a waiting row, or the work of a process that stopped saying it is alive."""
    dues = [conn.execute(_NEXT_DUE, {"route": route}).scalar_one() for route in _routes(conn, exclude)]
    ends = conn.execute(
        select(func.min(process.c.alive_until_us)).where(
            process.c.id.in_(select(queue.c.owner).where(queue.c.owner.is_not(None)))
        )
    ).scalar_one()
    times = [int(t) for t in (*dues, ends) if t is not None and t < NEVER_US]
    return min(times) if times else None


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


def forsake(conn: Connection, message_id: str, destination: str, token: int, now_us: int) -> bool:
    """Take back one lease of a living process that could not say how its attempt ended.  False: the lease was lost."""
    return bool(_take_back(conn, _leased(message_id, destination, token), now_us))


def stay_alive(conn: Connection, owner: str, until_us: int) -> None:
    """Renew the lease of this process over all it holds."""
    if not conn.execute(update(process).where(process.c.id == owner).values(alive_until_us=until_us)).rowcount:
        conn.execute(insert(process).values(id=owner, alive_until_us=until_us))


def say_goodbye(conn: Connection, owner: str, now_us: int) -> None:
    """An orderly end: what this process still holds is due at once, and nobody waits for it."""
    _take_back(conn, queue.c.owner == owner, now_us)
    conn.execute(delete(process).where(process.c.id == owner))


def take_over(conn: Connection, now_us: int, *, alone: bool) -> int:
    """Take back the leases of dead processes; how many.  alone: no other process can be alive (SQLite)."""
    alive = select(process.c.id).where(process.c.alive_until_us > now_us)
    owned = queue.c.owner.is_not(None)
    taken = _take_back(conn, owned if alone else owned & queue.c.owner.not_in(alive), now_us)
    if not alone:
        conn.execute(delete(process).where(process.c.alive_until_us <= now_us))
    return taken


def _take_back(conn: Connection, whose: Any, now_us: int) -> int:
    """Make leased rows due.  Those past the mark are in doubt: counted, shown, and tried again."""
    rows = conn.execute(
        select(queue.c.message_id, queue.c.destination, queue.c.account_id, queue.c.marked, queue.c.token)
        .where(whose)
        .order_by(queue.c.message_id, queue.c.destination)
        .with_for_update(skip_locked=True)
    ).all()
    if not rows:
        return 0
    here = (queue.c.message_id == bindparam("m")) & (queue.c.destination == bindparam("d"))
    conn.execute(
        update(queue).where(here).values(owner=null(), due_at_us=now_us, token=queue.c.token + 1, marked=False),
        [{"m": r.message_id, "d": r.destination} for r in rows],
    )
    doubtful = [{"m": r.message_id, "d": r.destination, "now": now_us} for r in rows if r.marked]
    if doubtful:
        conn.execute(
            update(recipient)
            .where(
                recipient.c.message_id == bindparam("m"),
                recipient.c.destination == bindparam("d"),
                recipient.c.due_at_us <= bindparam("now"),
            )
            .values(
                doubts=recipient.c.doubts + 1,
                attempts=recipient.c.attempts + 1,
                state="deferred",
                last_reply="in doubt: the process ended before the next hop's answer to the final dot was recorded",
            ),
            doubtful,
        )
        conn.execute(
            update(message).where(message.c.id == bindparam("m")).values(state="in_doubt"),
            [{"m": d["m"]} for d in doubtful],
        )
    messages.insert_events(
        conn,
        [(r.message_id, r.account_id, now_us, "recovered", json.dumps({"in_doubt": bool(r.marked)})) for r in rows],
    )
    return len(rows)


def _finish_waiting(conn: Connection, message_id: str, state: str, now_us: int, body_keep_us: int) -> int:
    """End every waiting recipient of a message as `state` and refund it; how many there were."""
    head = conn.execute(select(message.c.account_id, message.c.failed).where(message.c.id == message_id)).one()
    purses = money.lock(conn, [head.account_id])
    ended = conn.execute(
        update(recipient)
        .where(recipient.c.message_id == message_id, recipient.c.state.in_(WAITING))
        .values(state=state, due_at_us=null(), changed_at_us=now_us)
    ).rowcount
    if ended:
        purse = purses[head.account_id]
        money.save(conn, [purse], [purse.book(ended, "refund", now_us, message_id=message_id)])
        messages.insert_events(
            conn, [(message_id, head.account_id, now_us, state, json.dumps({"recipients": ended, "refunded": ended}))]
        )
    conn.execute(delete(queue).where(queue.c.message_id == message_id))
    conn.execute(
        update(message)
        .where(message.c.id == message_id)
        .values(
            waiting=0,
            failed=message.c.failed + ended,
            state="failed" if state == "expired" or head.failed else state,
            finished_at_us=now_us,
            body_until_us=now_us + body_keep_us if body_keep_us else None,
        )
    )
    if not body_keep_us:
        conn.execute(delete(body).where(body.c.message_id == message_id))
    return int(ended)


# What the operator does.  Refusals are ValueErrors with a sentence.


def cancel(conn: Connection, message_id: str, now_us: int, body_keep_us: int = 0) -> dict[str, Any]:
    """End everything of a message that still waits, and refund it."""
    # Accounts are locked before queue rows, everywhere: two orders would be a deadlock.
    head = _head(conn, message_id)
    money.lock(conn, [head["account_id"]])
    rows = _waiting_rows(conn, message_id)
    if any(r.marked for r in rows):
        raise ValueError(f"message {message_id} is being handed to the next hop right now: it cannot be called back")
    # A higher token makes an attempt under way stop before its final dot.
    ended = _finish_waiting(conn, message_id, "cancelled", now_us, body_keep_us)
    return {"message_id": message_id, "cancelled": ended, "refunded": ended}


def retry(conn: Connection, message_id: str, now_us: int) -> dict[str, Any]:
    """Make everything of a message that still waits due now."""
    rows = _waiting_rows(conn, message_id)
    conn.execute(
        update(recipient)
        .where(recipient.c.message_id == message_id, recipient.c.state.in_(WAITING))
        .values(due_at_us=now_us)
    )
    conn.execute(
        update(queue).where(queue.c.message_id == message_id, queue.c.owner.is_(None)).values(due_at_us=now_us)
    )
    messages.insert_events(conn, [(message_id, rows[0].account_id, now_us, "retried", "{}")])
    return {"message_id": message_id, "destinations": len(rows)}


def _head(conn: Connection, message_id: str) -> dict[str, Any]:
    row = conn.execute(select(message).where(message.c.id == message_id)).mappings().one_or_none()
    if row is None:
        raise ValueError(f"there is no message {message_id}; `hepmaild log tail` shows the newest")
    return dict(row)


def _waiting_rows(conn: Connection, message_id: str) -> list[Any]:
    _head(conn, message_id)
    rows = conn.execute(select(queue).where(queue.c.message_id == message_id).with_for_update()).all()
    if not rows:
        raise ValueError(f"message {message_id} is final: nothing of it waits")
    return list(rows)


def stats(conn: Connection) -> dict[str, Any]:
    """Recipients that wait, by state, route and destination, and since when the oldest does."""
    waiting = recipient.c.state.in_(WAITING)
    state = recipient.c.state
    by_state = {r[0]: r[1] for r in conn.execute(select(state, func.count()).where(waiting).group_by(state))}
    leased = conn.execute(select(func.count()).select_from(queue).where(queue.c.owner.is_not(None))).scalar_one()
    doubts = conn.execute(select(func.count()).where(waiting, recipient.c.doubts > 0)).scalar_one()
    oldest = conn.execute(select(func.min(message.c.accepted_at_us)).where(message.c.waiting > 0)).scalar_one()
    by_route = {
        r[0]: r[1]
        for r in conn.execute(
            select(message.c.route, func.sum(message.c.waiting)).where(message.c.waiting > 0).group_by(message.c.route)
        )
    }
    by_destination: dict[str, int] = {}
    for address, count in conn.execute(
        select(func.lower(recipient.c.address), func.count()).where(waiting).group_by(func.lower(recipient.c.address))
    ):
        domain = str(address).rpartition("@")[2]
        by_destination[domain] = by_destination.get(domain, 0) + count
    return {
        "by_state": {"queued": 0, "deferred": 0, **by_state},
        "leased": leased,
        "in_doubt": doubts,
        "oldest_at": oldest,
        "by_route": {k: int(v) for k, v in by_route.items()},
        "by_destination": by_destination,
    }


def list_waiting(conn: Connection, limit: int = 1000) -> list[dict[str, Any]]:
    """Waiting recipients, those due first first."""
    rows = conn.execute(
        select(recipient)
        .where(recipient.c.state.in_(WAITING))
        .order_by(recipient.c.due_at_us, recipient.c.message_id, recipient.c.n)
        .limit(limit)
    )
    return [recipient_row(r) for r in rows]


def show(conn: Connection, message_id: str) -> dict[str, Any]:
    """A message with its recipients."""
    head = _head(conn, message_id)
    rows = conn.execute(select(recipient).where(recipient.c.message_id == message_id).order_by(recipient.c.n))
    return {
        "message_id": message_id,
        **{name: head[name] for name in ("account_id", "door", "sender", "route", "subject", "size", "state")},
        "header_message_id": head["header_message_id"],
        "key": head["key_name"],
        "accepted_at": head["accepted_at_us"],
        "expires_at": head["expires_at_us"],
        "finished_at": head["finished_at_us"],
        "recipients": [recipient_row(r) for r in rows],
    }


def recipient_row(r: Any) -> dict[str, Any]:
    """A recipient as the command line and the pages show it; instants in µs."""
    return {
        "message_id": r.message_id,
        "recipient": r.address,
        "kind": r.kind,
        "state": r.state,
        "attempts": r.attempts,
        "in_doubt": r.doubts,
        "next_attempt_at": r.due_at_us,
        "last_reply": r.last_reply,
        "changed_at": r.changed_at_us,
    }


def count_waiting(conn: Connection) -> int:
    """How many messages wait."""
    return int(conn.execute(select(func.count()).select_from(queue)).scalar_one())
