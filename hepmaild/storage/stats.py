# SPDX-License-Identifier: Apache-2.0
"""The queue in figures, for the operator: how much waits where, since when, why, and how fast it goes.

What waits is counted in one pass over the queue; nothing else grows with it.  Rates come from the newest events, last
errors from the newest few of what waits: bounded, whatever there is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, case, func, literal, select

from hepmaild.own_routes import ALL, PREFIX, is_own, label_of
from hepmaild.storage import queue as rows_of
from hepmaild.storage.schema import NEVER_US, event, queue, recipient
from hepmaild.storage.settle import WAITING

SHOWN = 50  # destinations that are described; all are counted
RATE_US = 300_000_000
EVENTS = 10_000  # the newest events that rates are taken from
LAST_FEW = 20

# Ages in seconds; the times in queue are known as exactly as these are fine.
_AGES_S = (0, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 43200, 86400, 172_800, 259_200, 345_600)


@dataclass(slots=True)
class Group:
    """What waits on a route, or for one destination of it.  oldest_at: Unix µs.  ages: how many of each bucket."""

    route: str
    destination: str | None = None
    states: dict[str, int] = field(default_factory=dict)
    in_doubt: int = 0
    oldest_at: int | None = None
    ages: dict[int, int] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Recipients."""
        return sum(self.states.values())

    def add(self, r: Any) -> None:
        """Count a row of the pass."""
        self.states[r.state] = self.states.get(r.state, 0) + r.recipients
        self.in_doubt += int(r.in_doubt)
        self.oldest_at = r.oldest_at if self.oldest_at is None else min(self.oldest_at, r.oldest_at)
        self.ages[r.age] = self.ages.get(r.age, 0) + r.recipients

    def age_s(self, share: float, now_us: int) -> float | None:
        """How long at most that share of the recipients have waited; None: nothing waits."""
        if self.oldest_at is None:
            return None
        wanted, count = share * self.waiting, 0
        eldest_s = max(0.0, (now_us - self.oldest_at) / 1e6)
        for bucket in sorted(self.ages):
            here = self.ages[bucket]
            if count + here >= wanted:
                low = _AGES_S[bucket]
                high = _AGES_S[bucket + 1] if bucket + 1 < len(_AGES_S) else eldest_s
                high = max(low, min(high, eldest_s))
                return round(low + (high - low) * (wanted - count) / here, 1)
            count += here
        return round(eldest_s, 1)


@dataclass(slots=True)
class Rate:
    """Recipients in the newest attempts."""

    attempted: int = 0
    delivered: int = 0


def stats(conn: Connection, now_us: int, shown: int = SHOWN) -> dict[str, Any]:
    """Recipients that wait, by state, route and destination; the routes and the `shown` fullest destinations in full.

    The servers of accounts are one route, `own:*`, and `own_paused` of them are paused.  Takes some seconds for a
    million.
    """
    groups = _count(conn, now_us)
    routes: dict[str, Group] = {}
    by_destination: dict[str, int] = {}
    for group in groups:
        assert group.destination is not None
        by_destination[group.destination] = by_destination.get(group.destination, 0) + group.waiting
        _add_up(routes.setdefault(group.route, Group(group.route)), group)
    every_pause = rows_of.pauses(conn)
    paused = [p for p in every_pause if not is_own(p["route"])]
    rates, span_s = _rates(conn, now_us)
    for route in {p["route"] for p in paused} | {route for route, where in rates if where is None}:
        routes.setdefault(route, Group(route))
    fullest = sorted(groups, key=lambda g: (-g.waiting, g.route, g.destination))[:shown]
    describe = _Describer(conn, now_us, rates, span_s, {(p["route"], p["destination"]) for p in paused})
    by_state = dict.fromkeys(WAITING, 0)
    for group in routes.values():
        for state, count in group.states.items():
            by_state[state] = by_state.get(state, 0) + count
    leased = conn.execute(select(func.count()).select_from(queue).where(queue.c.owner.is_not(None))).scalar_one()
    return {
        "by_state": by_state,
        "leased": leased,
        "in_doubt": sum(g.in_doubt for g in routes.values()),
        "oldest_at": min((g.oldest_at for g in routes.values() if g.oldest_at is not None), default=None),
        "by_route": {name: group.waiting for name, group in sorted(routes.items()) if group.waiting},
        "by_destination": by_destination,
        "paused": paused,
        "own_paused": len(every_pause) - len(paused),
        "rate_over_s": span_s,
        "routes": [describe(group) for _, group in sorted(routes.items())],
        "destinations": [describe(group) for group in fullest],
    }


