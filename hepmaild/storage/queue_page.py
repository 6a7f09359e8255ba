# SPDX-License-Identifier: Apache-2.0
"""What waits, page by page, for the operator: by indexes and in bounded steps, so that a million waiting messages make
no page slow.  A page that has to look through too much says so and goes on from there."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, func, or_, select

from hepmaild.own_routes import ALL, PREFIX, is_own, label_of
from hepmaild.storage import audit, ring
from hepmaild.storage import queue as rows
from hepmaild.storage.audit import Actor
from hepmaild.storage.schema import NEVER_US, message, queue, recipient

PAGE = 50
LOOK = 2000  # queue rows that are gone through for one page
STATES = ("queued", "deferred", "capped", "held")
UNDER_WAY = "under_way"


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the order of due times."""

    due_at_us: int
    message_id: str
    destination: str

    def __str__(self) -> str:
        return f"{self.due_at_us}.{self.message_id}.{self.destination}"


def read_cursor(text: str) -> Cursor | None:
    """What `str(cursor)` wrote; None: nothing that we wrote."""
    due, _, rest = text.partition(".")
    message_id, _, destination = rest.partition(".")
    if not (due.isascii() and due.isdigit() and len(due) < 20 and len(message_id) == 16):
        return None
    return Cursor(int(due), message_id, destination) if int(due) < 2**63 else None


@dataclass(frozen=True, slots=True)
class Wish:
    """What to show.  state: one of `STATES` or `UNDER_WAY`; "": all that nobody works on.  routes: those there are."""

    routes: tuple[str, ...]
    route: str = ""
    destination: str = ""
    state: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """recipients: in order.  after: where to go on; None: this is the end.  looked: rows that were gone through."""

    recipients: list[dict[str, Any]]
    after: Cursor | None
    looked: int


def page(conn: Connection, wish: Wish, after: Cursor | None = None) -> Waiting:
    """Waiting recipients, those due first first; held and capped ones the last to expire first."""
    falling = wish.state in {"held", "capped"}  # those are due at their expiry, behind everything else
    found, end = _rows(conn, wish, after, falling=falling)
    shown: list[dict[str, Any]] = []
    for start in range(0, len(found), 200):
        piece = found[start : start + 200]
        ids = sorted({r.message_id for r in piece})
        wanted = and_(recipient.c.message_id.in_(ids), recipient.c.due_at_us.is_not(None))
        if wish.state in STATES:
            wanted = and_(wanted, recipient.c.state == wish.state)
        by_row: dict[tuple[str, str], list[Any]] = {}
        for r in conn.execute(select(recipient).where(wanted).order_by(recipient.c.message_id, recipient.c.n)):
            if not wish.destination or r.destination == wish.destination or _is_at(r.address, wish.destination):
                by_row.setdefault((r.message_id, r.destination), []).append(r)
        for n, row in enumerate(piece, start + 1):
            here = by_row.get((row.message_id, row.destination), [])
            shown += [_shown(row, r) for r in here]
            if len(shown) >= PAGE:
                more = n < len(found) or not end
                return Waiting(shown, _cursor(row) if more else None, n)
    return Waiting(shown, None if end or not found else _cursor(found[-1]), len(found))


def _cursor(row: Any) -> Cursor:
    return Cursor(row.due_at_us, row.message_id, row.destination)


def _is_at(address: str, domain: str) -> bool:
    return address.rpartition("@")[2].lower() == domain


def _shown(row: Any, r: Any) -> dict[str, Any]:
    under_way = row.owner is not None
    return {
        **rows.recipient_row(r),
        "route": row.route,
        "account_id": row.account_id,
        "state": "leased" if under_way else r.state,
        "marked": bool(row.marked),
        "since_us": row.due_at_us - NEVER_US if under_way and row.due_at_us >= NEVER_US else None,
        "accepted_at_us": row.accepted_at_us,
        "expires_at_us": row.expires_at_us,
    }


def _rows(conn: Connection, wish: Wish, after: Cursor | None, *, falling: bool) -> tuple[list[Any], bool]:
    """The next queue rows in the order of their due times, and whether there are no more.

    One index has a route's rows in that order: what concerns all routes is merged from them.
    """
    look = LOOK if wish.destination or wish.state in STATES else PAGE  # else each row has something to show
    if wish.state == UNDER_WAY:
        query = select(queue).where(queue.c.owner.is_not(None))
        if wish.route:
            here = _quiet(queue.c.route)
            query = query.where(here.startswith(PREFIX) if wish.route == ALL else here == wish.route)
        found = _ask(conn, query, after, look, falling=False)
    else:
        parts = []
        for route in (wish.route,) if wish.route else wish.routes:
            here = rows.of_accounts(conn) if route == ALL else queue.c.route == route
            query = select(queue).where(here, queue.c.owner.is_(None))
            if wish.destination and _has_destinations(conn, route):
                query = query.where(queue.c.destination == wish.destination)
            parts.append(_ask(conn, query, after, look, falling=falling))
        order: Callable[[Any], Any] = lambda r: (r.due_at_us, r.message_id, r.destination)  # noqa: E731
        found = list(heapq.merge(*parts, key=order, reverse=falling))
    return found[:look], len(found) <= look


