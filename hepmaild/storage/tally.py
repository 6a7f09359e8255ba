# SPDX-License-Identifier: Apache-2.0
"""How many messages an account sent in each minute and hour, and what became of them: what charts are drawn from.

Counting a million messages takes a second, so what is over is counted once, behind everybody's back (`tallier`), from
`message` by the time of acceptance: each closed minute once, then again for as long as something of it waits, ever less
often.  Minutes that are final and a day old are folded into hours.  The path of a message pays nothing for it.

What is younger, or not final and little, is counted when somebody looks (`counts`): so a small account always sees the
truth, and a large one is a minute behind at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hepmaild.config import DAY_US
from hepmaild.storage.bulk import Bulk
from hepmaild.storage.schema import counter, message, tally

MINUTE_US = 60_000_000
HOUR_US = 3_600_000_000
MINUTE_S, HOUR_S = 60, 3600
CURSOR = "tally"  # in `counter`: up to where closed minutes are counted
CLOSED_US = 30_000_000  # a minute is closed when no unit can still bring a message of it
AHEAD_US = MINUTE_US  # of the clock, as far as those of several processes may differ
STEP_BACK_US = 5 * MINUTE_US  # a round comes every minute
STRETCH = 20_000  # messages that one step counts, about
RECOUNTED = 100  # minutes of accounts in one step
FOLDED = 500
KEPT_US = 32 * DAY_US
FOLD_AGE_US = 25 * HOUR_US
MAX_PAUSE_US = 6 * HOUR_US
LIVE_AGE_US = 20 * HOUR_US  # younger than any plan lets the log forget
LIVE = 2_000  # unsettled messages that are counted while somebody looks
LIVE_MOST = 20_000  # and with those that are too young to be counted otherwise

IN_DOUBT = ("in_doubt",)
FAILED = ("failed", "expired", "cancelled")


@dataclass(slots=True)
class Count:
    """Messages accepted in a stretch of time that begins then, by what became of them."""

    at_us: int
    sent: int = 0
    waiting: int = 0
    in_doubt: int = 0
    failed: int = 0

    @property
    def queued(self) -> int:
        """What is not final."""
        return self.waiting + self.in_doubt

    @property
    def total(self) -> int:
        """All of them."""
        return self.sent + self.waiting + self.in_doubt + self.failed

    def add(self, state: str, messages: int) -> None:
        """Count messages in this state."""
        if state == "sent":
            self.sent += messages
        elif state in FAILED:
            self.failed += messages
        elif state in IN_DOUBT:
            self.in_doubt += messages
        else:
            self.waiting += messages

    def take(self, other: Count) -> None:
        """Add another one's."""
        self.sent += other.sent
        self.waiting += other.waiting
        self.in_doubt += other.in_doubt
        self.failed += other.failed


_GONE = Bulk(
    delete(tally).where(
        tally.c.account_id == bindparam("account"),
        tally.c.span_s == bindparam("span"),
        tally.c.at_us == bindparam("at"),
    ),
    "account",
    "span",
    "at",
)

Counted = dict[tuple[str, int], Count]  # by account and minute


def minute_of(at_us: int) -> int:
    """The beginning of its minute."""
    return at_us - at_us % MINUTE_US


# Behind everybody's back


def next_stretch(conn: Connection, now_us: int) -> tuple[int | None, int, int] | None:
    """What is to be counted next: the cursor as it stands, from when and until when; None: all is counted.

    About `STRETCH` messages, and whole minutes always.  Where the clock was put back so goes the cursor, for what is
    accepted from now on; a minute that is counted again is written anew.
    """
    cursor = conn.execute(select(counter.c.value).where(counter.c.name == CURSOR)).scalar_one_or_none()
    closed_us = minute_of(now_us - CLOSED_US)
    if cursor is not None and cursor > now_us + AHEAD_US:
        # The clock was ahead when that was written, and was put back: what is accepted now would never be counted.
        return cursor, closed_us - STEP_BACK_US, closed_us - STEP_BACK_US
    if cursor is not None and cursor >= closed_us:
        return None
    messages = select(message.c.accepted_at_us).order_by(message.c.accepted_at_us)
    first = conn.execute(messages.where(message.c.accepted_at_us >= (cursor or 0)).limit(1)).scalar_one_or_none()
    if first is None or first >= closed_us:
        return cursor, closed_us, closed_us
    from_us = minute_of(first)
    last = conn.execute(
        messages.where(message.c.accepted_at_us >= from_us).limit(1).offset(STRETCH)
    ).scalar_one_or_none()
    until_us = closed_us if last is None else min(closed_us, max(minute_of(last), from_us + MINUTE_US))
    return cursor, from_us, until_us