def _add_up(total: Group, part: Group) -> None:
    for state, count in part.states.items():
        total.states[state] = total.states.get(state, 0) + count
    for age, count in part.ages.items():
        total.ages[age] = total.ages.get(age, 0) + count
    total.in_doubt += part.in_doubt
    if part.oldest_at is not None:
        total.oldest_at = part.oldest_at if total.oldest_at is None else min(total.oldest_at, part.oldest_at)


def route_label() -> ColumnElement[str]:
    """A queue row's route as figures have it: see `own_routes`."""
    return case((queue.c.route.startswith(PREFIX), ALL), else_=queue.c.route)


def _domain(conn: Connection) -> ColumnElement[str]:
    """The destination; where one next hop takes everything, the domain of the address."""
    address = func.lower(recipient.c.address)
    if conn.dialect.name == "sqlite":
        domain = func.substr(address, func.instr(address, "@") + 1)
    else:
        domain = func.split_part(address, "@", 2)
    return case((queue.c.destination != "", queue.c.destination), else_=domain)


def _count(conn: Connection, now_us: int) -> list[Group]:
    """The pass: every recipient that waits, by route, destination, state and age."""
    borders = [(queue.c.accepted_at_us > now_us - age_s * 1_000_000, n) for n, age_s in enumerate(_AGES_S[1:])]
    age = case(*borders, else_=literal(len(_AGES_S) - 1)).label("age")
    where = _domain(conn).label("destination")
    found: dict[tuple[str, str], Group] = {}
    route = route_label().label("route")
    for r in conn.execute(
        select(
            route,
            where,
            recipient.c.state,
            age,
            func.count().label("recipients"),
            func.sum(case((recipient.c.doubts > 0, 1), else_=0)).label("in_doubt"),
            func.min(queue.c.accepted_at_us).label("oldest_at"),
        )
        .select_from(queue.join(recipient, rows_of.SAME_ROW & recipient.c.due_at_us.is_not(None)))
        .group_by(route, where, recipient.c.state, age)
    ):
        found.setdefault((r.route, r.destination), Group(r.route, r.destination)).add(r)
    return list(found.values())


_RECENT = select(event.c.message_id, event.c.at_us, event.c.data).where(
    event.c.kind == "attempt",
    event.c.seq > select(func.max(event.c.seq)).scalar_subquery() - EVENTS,
    event.c.at_us > bindparam("since"),
)

Rates = dict[tuple[str, str | None], Rate]


def _rates(conn: Connection, now_us: int) -> tuple[Rates, float]:
    """Recipients attempted and delivered, by route and (route, destination); and over how many seconds."""
    rates: Rates = {}
    parsed = []
    for r in conn.execute(_RECENT, {"since": now_us - RATE_US}):
        data = json.loads(r.data)
        route = label_of(str(data.get("route", "")))
        parsed.append((r.message_id, route, data.get("destination", ""), data.get("outcomes", [])))
    domains = _domains_of(conn, [m for m, _, where, _ in parsed if not where])
    for message_id, route, where, outcomes in parsed:
        for o in outcomes if isinstance(outcomes, list) else ():
            destination = where or domains.get((message_id, o["recipient"]), "")
            for key in ((route, None), (route, destination)):
                rate = rates.setdefault(key, Rate())
                rate.attempted += 1
                rate.delivered += o["result"] == "delivered"
    return rates, _span_s(conn, now_us)