def _quiet(column: Any) -> Any:
    """A column that no index is used for."""
    return column.concat("")


def _has_destinations(conn: Connection, route: str) -> bool:
    """Whether the route is one of kind mx, as far as what waits tells."""
    first = select(queue.c.destination).where(queue.c.route == route).order_by(queue.c.destination.desc()).limit(1)
    return bool(conn.execute(first).scalar())


def _ask(conn: Connection, query: Any, after: Cursor | None, look: int, *, falling: bool) -> list[Any]:
    columns = (queue.c.due_at_us, queue.c.message_id, queue.c.destination)
    if after is not None:
        due, m, d = columns
        if falling:
            later = or_(m < after.message_id, and_(m == after.message_id, d < after.destination))
            query = query.where(due <= after.due_at_us, or_(due < after.due_at_us, later))
        else:
            later = or_(m > after.message_id, and_(m == after.message_id, d > after.destination))
            query = query.where(due >= after.due_at_us, or_(due > after.due_at_us, later))
    ordered = query.order_by(*(column.desc() if falling else column for column in columns))
    return list(conn.execute(ordered.limit(look + 1)))


# Changes, with their audit rows


def change_message(
    conn: Connection, actor: Actor, deed: str, message_id: str, now_us: int, body_keep_us: int
) -> dict[str, Any]:
    """retry, hold, release or cancel one message, whosever it is; a row in its account's audit log."""
    account_id = conn.execute(select(message.c.account_id).where(message.c.id == message_id)).scalar_one_or_none()
    if account_id is None:
        raise ValueError(f"there is no message {message_id}")
    match deed:
        case "retry":
            done = rows.retry(conn, message_id, now_us)
        case "hold":
            done = rows.hold(conn, message_id, now_us)
        case "release":
            done = rows.release(conn, message_id, now_us)
        case "cancel":
            done = rows.cancel(conn, message_id, now_us, body_keep_us)
        case _:
            raise ValueError(f"nobody can {deed} a message")
    audit.note(
        conn, account_id=account_id, actor=actor, action=f"message.{deed}", subject=message_id, data={}, now_us=now_us
    )
    return done


def change_route(
    conn: Connection, actor: Actor, deed: str, route: str, destination: str, note: str, now_us: int
) -> dict[str, Any]:
    """pause or resume a route, or one destination of it; a row in the service's audit log."""
    if deed == "pause":
        done = rows.pause_route(conn, route, destination, note, now_us)
    else:
        done = rows.resume(conn, route, destination)
    data = {"destination": destination, "note": note} if deed == "pause" else {"destination": destination}
    audit.note(
        conn, account_id=audit.SERVICE, actor=actor, action=f"queue.{deed}", subject=route, data=data, now_us=now_us
    )
    return done


def note_bulk(
    conn: Connection, actor: Actor, deed: str, route: str, destination: str, counts: dict[str, int], now_us: int
) -> None:
    """That somebody had many messages changed, and how many it were."""
    data = {"destination": destination, **counts}
    audit.note(
        conn, account_id=audit.SERVICE, actor=actor, action=f"queue.{deed}", subject=route, data=data, now_us=now_us
    )


def waiting_routes(conn: Connection) -> tuple[str, ...]:
    """The routes that something waits on, by some steps down the index for each; servers of accounts as `own:*`.

    SQLite, which orders words by their letters' numbers, steps over those servers.
    """
    found: dict[str, None] = {}
    if conn.dialect.name == "sqlite":
        route: str | None = ""
        while route is not None:
            last = PREFIX + chr(0x10FFFF) if is_own(route) else route
            route = conn.execute(select(func.min(queue.c.route)).where(queue.c.route > last)).scalar()
            if route is not None:
                found[label_of(route)] = None
    else:
        found = dict.fromkeys(map(label_of, ring.routes(conn)))
    return (*(route for route in found if route != ALL), *(route for route in found if route == ALL))


__all__ = [
    "Cursor",
    "Waiting",
    "Wish",
    "change_message",
    "change_route",
    "note_bulk",
    "page",
    "read_cursor",
    "waiting_routes",
]
