# SPDX-License-Identifier: Apache-2.0
"""The queue in figures, for whoever watches it.

`entries` reads one index from end to end and nothing else; `recipients` looks at every row that waits.  Both grow with
what waits, not with the log, and never lock anything.  Whoever asks for them decides how often that is worth it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, case, func, select

from hepmaild.storage.queue import SAME_ROW
from hepmaild.storage.schema import NEVER_US, queue, recipient
from hepmaild.storage.stats import route_label

_DUE = queue.c.due_at_us
_ROUTE = route_label().label("route")
_ENTRIES = select(
    _ROUTE,
    func.count().label("entries"),
    func.sum(case((_DUE >= NEVER_US, 1), else_=0)).label("leased"),
    func.sum(case((bindparam("now") >= _DUE, 1), else_=0)).label("due"),
    func.min(_DUE).label("first_due_at_us"),
).group_by(_ROUTE)
_RECIPIENTS = (
    select(
        _ROUTE,
        recipient.c.state,
        func.count().label("recipients"),
        func.sum(case((recipient.c.doubts > 0, 1), else_=0)).label("in_doubt"),
        func.min(queue.c.accepted_at_us).label("oldest_at_us"),
    )
    .join(recipient, SAME_ROW & recipient.c.due_at_us.is_not(None))
    .group_by(_ROUTE, recipient.c.state)
)


@dataclass(frozen=True, slots=True)
class Entries:
    """The queue rows of one route.  overdue_s: for how long the first of them is due, 0: none is."""

    leased: int
    due: int
    scheduled: int
    overdue_s: float


@dataclass(slots=True)
class Recipients:
    """The waiting recipients of one route, by state; those with an attempt in doubt; the age of the oldest message."""

    by_state: dict[str, int] = field(default_factory=dict)
    in_doubt: int = 0
    oldest_s: float = 0.0


def entries(conn: Connection, now_us: int) -> dict[str, Entries]:
    """By route, those that something waits on.  About 0.1 s for a million rows."""
    found = {}
    for r in conn.execute(_ENTRIES, {"now": now_us}):
        overdue_s = max(0, now_us - r.first_due_at_us) / 1e6
        leased, due = int(r.leased), int(r.due)
        found[r.route] = Entries(leased, due, r.entries - leased - due, overdue_s)
    return found


def recipients(conn: Connection, now_us: int) -> dict[str, Recipients]:
    """By route.  About a second for a million rows."""
    found: dict[str, Recipients] = {}
    for r in conn.execute(_RECIPIENTS):
        here = found.setdefault(r.route, Recipients())
        here.by_state[r.state] = r.recipients
        here.in_doubt += int(r.in_doubt)
        here.oldest_s = max(here.oldest_s, (now_us - r.oldest_at_us) / 1e6)
    return found
