# SPDX-License-Identifier: Apache-2.0
"""Claims: which due rows of the queue a process leases next, what expires instead, and when to look again.

How a claim finds what is due, fairly and without looking at backlogs in vain: `ring`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, or_, select, update

from hepmaild.delivery.job import Job, JobRecipient
from hepmaild.mail.content import Content
from hepmaild.storage import cap_line, caps, messages, ring
from hepmaild.storage import credits as money
from hepmaild.storage.bulk import Bulk, Query
from hepmaild.storage.leases import SERVER_CLOCK_US
from hepmaild.storage.ring import UNLEASED, least
from hepmaild.storage.schema import NEVER_US, message, process, queue, recipient
from hepmaild.storage.settle import Row, end_waiting, settle

AT_HAND_OCTETS = 64 << 10  # contents up to this size come with the claim
EXPIRE_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Claimed:
    """What one claim brought: jobs to attempt, and how many recipients expired on the way.

    cursors: where the next claim goes on, by route.  is_complete: no due row was left unseen (unless the limit was
    reached); otherwise claim again.  paused: what is so, as (route, destination or "").
    """

    jobs: list[Job]
    expired: int
    cursors: Mapping[str, str]
    is_complete: bool
    paused: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Look:
    """A claim, and when to come again.

    is_all: nothing more was to be claimed.  due_at_us: when something will be, if that was all; None: nothing waits.
    line_at_us: when the first of those behind a daily cap may go; None: nobody stands there.
    """

    claimed: Claimed
    is_all: bool
    due_at_us: int | None
    line_at_us: int | None


# Said so that no index is used for it: rows that are known are found by their key, whatever the planner thinks.
_IS_IDLE = func.coalesce(queue.c.owner, "") == ""
_LOCK_DUE = Query(
    select(
        queue.c.message_id,
        queue.c.destination,
        queue.c.token,
        queue.c.expires_at_us,
        queue.c.cap_key,
        queue.c.line_us,
    )
    .where(
        queue.c.message_id.in_(bindparam("ids", expanding=True)),
        queue.c.due_at_us + 0 <= bindparam("now"),
        _IS_IDLE,
    )
    .with_for_update(skip_locked=True),
    "ids",
)
_LEASE = Bulk(
    update(queue)
    .where(queue.c.message_id == bindparam("m"), queue.c.destination == bindparam("d"))
    .values(owner=bindparam("o"), token=queue.c.token + 1, due_at_us=bindparam("never"), marked=False),
    "o",
    "never",
    "m",
    "d",
)
_HEADS = Query(
    select(
        message.c.id,
        message.c.account_id,
        message.c.route,
        message.c.reverse_path,
        message.c.size,
        message.c.smtputf8,
        message.c.accepted_at_us,
        message.c.expires_at_us,
    ).where(message.c.id.in_(bindparam("ids", expanding=True))),
    "ids",
)
_RECIPIENTS = Query(
    select(recipient.c.message_id, recipient.c.destination, recipient.c.n, recipient.c.address, recipient.c.attempts)
    .where(
        recipient.c.message_id.in_(bindparam("ids", expanding=True)),
        recipient.c.due_at_us <= bindparam("now"),
        or_(recipient.c.state == "queued", recipient.c.state == "deferred"),
    )
    .order_by(recipient.c.message_id, recipient.c.n),
    "ids",
)


def claim(
    conn: Connection,
    owner: str,
    now_us: int,
    most: int,
    body_keep_us: int,
    exclude: Collection[str] = (),
    full: Collection[tuple[str, str]] = (),
    cursors: Mapping[str, str] | None = None,
    *,
    most_of: Mapping[str, int] | None = None,
) -> Claimed:
    """Lease up to `most` due rows; see the module, and `delivery.job.Queue.claim`.  What has expired is ended, too."""
    expired = expire(conn, now_us, body_keep_us)
    shut = ring.what_is_shut(conn, exclude, full)
    found, ahead, is_complete = ring.look(conn, now_us, most, shut, cursors or {})
    dues = {(f.message_id, f.destination): f.due_at_us for f in _within(found, most_of or {})}
    rows = []
    if dues:
        ids = sorted({m for m, _ in dues})
        locked = _LOCK_DUE.ask(conn, ids, now=now_us)  # others may have been faster with some
        rows = [r for r in locked if (r.message_id, r.destination) in dues and r.expires_at_us > now_us]
        rows.sort(key=lambda r: dues[r.message_id, r.destination])
        there = {r.message_id for r in rows}
        rows = caps.admit(conn, rows, now_us)
        if refused := there.difference(r.message_id for r in rows):
            cap_line.tell(conn, refused, "capped", now_us)
    return Claimed(_lease(conn, owner, rows, now_us), expired, ahead, is_complete, shut.paused)


def _within(found: Iterable[ring.Found], most_of: Mapping[str, int]) -> Iterable[ring.Found]:
    """Of each route no more than it may have; the others are left due."""
    left = dict(most_of)
    for f in found:
        if f.route in left:
            left[f.route] -= 1
        if left.get(f.route, 0) >= 0:
            yield f


def claim_and_look(
    conn: Connection,
    owner: str,
    now_us: int,
    most: int,
    body_keep_us: int,
    exclude: Collection[str],
    full: Collection[tuple[str, str]],
    cursors: Mapping[str, str],
    *,
    most_of: Mapping[str, int],
) -> Look:
    """`claim`, and `next_due_at_us`, as one unit: to ask by itself for the second cost as much as the first."""
    found = claim(conn, owner, now_us, most, body_keep_us, exclude, full, cursors, most_of=most_of)
    is_all = len(found.jobs) < most and found.is_complete and found.expired < EXPIRE_AT_ONCE
    due_at_us = next_due_at_us(conn, now_us, exclude, full) if is_all else None
    return Look(found, is_all, due_at_us, cap_line.next_at_us(conn))


def _lease(conn: Connection, owner: str, rows: list[Any], now_us: int) -> list[Job]:
    """Lease locked rows, and read what is to be done."""
    if not rows:
        return []
    _LEASE.run(conn, [(owner, NEVER_US + now_us, r.message_id, r.destination) for r in rows])
    ids = sorted({r.message_id for r in rows})
    heads = {r.id: r for r in _HEADS.ask(conn, ids)}
    due: dict[tuple[str, str], list[JobRecipient]] = {}
    for r in _RECIPIENTS.ask(conn, ids, now=now_us):
        due.setdefault((r.message_id, r.destination), []).append(JobRecipient(r.n, r.address, r.attempts))
    contents = messages.small_contents(conn, [i for i in ids if heads[i].size <= AT_HAND_OCTETS])
    jobs: list[Job] = []
    idle: list[tuple[str, str]] = []
    for r in rows:
        recipients = due.get((r.message_id, r.destination))
        if recipients is None:
            idle.append((r.message_id, r.destination))
        else:
            content = contents.get(r.message_id)
            jobs.append(_job(heads[r.message_id], r.destination, r.token + 1, tuple(recipients), content))
    settle(conn, idle)
    return jobs


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


# Expiry


_EXPIRED = Query(
    select(queue.c.message_id, queue.c.account_id)
    .where(UNLEASED, queue.c.expires_at_us <= bindparam("now"))
    .order_by(queue.c.expires_at_us)
    .limit(bindparam("most"))
)
_LOCK_EXPIRED = (
    select(queue.c.message_id, queue.c.destination, queue.c.account_id, queue.c.route, queue.c.cap_key)
    .where(
        queue.c.message_id.in_(bindparam("ids", expanding=True)),
        queue.c.expires_at_us + 0 <= bindparam("now"),
        _IS_IDLE,
    )
    .with_for_update(skip_locked=True)
)
_FIRST_EXPIRY = Query(least(queue.c.expires_at_us, UNLEASED))


def expire(conn: Connection, now_us: int, body_keep_us: int, most: int = EXPIRE_AT_ONCE) -> int:
    """End what waits past its expiry, in whatever state and wherever it waits; how many recipients that were.

    What is leased is left alone: its attempt ends first.
    """
    old = _EXPIRED.ask(conn, now=now_us, most=most)
    if not old:
        return 0
    # Accounts are locked before queue rows, everywhere: two orders would be a deadlock.
    purses = money.lock(conn, {r.account_id for r in old})
    locked = conn.execute(_LOCK_EXPIRED, {"ids": sorted({r.message_id for r in old}), "now": now_us})
    rows = [Row(r.message_id, r.destination, r.account_id, r.route, r.cap_key) for r in locked]
    ledger_rows: list[money.LedgerRow] = []
    ended = end_waiting(conn, rows, "expired", now_us, body_keep_us, purses, ledger_rows)
    money.save(conn, purses.values(), ledger_rows)
    return ended


# When to look again


_HOLDS_WORK = process.c.id.in_(select(queue.c.owner).where(queue.c.owner.is_not(None)))
_FIRST_END = Query(select(func.min(process.c.alive_until_us).label("us")).where(_HOLDS_WORK))
_FIRST_END_IN = Query(select((func.min(process.c.alive_until_us) - SERVER_CLOCK_US).label("us")).where(_HOLDS_WORK))


def _first_end_us(conn: Connection, now_us: int) -> int | None:
    """When the first lease of a process that holds work ends, by the caller's clock."""
    if conn.dialect.name != "postgresql":
        base_us, found = 0, _FIRST_END.value(conn)
    else:
        base_us, found = now_us, _FIRST_END_IN.value(conn)
    return None if found is None else base_us + int(found)


def next_due_at_us(
    conn: Connection, now_us: int, exclude: Collection[str] = (), full: Collection[tuple[str, str]] = ()
) -> int | None:
    """When the next claim with these arguments has something to do; see `delivery.job.Claim`."""
    shut = ring.what_is_shut(conn, exclude, full)
    times = (
        ring.first_due_at_us(conn, now_us, shut),
        _FIRST_EXPIRY.value(conn),
        _first_end_us(conn, now_us),
    )
    return min((int(t) for t in times if t is not None and t < NEVER_US), default=None)
