# SPDX-License-Identifier: Apache-2.0
"""Claims: which due rows of the queue a process leases next, and what expires instead.

Every destination of every route gets its share, however much waits for the others.  As long as little is due on a route
all of it is looked at, the oldest first.  Where much is due, the claim steps from destination to destination by index,
begins where the last one ended (a cursor, kept by the caller), and takes a few rows of each.  What is excluded, full or
paused costs one step, never a look at its backlog.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Select,
    String,
    Text,
    bindparam,
    func,
    literal,
    select,
    true,
    update,
)

from hepmaild.delivery.job import Job, JobRecipient
from hepmaild.mail.content import Content
from hepmaild.storage import caps, messages
from hepmaild.storage import credits as money
from hepmaild.storage.bulk import Bulk
from hepmaild.storage.schema import NEVER_US, message, pause, process, queue, recipient
from hepmaild.storage.settle import Row, end_waiting, settle

AT_HAND_OCTETS = 64 << 10  # contents up to this size come with the claim
LITTLE = 512  # due rows of a route up to which all are looked at
VISITS = 512  # destinations that one claim steps over at most
EXPIRE_AT_ONCE = 200
LOOK_VISITS = 4096  # destinations that are looked at for the next due time; beyond that it is looked again soon
LOOK_AGAIN_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Claimed:
    """What one claim brought: jobs to attempt, and how many recipients expired on the way.

    cursors: where the next claim goes on, by route.  is_complete: no due row was left unseen (unless the limit was
    reached); otherwise claim again.
    """

    jobs: list[Job]
    expired: int
    cursors: Mapping[str, str]
    is_complete: bool


class _Found(NamedTuple):
    """A due row.  Sorted by these: the first row of each destination, destination by destination; then the second."""

    rank: int
    place: int
    due_at_us: int
    message_id: str
    destination: str
    route: str


def _first(column: ColumnElement[Any], *where: ColumnElement[bool]) -> Select[Any]:
    """The least value.  Not by min(): PostgreSQL reads every row for that when it thinks that there is but one."""
    return select(column).where(*where).order_by(column).limit(1)


def _routes() -> Select[Any]:
    """Every route that something waits on, with the first and the last of its destinations: three steps for each."""
    routes = select(_first(queue.c.route).scalar_subquery().label("route")).cte("routes", recursive=True)
    following = _first(queue.c.route, queue.c.route > routes.c.route).correlate(routes).scalar_subquery()
    routes = routes.union_all(select(following).where(routes.c.route.is_not(None)))
    here = queue.c.route == routes.c.route
    low = _first(queue.c.destination, here).correlate(routes).scalar_subquery()
    last = select(queue.c.destination).where(here).order_by(queue.c.destination.desc()).limit(1)
    high = last.correlate(routes).scalar_subquery()
    return select(routes.c.route, low.label("low"), high.label("high")).where(routes.c.route.is_not(None))


def _walk(*, goes_on: bool) -> Select[Any]:
    """The next destinations of a route (behind `after`, or from the first) and when each is due: two steps for each."""
    here = queue.c.route == bindparam("route")
    behind = (queue.c.destination > bindparam("after"),) if goes_on else ()
    first = _first(queue.c.destination, here, *behind).scalar_subquery()
    steps = select(first.label("destination"), literal(1).label("n")).cte("steps", recursive=True)
    following = _first(queue.c.destination, here, queue.c.destination > steps.c.destination)
    steps = steps.union_all(
        select(following.correlate(steps).scalar_subquery(), steps.c.n + 1).where(
            steps.c.destination.is_not(None), steps.c.n < bindparam("most")
        )
    )
    due = _first(queue.c.due_at_us, here, queue.c.destination == steps.c.destination)
    return select(steps.c.destination, due.correlate(steps).scalar_subquery().label("due_at_us")).where(
        steps.c.destination.is_not(None)
    )


_ROUTES = _routes()
_WALK, _WALK_ON = _walk(goes_on=False), _walk(goes_on=True)
_COLUMNS = (queue.c.message_id, queue.c.destination, queue.c.due_at_us)
# Said so that no index is used for it: rows that are known are found by their key, whatever the planner thinks.
_IS_UNLEASED = func.coalesce(queue.c.owner, "") == ""
_ON_ROUTE = queue.c.route == bindparam("route")
_UNLEASED = queue.c.owner.is_(None)
_OLDEST_OF_ONE = (
    select(*_COLUMNS)
    .where(_ON_ROUTE, queue.c.destination == bindparam("where"), queue.c.due_at_us <= bindparam("now"))
    .order_by(queue.c.due_at_us)
    .limit(bindparam("most"))
)
_OLDEST = (
    select(*_COLUMNS)
    .where(_ON_ROUTE, _UNLEASED, queue.c.due_at_us <= bindparam("now"))
    .order_by(queue.c.due_at_us)
    .limit(bindparam("most"))
)
_FIRST = select(*_COLUMNS).where(_ON_ROUTE, _UNLEASED).order_by(queue.c.due_at_us).limit(bindparam("most"))
_FIRST_OF_ONE = _first(queue.c.due_at_us, _ON_ROUTE, queue.c.destination == bindparam("where"))


def _oldest_of_each_sqlite() -> Select[Any]:
    """The oldest `share` rows of each destination in the JSON list `wheres`."""
    wheres = func.json_each(bindparam("wheres", type_=String)).table_valued("value", name="wheres")
    inner = queue.alias("inner_queue")
    oldest = (
        select(inner.c.message_id)
        .where(
            inner.c.route == bindparam("route"),
            inner.c.destination == wheres.c.value,
            inner.c.due_at_us <= bindparam("now"),
        )
        .order_by(inner.c.due_at_us)
        .limit(bindparam("share"))
        .correlate(wheres)
    )
    # Nothing is said of the route out here, so that there is one way to the rows only: by their primary key.
    return select(*_COLUMNS).select_from(
        wheres.join(queue, (queue.c.destination == wheres.c.value) & queue.c.message_id.in_(oldest))
    )


def _oldest_of_each_postgresql() -> Select[Any]:
    """The same, of the array `wheres`."""
    wheres = func.unnest(bindparam("wheres", type_=ARRAY(Text))).table_valued("value", name="wheres").render_derived()
    oldest = (
        select(*_COLUMNS)
        .where(_ON_ROUTE, queue.c.destination == wheres.c.value, queue.c.due_at_us <= bindparam("now"))
        .order_by(queue.c.due_at_us)
        .limit(bindparam("share"))
        .lateral("oldest")
    )
    return select(oldest).select_from(wheres.join(oldest, true()))


_OLDEST_OF_EACH = {"sqlite": _oldest_of_each_sqlite(), "postgresql": _oldest_of_each_postgresql()}

_PAUSED = select(pause.c.route, pause.c.destination)
_LOCK_DUE = (
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
        _IS_UNLEASED,
    )
    .with_for_update(skip_locked=True)
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
_HEADS = select(
    message.c.id,
    message.c.account_id,
    message.c.route,
    message.c.reverse_path,
    message.c.size,
    message.c.smtputf8,
    message.c.accepted_at_us,
    message.c.expires_at_us,
).where(message.c.id.in_(bindparam("ids", expanding=True)))
_RECIPIENTS = (
    select(recipient.c.message_id, recipient.c.destination, recipient.c.n, recipient.c.address, recipient.c.attempts)
    .where(
        recipient.c.message_id.in_(bindparam("ids", expanding=True)),
        recipient.c.due_at_us <= bindparam("now"),
        recipient.c.state.in_(("queued", "deferred")),
    )
    .order_by(recipient.c.message_id, recipient.c.n)
)


@dataclass(frozen=True, slots=True)
class _Shut:
    """What nobody is to work on now."""

    routes: set[str]
    wheres: set[tuple[str, str]]


def _shut(conn: Connection, exclude: Collection[str], full: Collection[tuple[str, str]]) -> _Shut:
    shut = _Shut(set(exclude), set(full))
    for route, destination in conn.execute(_PAUSED):
        if destination:
            shut.wheres.add((route, destination))
        else:
            shut.routes.add(route)
    return shut


def claim(
    conn: Connection,
    owner: str,
    now_us: int,
    most: int,
    body_keep_us: int,
    exclude: Collection[str] = (),
    full: Collection[tuple[str, str]] = (),
    cursors: Mapping[str, str] | None = None,
) -> Claimed:
    """Lease up to `most` due rows; see the module, and `delivery.job.Queue.claim`.  What has expired is ended, too."""
    expired = expire(conn, now_us, body_keep_us)
    found, ahead, is_complete = _look(conn, now_us, most, _shut(conn, exclude, full), cursors or {})
    dues = {(f.message_id, f.destination): f.due_at_us for f in found}
    rows = []
    if dues:
        ids = sorted({m for m, _ in dues})
        locked = conn.execute(_LOCK_DUE, {"ids": ids, "now": now_us})  # others may have been faster with some
        rows = [r for r in locked if (r.message_id, r.destination) in dues and r.expires_at_us > now_us]
        rows = caps.admit(conn, rows, now_us)
        rows.sort(key=lambda r: dues[r.message_id, r.destination])
        rows = caps.admit(conn, rows, now_us)
    return Claimed(_lease(conn, owner, rows, now_us), expired, ahead, is_complete)


def _lease(conn: Connection, owner: str, rows: list[Any], now_us: int) -> list[Job]:
    """Lease locked rows, and read what is to be done."""
    if not rows:
        return []
    _LEASE.run(conn, [(owner, NEVER_US + now_us, r.message_id, r.destination) for r in rows])
    ids = sorted({r.message_id for r in rows})
    heads = {r.id: r for r in conn.execute(_HEADS, {"ids": ids})}
    due: dict[tuple[str, str], list[JobRecipient]] = {}
    for r in conn.execute(_RECIPIENTS, {"ids": ids, "now": now_us}):
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


# Looking for what is due


def _look(
    conn: Connection, now_us: int, most: int, shut: _Shut, cursors: Mapping[str, str]
) -> tuple[list[_Found], dict[str, str], bool]:
    """Up to `most` due rows, the cursors behind them, and whether nothing due was left unseen."""
    found: list[_Found] = []
    ahead = dict(cursors)
    rounds: dict[str, list[str]] = {}
    is_complete = True
    for route, low, high in conn.execute(_ROUTES).all():
        if route in shut.routes:
            continue
        if low == high:
            if (route, low) not in shut.wheres:
                here = {"route": route, "where": low, "now": now_us, "most": most}
                found += _rank(route, conn.execute(_OLDEST_OF_ONE, here), [low])
            continue
        rows = conn.execute(_OLDEST, {"route": route, "now": now_us, "most": LITTLE}).all()
        if len(rows) < LITTLE:
            rows = [r for r in rows if (route, r.destination) not in shut.wheres]
            found += _rank(route, rows, dict.fromkeys(r.destination for r in rows))
            continue
        visited = _go_round(conn, route, now_us, most, cursors.get(route), shut)
        is_complete = is_complete and visited.is_complete
        if visited.last is not None:
            ahead[route] = visited.last
        if visited.due:
            rounds[route] = visited.due
            found += _rank(route, _oldest_of_each(conn, route, visited.due, now_us, most), visited.due)
    found.sort()
    del found[most:]
    for route, due in rounds.items():
        # What was cut off is where the next claim goes on.
        taken = [f.place for f in found if f.route == route and f.rank == 0]
        if not taken:
            ahead.update({route: cursors[route]} if route in cursors else {})
        elif len(taken) < len(due):
            ahead[route] = due[max(taken)]
    return found, ahead, is_complete


def _rank(route: str, rows: Iterable[Any], destinations: Iterable[str]) -> list[_Found]:
    """Rows, the oldest of each destination first, with their ranks; the destinations in the order of their turn."""
    places = {where: place for place, where in enumerate(destinations)}
    counts = dict.fromkeys(places, 0)
    found = []
    for r in rows:
        found.append(
            _Found(counts[r.destination], places[r.destination], r.due_at_us, r.message_id, r.destination, route)
        )
        counts[r.destination] += 1
    return found


@dataclass(slots=True)
class _Round:
    """due: destinations with something due, in the order of their turn.  last: the last one visited."""

    due: list[str]
    last: str | None
    is_complete: bool = False


def _go_round(conn: Connection, route: str, now_us: int, most: int, cursor: str | None, shut: _Shut) -> _Round:
    """Step over the destinations behind the cursor and, past the last one, over those before it."""
    found = _Round([], cursor)
    seen: set[str] = set()
    at, is_round = cursor, cursor is None
    while len(seen) < VISITS and len(found.due) < most:
        step = min(VISITS - len(seen), max(32, 2 * (most - len(found.due))))
        rows = _steps(conn, route, at, step)
        for where, due_at_us in rows:
            if where in seen:
                found.is_complete = True
                return found
            seen.add(where)
            at = found.last = where
            if due_at_us <= now_us and (route, where) not in shut.wheres:
                found.due.append(where)
            if is_round and where == cursor:
                found.is_complete = True
                return found
            if len(found.due) == most:
                return found
        if len(rows) < step:
            if is_round:
                found.is_complete = True
                return found
            at, is_round = None, True
    return found


def _steps(conn: Connection, route: str, after: str | None, most: int) -> list[Any]:
    if after is None:
        return list(conn.execute(_WALK, {"route": route, "most": most}))
    return list(conn.execute(_WALK_ON, {"route": route, "after": after, "most": most}))


def _oldest_of_each(conn: Connection, route: str, wheres: list[str], now_us: int, most: int) -> list[Any]:
    """An equal share of each, as many rows as are wanted together; of each the oldest first."""
    share = -(-most // len(wheres))
    listed = json.dumps(wheres) if conn.dialect.name == "sqlite" else wheres
    statement = _OLDEST_OF_EACH[conn.dialect.name]
    rows = list(conn.execute(statement, {"route": route, "wheres": listed, "now": now_us, "share": share}))
    return sorted(rows, key=lambda r: r.due_at_us)


# Expiry


_EXPIRED = (
    select(queue.c.message_id, queue.c.account_id)
    .where(_UNLEASED, queue.c.expires_at_us <= bindparam("now"))
    .order_by(queue.c.expires_at_us)
    .limit(bindparam("most"))
)
_LOCK_EXPIRED = (
    select(queue.c.message_id, queue.c.destination, queue.c.account_id, queue.c.cap_key)
    .where(
        queue.c.message_id.in_(bindparam("ids", expanding=True)),
        queue.c.expires_at_us + 0 <= bindparam("now"),
        _IS_UNLEASED,
    )
    .with_for_update(skip_locked=True)
)
_FIRST_EXPIRY = _first(queue.c.expires_at_us, _UNLEASED)


def expire(conn: Connection, now_us: int, body_keep_us: int, most: int = EXPIRE_AT_ONCE) -> int:
    """End what waits past its expiry, in whatever state and wherever it waits; how many recipients that were.

    What is leased is left alone: its attempt ends first.
    """
    old = conn.execute(_EXPIRED, {"now": now_us, "most": most}).all()
    if not old:
        return 0
    # Accounts are locked before queue rows, everywhere: two orders would be a deadlock.
    purses = money.lock(conn, {r.account_id for r in old})
    locked = conn.execute(_LOCK_EXPIRED, {"ids": sorted({r.message_id for r in old}), "now": now_us})
    rows = [Row(r.message_id, r.destination, r.account_id, r.cap_key) for r in locked]
    ledger_rows: list[money.LedgerRow] = []
    ended = end_waiting(conn, rows, "expired", now_us, body_keep_us, purses, ledger_rows)
    money.save(conn, purses.values(), ledger_rows)
    return ended


# When to look again


_ENDS = select(func.min(process.c.alive_until_us)).where(
    process.c.id.in_(select(queue.c.owner).where(queue.c.owner.is_not(None)))
)


def next_due_at_us(
    conn: Connection, now_us: int, exclude: Collection[str] = (), full: Collection[tuple[str, str]] = ()
) -> int | None:
    """See `delivery.job.Queue.next_due_at_us`."""
    shut = _shut(conn, exclude, full)
    times = [conn.execute(_FIRST_EXPIRY).scalar(), conn.execute(_ENDS).scalar()]
    for route, low, high in conn.execute(_ROUTES).all():
        if route in shut.routes:
            continue
        if low != high:
            times.append(_next_on(conn, route, now_us, shut))
        elif (route, low) not in shut.wheres:
            times.append(conn.execute(_FIRST_OF_ONE, {"route": route, "where": low}).scalar())
    known = [int(t) for t in times if t is not None and t < NEVER_US]
    return min(known) if known else None


def _next_on(conn: Connection, route: str, now_us: int, shut: _Shut) -> int | None:
    """When the first row is due on a route with several destinations, of what is open."""
    first = conn.execute(_FIRST, {"route": route, "most": 64}).all()
    for r in first:
        if (route, r.destination) not in shut.wheres:
            return int(r.due_at_us)
    if len(first) < 64:
        return None
    # What is shut stands before the rest: look at every destination once.
    soonest, at, seen = NEVER_US, None, 0
    while seen < LOOK_VISITS:
        rows = _steps(conn, route, at, VISITS)
        for where, due_at_us in rows:
            at = where
            if due_at_us < soonest and (route, where) not in shut.wheres:
                soonest = due_at_us
        if len(rows) < VISITS or soonest <= now_us:
            return soonest
        seen += len(rows)
    return min(soonest, now_us + LOOK_AGAIN_US)