def count(conn: Connection, from_us: int, until_us: int) -> Counted:
    """All accounts' messages accepted from then until then, by minute."""
    minute = message.c.accepted_at_us // MINUTE_US
    rows = conn.execute(
        select(message.c.account_id, minute.label("minute"), message.c.state, func.count().label("messages"))
        .where(message.c.accepted_at_us >= from_us, message.c.accepted_at_us < until_us)
        .group_by(message.c.account_id, minute, message.c.state)
    )
    found: Counted = {}
    for account_id, n, state, messages in rows:
        at_us = int(n) * MINUTE_US
        found.setdefault((account_id, at_us), Count(at_us)).add(state, messages)
    return found


def keep(conn: Connection, cursor: int | None, until_us: int, counted: Counted, now_us: int) -> bool:
    """Write what was counted and move the cursor; False: another process has moved it meanwhile."""
    make: Any = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    conn.execute(make(counter).values(name=CURSOR, value=-1).on_conflict_do_nothing())
    here = conn.execute(select(counter.c.value).where(counter.c.name == CURSOR).with_for_update()).scalar_one()
    if here != (-1 if cursor is None else cursor):
        return False
    conn.execute(update(counter).where(counter.c.name == CURSOR).values(value=until_us))
    if counted:
        rows = [_row(account_id, c, now_us) for (account_id, _), c in counted.items()]
        insertion = make(tally)
        new = {name: insertion.excluded[name] for name in ("sent", "waiting", "in_doubt", "failed", "recount_at_us")}
        conn.execute(insertion.on_conflict_do_update(index_elements=["account_id", "span_s", "at_us"], set_=new), rows)
    return True


def _row(account_id: str, c: Count, now_us: int) -> dict[str, Any]:
    return {
        "account_id": account_id,
        "span_s": MINUTE_S,
        "at_us": c.at_us,
        "sent": c.sent,
        "waiting": c.waiting,
        "in_doubt": c.in_doubt,
        "failed": c.failed,
        "recount_at_us": _recount_at_us(c, now_us),
    }