def _span_s(conn: Connection, now_us: int) -> float:
    """Over how many seconds the rates are: less than was meant when the newest events do not reach back so far."""
    newest = conn.execute(select(func.max(event.c.seq))).scalar()
    if newest is None or newest <= EVENTS:
        return RATE_US / 1e6
    first = select(event.c.at_us).where(event.c.seq > newest - EVENTS).order_by(event.c.seq).limit(1)
    return round(min(RATE_US, max(1_000_000, now_us - int(conn.execute(first).scalar_one()))) / 1e6, 1)


def _domains_of(conn: Connection, ids: list[str]) -> dict[tuple[str, int], str]:
    found: dict[tuple[str, int], str] = {}
    for start in range(0, len(ids), 500):
        for m, n, address in conn.execute(
            select(recipient.c.message_id, recipient.c.n, recipient.c.address).where(
                recipient.c.message_id.in_(ids[start : start + 500])
            )
        ):
            found[m, n] = str(address).rpartition("@")[2].lower()
    return found


@dataclass(frozen=True, slots=True)
class _Describer:
    conn: Connection
    now_us: int
    rates: Rates
    span_s: float
    paused: set[tuple[str, str]]
    last_few: dict[str, Sequence[Any]] = field(default_factory=dict)  # of each route: one look for all its destinations

    def __call__(self, group: Group) -> dict[str, Any]:
        """A group as it is shown."""
        rate = self.rates.get((group.route, group.destination), Rate())
        whole = (group.route, "") in self.paused
        error, error_at = self._last_error(group)
        shown: dict[str, Any] = {"route": group.route}
        if group.destination is not None:
            shown["destination"] = group.destination
        return {
            **shown,
            "waiting": group.waiting,
            **{state: group.states.get(state, 0) for state in WAITING},
            "in_doubt": group.in_doubt,
            "oldest_at": group.oldest_at,
            "wait_p50_s": group.age_s(0.5, self.now_us),
            "wait_p95_s": group.age_s(0.95, self.now_us),
            "attempted_per_minute": round(60 * rate.attempted / self.span_s, 2),
            "delivered_per_minute": round(60 * rate.delivered / self.span_s, 2),
            "last_error": error,
            "last_error_at": error_at,
            "paused": whole or (group.route, group.destination or "") in self.paused,
        }

    def _last_error(self, group: Group) -> tuple[str | None, int | None]:
        """The newest reply among those of what waits that are due last: they were tried last."""
        newest: tuple[str | None, int | None] = (None, None)
        for r in self._last_few(group):
            here = group.destination in (None, r.destination, r.address.rpartition("@")[2].lower())
            if here and r.last_reply is not None and (newest[1] is None or r.changed_at_us > newest[1]):
                newest = (r.last_reply, r.changed_at_us)
        return newest

    def _last_few(self, group: Group) -> Sequence[Any]:
        due_last = queue.c.due_at_us.desc()
        if group.route != ALL and group.destination is not None:
            here = (queue.c.route == group.route, queue.c.destination == group.destination)
            of_one = select(queue.c.message_id).where(*here, queue.c.due_at_us < NEVER_US)
            found = self._recipients_of(of_one.order_by(due_last).limit(LAST_FEW))
            if found:
                return found
        if group.route not in self.last_few:
            of_route = rows_of.of_accounts(self.conn) if group.route == ALL else queue.c.route == group.route
            idle = select(queue.c.message_id).where(of_route, queue.c.owner.is_(None))
            self.last_few[group.route] = self._recipients_of(idle.order_by(due_last).limit(LAST_FEW))
        return self.last_few[group.route]

    def _recipients_of(self, messages: Select[str]) -> Sequence[Any]:
        ids = list(self.conn.execute(messages).scalars())
        if not ids:
            return ()
        columns = (recipient.c.address, recipient.c.destination, recipient.c.last_reply, recipient.c.changed_at_us)
        waiting = and_(recipient.c.message_id.in_(ids), recipient.c.due_at_us.is_not(None))
        return self.conn.execute(select(*columns).where(waiting)).all()
