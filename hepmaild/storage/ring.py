# SPDX-License-Identifier: Apache-2.0
"""What is due, found by index: from destination to destination, however much waits for any of them.

As long as little is due on a route all of it is looked at, the oldest first.  Where much is due, a claim steps from
destination to destination, begins where the last one ended (a cursor, kept by the caller), and takes a few rows of
each.  What is excluded, full or paused costs one step, never a look at its backlog.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, ColumnElement, Connection, Select, String, Text, bindparam, func, literal, select, true

from hepmaild.storage.bulk import Query
from hepmaild.storage.schema import NEVER_US, pause, queue

LITTLE = 512  # due rows of a route up to which all are looked at
VISITS = 512  # destinations that one claim steps over at most
LOOK_VISITS = 4096  # destinations that are looked at for the next due time; beyond that it is looked again soon
LOOK_AGAIN_US = 1_000_000


class Found(NamedTuple):
    """A due row.  Sorted by these: the first row of each destination, destination by destination; then the second."""

    rank: int
    place: int
    due_at_us: int
    message_id: str
    destination: str
    route: str


def least(column: ColumnElement[Any], *where: ColumnElement[bool]) -> Select[Any]:
    """The least value.  Not by min(): PostgreSQL reads every row for that when it thinks that there is but one."""
    return select(column).where(*where).order_by(column).limit(1)


def _routes() -> Select[Any]:
    """Every route that something waits on, with the first and the last of its destinations: three steps for each."""
    routes = select(least(queue.c.route).scalar_subquery().label("route")).cte("routes", recursive=True)
    following = least(queue.c.route, queue.c.route > routes.c.route).correlate(routes).scalar_subquery()
    routes = routes.union_all(select(following).where(routes.c.route.is_not(None)))
    here = queue.c.route == routes.c.route
    low = least(queue.c.destination, here).correlate(routes).scalar_subquery()
    last = select(queue.c.destination).where(here).order_by(queue.c.destination.desc()).limit(1)
    high = last.correlate(routes).scalar_subquery()
    return select(routes.c.route, low.label("low"), high.label("high")).where(routes.c.route.is_not(None))


def _walk(*, goes_on: bool) -> Select[Any]:
    """The next destinations of a route (behind `after`, or from the first) and when each is due: two steps for each."""
    here = queue.c.route == bindparam("route")
    behind = (queue.c.destination > bindparam("after"),) if goes_on else ()
    first = least(queue.c.destination, here, *behind).scalar_subquery()
    steps = select(first.label("destination"), literal(1).label("n")).cte("steps", recursive=True)
    following = least(queue.c.destination, here, queue.c.destination > steps.c.destination)
    steps = steps.union_all(
        select(following.correlate(steps).scalar_subquery(), steps.c.n + 1).where(
            steps.c.destination.is_not(None), steps.c.n < bindparam("most")
        )
    )
    due = least(queue.c.due_at_us, here, queue.c.destination == steps.c.destination)
    return select(steps.c.destination, due.correlate(steps).scalar_subquery().label("due_at_us")).where(
        steps.c.destination.is_not(None)
    )


_ROUTES = Query(_routes())
_WALK, _WALK_ON = Query(_walk(goes_on=False)), Query(_walk(goes_on=True))
_COLUMNS = (queue.c.message_id, queue.c.destination, queue.c.due_at_us)
_ON_ROUTE = queue.c.route == bindparam("route")
UNLEASED = queue.c.owner.is_(None)
_OLDEST_OF_ONE = Query(
    select(*_COLUMNS)
    .where(_ON_ROUTE, queue.c.destination == bindparam("where"), queue.c.due_at_us <= bindparam("now"))
    .order_by(queue.c.due_at_us)
    .limit(bindparam("most"))
)
_OLDEST = Query(
    select(*_COLUMNS)
    .where(_ON_ROUTE, UNLEASED, queue.c.due_at_us <= bindparam("now"))
    .order_by(queue.c.due_at_us)
    .limit(bindparam("most"))
)
_FIRST = Query(select(*_COLUMNS).where(_ON_ROUTE, UNLEASED).order_by(queue.c.due_at_us).limit(bindparam("most")))
_FIRST_OF_ONE = Query(least(queue.c.due_at_us, _ON_ROUTE, queue.c.destination == bindparam("where")))


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


def _pairs() -> Any:
    """The pairs of the arrays `routes` and `wheres`."""
    arrays = (bindparam(name, type_=ARRAY(Text)) for name in ("routes", "wheres"))
    return func.unnest(*arrays).table_valued("route", "destination", name="pairs").render_derived()


def _oldest_of_pairs() -> Select[Any]:
    """Of pairs of a route and a destination the `most` first rows: the oldest of each, then the second ones."""
    pairs = _pairs()
    rank = func.row_number().over(order_by=queue.c.due_at_us).label("rank")
    here = (queue.c.route == pairs.c.route, queue.c.destination == pairs.c.destination)
    oldest = (
        select(*_COLUMNS, queue.c.route, rank)
        .where(*here, queue.c.due_at_us <= bindparam("now"))
        .order_by(queue.c.due_at_us)
        .limit(bindparam("most"))
        .lateral("oldest")
    )
    found = select(oldest).select_from(pairs.join(oldest, true()))
    return found.order_by(oldest.c.rank, oldest.c.due_at_us, oldest.c.message_id).limit(bindparam("most"))


def _first_of_pairs() -> Select[Any]:
    """When the first row of any of them is due."""
    pairs = _pairs()
    here = (queue.c.route == pairs.c.route, queue.c.destination == pairs.c.destination)
    first = least(queue.c.due_at_us, *here).correlate(pairs).scalar_subquery().label("due_at_us")
    firsts = select(first).select_from(pairs).subquery("firsts")
    return select(func.min(firsts.c.due_at_us))


# PostgreSQL's: there each statement is a round trip, and every account's own server is a route.
_OLDEST_OF_PAIRS, _FIRST_OF_PAIRS = Query(_oldest_of_pairs()), Query(_first_of_pairs())

_OLDEST_OF_EACH = {"sqlite": Query(_oldest_of_each_sqlite()), "postgresql": Query(_oldest_of_each_postgresql())}

_PAUSED = Query(select(pause.c.route, pause.c.destination))


@dataclass(frozen=True, slots=True)
class Shut:
    """What nobody is to work on now; of that, what somebody paused, as (route, destination or "")."""

    routes: set[str]
    wheres: set[tuple[str, str]]
    paused: frozenset[tuple[str, str]]


def routes(conn: Connection) -> list[str]:
    """Every route that something waits on, in the order of the index."""
    return [r.route for r in _ROUTES.ask(conn)]


def what_is_shut(conn: Connection, exclude: Collection[str], full: Collection[tuple[str, str]]) -> Shut:
    """What the caller has no room for, and what is paused."""
    paused = frozenset((route, destination) for route, destination in _PAUSED.ask(conn))
    shut = Shut(set(exclude), set(full), paused)
    for route, destination in paused:
        if destination:
            shut.wheres.add((route, destination))
        else:
            shut.routes.add(route)
    return shut


def look(
    conn: Connection, now_us: int, most: int, shut: Shut, cursors: Mapping[str, str]
) -> tuple[list[Found], dict[str, str], bool]:
    """Up to `most` due rows, the cursors behind them, and whether nothing due was left unseen."""
    found: list[Found] = []
    ahead = dict(cursors)
    rounds: dict[str, list[str]] = {}
    only: dict[str, str] = {}
    is_complete = True
    for route, low, high in _ROUTES.ask(conn):
        if route in shut.routes:
            continue
        if low == high:
            if (route, low) not in shut.wheres:
                only[route] = low
            continue
        rows = _OLDEST.ask(conn, route=route, now=now_us, most=LITTLE)
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
    found += _oldest_of_only(conn, only, now_us, most)
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


def _oldest_of_only(conn: Connection, only: Mapping[str, str], now_us: int, most: int) -> list[Found]:
    """The oldest rows of routes with one destination each."""
    found: list[Found] = []
    if conn.dialect.name == "sqlite":
        for route, where in only.items():
            found += _rank(route, _OLDEST_OF_ONE.ask(conn, route=route, where=where, now=now_us, most=most), [where])
    elif only:
        of_route: dict[str, list[Any]] = {}
        pairs = {"routes": list(only), "wheres": list(only.values())}
        for r in _OLDEST_OF_PAIRS.ask(conn, **pairs, now=now_us, most=most):
            of_route.setdefault(r.route, []).append(r)
        for route, rows in of_route.items():
            found += _rank(route, rows, [only[route]])
    return found


def _rank(route: str, rows: Iterable[Any], destinations: Iterable[str]) -> list[Found]:
    """Rows, the oldest of each destination first, with their ranks; the destinations in the order of their turn."""
    places = {where: place for place, where in enumerate(destinations)}
    counts = dict.fromkeys(places, 0)
    found = []
    for r in rows:
        found.append(
            Found(counts[r.destination], places[r.destination], r.due_at_us, r.message_id, r.destination, route)
        )
        counts[r.destination] += 1
    return found


@dataclass(slots=True)
class _Round:
    """due: destinations with something due, in the order of their turn.  last: the last one visited."""

    due: list[str]
    last: str | None
    is_complete: bool = False


def _go_round(conn: Connection, route: str, now_us: int, most: int, cursor: str | None, shut: Shut) -> _Round:
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


def _steps(conn: Connection, route: str, after: str | None, most: int) -> Sequence[Any]:
    if after is None:
        return _WALK.ask(conn, route=route, most=most)
    return _WALK_ON.ask(conn, route=route, after=after, most=most)


def _oldest_of_each(conn: Connection, route: str, wheres: list[str], now_us: int, most: int) -> list[Any]:
    """An equal share of each, of each the oldest first; what some leave is the others'."""
    share = -(-most // len(wheres))
    rows = _take_share(conn, route, wheres, now_us, share)
    more = [where for where, count in Counter(r.destination for r in rows).items() if count == share]
    if more and len(rows) < most:
        more_rows = _take_share(conn, route, more, now_us, share - (len(rows) - most) // len(more))
        rows = [r for r in rows if r.destination not in set(more)] + more_rows
    return sorted(rows, key=lambda r: r.due_at_us)


def _take_share(conn: Connection, route: str, wheres: list[str], now_us: int, share: int) -> list[Any]:
    listed = json.dumps(wheres) if conn.dialect.name == "sqlite" else wheres
    statement = _OLDEST_OF_EACH[conn.dialect.name]
    return list(statement.ask(conn, route=route, wheres=listed, now=now_us, share=share))


def first_due_at_us(conn: Connection, now_us: int, shut: Shut) -> int | None:
    """When the first row is due of what is not shut; None: there is none.  NEVER_US and later: what is leased."""
    times: list[int | None] = []
    only: dict[str, str] = {}
    for route, low, high in _ROUTES.ask(conn):
        if route in shut.routes:
            continue
        if low != high:
            times.append(_next_on(conn, route, now_us, shut))
        elif (route, low) not in shut.wheres:
            only[route] = low
    if conn.dialect.name == "sqlite":
        times += [_FIRST_OF_ONE.value(conn, route=route, where=where) for route, where in only.items()]
    elif only:
        times.append(_FIRST_OF_PAIRS.value(conn, routes=list(only), wheres=list(only.values())))
    return min((int(t) for t in times if t is not None), default=None)


def _next_on(conn: Connection, route: str, now_us: int, shut: Shut) -> int | None:
    """When the first row is due on a route with several destinations, of what is open."""
    first = _FIRST.ask(conn, route=route, most=64)
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