def _recount_at_us(c: Count, now_us: int) -> int | None:
    """The longer something waits, the less often it is looked at."""
    if not c.queued:
        return None
    return now_us + min(max((now_us - c.at_us) // 10, MINUTE_US), MAX_PAUSE_US)


def recount(conn: Connection, now_us: int) -> Counted:
    """Minutes of accounts of which something waited, counted anew; those that are due, at most `RECOUNTED`."""
    due = conn.execute(
        select(tally)
        .where(tally.c.recount_at_us.is_not(None), tally.c.recount_at_us <= now_us)
        .order_by(tally.c.recount_at_us)
        .limit(RECOUNTED)
    ).all()
    return {(r.account_id, r.at_us): _recounted(conn, r) for r in due}


def _recounted(conn: Connection, r: Any) -> Count:
    """What was final stays counted, also when the log has dropped it meanwhile."""
    found = _count_of(conn, r.account_id, r.at_us, r.at_us + MINUTE_US).get(r.at_us, Count(r.at_us))
    found.sent, found.failed = max(found.sent, r.sent), max(found.failed, r.failed)
    return found


def keep_recount(conn: Connection, counted: Counted, now_us: int) -> None:
    """Write them, where they still stand."""
    for (account_id, at_us), c in counted.items():
        values = _row(account_id, c, now_us)
        conn.execute(
            update(tally)
            .where(tally.c.account_id == account_id, tally.c.span_s == MINUTE_S, tally.c.at_us == at_us)
            .values(**{name: values[name] for name in ("sent", "waiting", "in_doubt", "failed", "recount_at_us")})
        )


def fold(conn: Connection, now_us: int) -> int:
    """Put old minutes of which all is final into their hours; how many (at most `FOLDED`)."""
    conn.execute(select(counter.c.value).where(counter.c.name == CURSOR).with_for_update()).all()
    old = conn.execute(
        select(tally)
        .where(tally.c.span_s == MINUTE_S, tally.c.at_us < now_us - FOLD_AGE_US, tally.c.recount_at_us.is_(None))
        .order_by(tally.c.at_us)
        .limit(FOLDED)
    ).all()
    hours: Counted = {}
    for r in old:
        at_us = r.at_us - r.at_us % HOUR_US
        hours.setdefault((r.account_id, at_us), Count(at_us)).take(_of(r))
    _GONE.run(conn, [(r.account_id, MINUTE_S, r.at_us) for r in old])
    for (account_id, at_us), c in hours.items():
        added = update(tally).where(_is(account_id, HOUR_S, at_us))
        sums = {name: tally.c[name] + getattr(c, name) for name in ("sent", "waiting", "in_doubt", "failed")}
        if not conn.execute(added.values(**sums)).rowcount:
            conn.execute(insert(tally).values(**{**_row(account_id, c, now_us), "span_s": HOUR_S}))
    return len(old)


def prune(conn: Connection, now_us: int) -> int:
    """Forget hours that no chart shows any more; how many (at most `FOLDED`)."""
    old = conn.execute(
        select(tally.c.account_id, tally.c.at_us)
        .where(tally.c.span_s == HOUR_S, tally.c.at_us < now_us - KEPT_US)
        .limit(FOLDED)
    ).all()
    _GONE.run(conn, [(account_id, HOUR_S, at_us) for account_id, at_us in old])
    return len(old)


def _is(account_id: str, span_s: int, at_us: int) -> Any:
    return (tally.c.account_id == account_id) & (tally.c.span_s == span_s) & (tally.c.at_us == at_us)


def _of(r: Any) -> Count:
    return Count(r.at_us, r.sent, r.waiting, r.in_doubt, r.failed)


# While somebody looks


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of an account's messages: by minutes and hours, oldest first, none that is empty.

    since_us: what is older than that is not all counted yet (None: all is).
    """

    parts: Sequence[Count]
    since_us: int | None


def counts(conn: Connection, account_id: str, from_us: int) -> Counts:
    """An account's messages accepted since then (the beginning of an hour, where it is more than a day ago).

    Reads 2,000 rows of `tally` and `LIVE_MOST` of `message` at most.
    """
    cursor = conn.execute(select(counter.c.value).where(counter.c.name == CURSOR)).scalar_one_or_none()
    rows = conn.execute(
        select(tally)
        .where(tally.c.account_id == account_id, tally.c.span_s.in_((MINUTE_S, HOUR_S)), tally.c.at_us >= from_us)
        .order_by(tally.c.at_us)
    ).all()
    live_us = max(from_us, _live_from(rows, max(from_us, cursor or 0)))
    live, since_us = _count_newest(conn, account_id, live_us)
    parts = [_of(r) for r in rows if r.at_us < live_us]
    return Counts((*parts, *live), since_us)


def _live_from(rows: Sequence[Any], cursor: int) -> int:
    """From when on it is cheap to count the messages themselves: as far back as something unsettled is."""
    live_us, messages = cursor, 0
    for r in reversed(rows):
        if r.span_s != MINUTE_S or r.at_us < cursor - LIVE_AGE_US:
            break
        messages += _of(r).total
        if messages > LIVE:
            break
        if r.recount_at_us is not None:
            live_us = min(live_us, r.at_us)
    return live_us


def _count_newest(conn: Connection, account_id: str, from_us: int) -> tuple[Iterable[Count], int | None]:
    newest = (
        select(message.c.accepted_at_us, message.c.state)
        .where(message.c.account_id == account_id, message.c.accepted_at_us >= from_us)
        .order_by(message.c.accepted_at_us.desc())
        .limit(LIVE_MOST)
        .subquery()
    )
    minute = newest.c.accepted_at_us // MINUTE_US
    rows = conn.execute(
        select(minute.label("minute"), newest.c.state, func.count().label("messages"))
        .group_by(minute, newest.c.state)
        .order_by(minute)
    ).all()
    found = _by_minute(rows)
    is_cut = sum(c.total for c in found.values()) >= LIVE_MOST
    return found.values(), (min(found) if is_cut else None)


def _count_of(conn: Connection, account_id: str, from_us: int, until_us: int) -> dict[int, Count]:
    minute = message.c.accepted_at_us // MINUTE_US
    return _by_minute(
        conn.execute(
            select(minute.label("minute"), message.c.state, func.count().label("messages"))
            .where(
                message.c.account_id == account_id,
                message.c.accepted_at_us >= from_us,
                message.c.accepted_at_us < until_us,
            )
            .group_by(minute, message.c.state)
        ).all()
    )


def _by_minute(rows: Iterable[Any]) -> dict[int, Count]:
    found: dict[int, Count] = {}
    for n, state, messages in rows:
        at_us = int(n) * MINUTE_US
        found.setdefault(at_us, Count(at_us)).add(state, messages)
    return found
