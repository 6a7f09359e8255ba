# SPDX-License-Identifier: Apache-2.0
"""The shared rate limit: an exact sliding window for each key (contract: money-and-limits.md "The shared rate limit").

A row of `rate_call` stands for the calls let through at one instant and carries the running total of its key.  The
calls inside a window are therefore a difference of two totals, each found by one step down the index.  The key's row
is locked meanwhile, so that processes take turns; the row is committed before the call is let through, so that no
restart forgets it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, func, select, text, tuple_

from hepmaild.mail.submission import RateState
from hepmaild.storage.bulk import Query, bulk_insert
from hepmaild.storage.schema import api_key, rate_call

WINDOW_US = 60_000_000

_newest = (
    select(rate_call.c.total)
    .where(rate_call.c.key_id == api_key.c.id)
    .order_by(rate_call.c.at_us.desc())
    .limit(1)
    .scalar_subquery()
)
_newest_at = (
    select(rate_call.c.at_us)
    .where(rate_call.c.key_id == api_key.c.id)
    .order_by(rate_call.c.at_us.desc())
    .limit(1)
    .scalar_subquery()
)
_before_window = (
    select(rate_call.c.total - rate_call.c.calls)
    .where(rate_call.c.key_id == api_key.c.id, rate_call.c.at_us >= bindparam("from_us"))
    .order_by(rate_call.c.at_us)
    .limit(1)
    .scalar_subquery()
)
_WINDOWS = Query(
    select(api_key.c.id, _newest.label("total"), _newest_at.label("last_at_us"), _before_window.label("before")).where(
        api_key.c.id.in_(bindparam("ids", expanding=True))
    ),
    "ids",
)
# A statement of its own: the windows must be read by one that began after the lock was had.
_LOCK = (
    select(api_key.c.id)
    .where(api_key.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(api_key.c.id)
    .with_for_update(key_share=True)
)
_INSERT = bulk_insert(rate_call, "key_id", "at_us", "calls", "total")
_CLOCK = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)")


@dataclass(slots=True)
class Window:
    """One key's window inside one unit.  total: calls ever; inside: calls in the 60 s that end now.

    clock_us: what the clock says; now_us: the same, or the instant behind the newest call while the clock is set back.
    """

    key_id: str
    clock_us: int
    now_us: int
    total: int
    inside: int
    last_at_us: int
    taken: int = 0

    def take(self) -> None:
        """Let one more call through; the caller has seen that there is room."""
        self.inside += 1
        self.taken += 1

    def state(self, limit: int) -> RateState:
        """The window as the headers tell it."""
        newest = self.now_us if self.taken else self.last_at_us
        reset_us = newest + WINDOW_US if self.inside else self.now_us
        return RateState(limit, max(0, limit - self.inside), -(-reset_us // 1_000_000))


def lock_keys(conn: Connection, key_ids: Iterable[str]) -> None:
    """Lock these keys in the order of their ids, until the unit ends.  On SQLite nobody else writes."""
    if conn.dialect.name == "postgresql":
        conn.execute(_LOCK, {"ids": sorted(set(key_ids))})


def open_windows(conn: Connection, key_ids: Iterable[str], now_us: int) -> dict[str, Window]:
    """Lock these keys and read their windows.  With several processes the database's clock decides, not `now_us`."""
    ids = sorted(set(key_ids))
    if conn.dialect.name == "postgresql":
        lock_keys(conn, ids)
        now_us = int(conn.execute(_CLOCK).scalar_one())
    rows = _WINDOWS.ask(conn, ids, from_us=now_us - WINDOW_US)
    windows = {}
    for key_id, total, last_at_us, before in rows:
        inside = 0 if before is None else total - before
        # A clock that was set back must not give a key a second window: time stands still until it catches up.
        at_us = max(now_us, (last_at_us or 0) + 1)
        windows[key_id] = Window(key_id, now_us, at_us, total or 0, inside, last_at_us or 0)
    return windows


def calls_inside(conn: Connection, key_ids: Iterable[str], now_us: int) -> dict[str, int]:
    """How many calls of each key the last 60 seconds hold; for people, without a lock."""
    rows = _WINDOWS.ask(conn, sorted(set(key_ids)), from_us=now_us - WINDOW_US)
    return {key_id: 0 if before is None else total - before for key_id, total, _last_at_us, before in rows}


def save_windows(conn: Connection, windows: Iterable[Window]) -> None:
    """Append the calls that were let through."""
    _INSERT.run(conn, [(w.key_id, w.now_us, w.taken, w.total + w.taken) for w in windows if w.taken])


def passes_at_us(conn: Connection, window: Window, limit: int) -> int:
    """When one more call will pass, by the clock: when the call `limit` places back has left the window."""
    if limit <= 0:
        return window.clock_us + WINDOW_US
    blocking = window.total + window.taken + 1 - limit
    at_us = conn.execute(
        select(func.min(rate_call.c.at_us)).where(
            rate_call.c.key_id == window.key_id,
            rate_call.c.at_us >= window.clock_us - WINDOW_US,
            rate_call.c.total >= blocking,
        )
    ).scalar_one()
    # None: the blocking call is one of this very unit.
    return int(at_us if at_us is not None else window.now_us) + WINDOW_US + 1


def prune(conn: Connection, now_us: int, most: int = 5000) -> int:
    """Delete rows that no window can hold any more, by the clock that windows go by; how many went."""
    if conn.dialect.name == "postgresql":
        now_us = int(conn.execute(_CLOCK).scalar_one())
    old = select(rate_call.c.key_id, rate_call.c.at_us).where(rate_call.c.at_us < now_us - 2 * WINDOW_US).limit(most)
    return int(conn.execute(delete(rate_call).where(tuple_(rate_call.c.key_id, rate_call.c.at_us).in_(old))).rowcount)
