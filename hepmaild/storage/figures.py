# SPDX-License-Identifier: Apache-2.0
"""Figures of an account for its pages: what the top line and the overview show."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, select

from hepmaild.config import DAY_US
from hepmaild.storage import credits as money
from hepmaild.storage import rate, tally
from hepmaild.storage.schema import account, api_key, ledger, message
from hepmaild.storage.schema import tally as tallied

PACE_US = 7 * DAY_US
HOUR_US = 3_600_000_000
NEAR = 1_000  # ledger rows that are added up one by one for the pace
DOUBLINGS = 13  # how often the look goes back twice as far: eight million rows
LOOKED_AT = 2_000  # messages that are looked at for the uses of one key
FIRST_ROWS = 100  # ledger rows among which the first debit is, where there was one


def top_line(conn: Connection, account_id: str, now_us: int) -> dict[str, Any]:
    """balance; lasts_s: how long it lasts at the present pace (None: nothing was spent in a week); calls: in the last
    minute, of the key that made most."""
    head = conn.execute(
        select(account.c.email, account.c.balance, account.c.plan, account.c.status).where(account.c.id == account_id)
    ).one()
    return {
        "email": head.email,
        "balance": head.balance,
        "plan": head.plan,
        "status": head.status,
        "lasts_s": _lasts_s(conn, account_id, head.balance, now_us),
        "calls": max((key["calls"] for key in windows(conn, account_id, now_us)), default=0),
    }


def _lasts_s(conn: Connection, account_id: str, balance: int, now_us: int) -> float | None:
    """At the pace of the last week; in a younger account, since its first row; but never of less than a day, since a
    burst of some minutes says nothing about the rest of it.

    A thousand rows are added up.  Where they are not even a day, the balance of then, of rows twice, four times … as
    far back, and what was granted since say what was spent: a handful of rows, however long the ledger is.
    """
    rows = select(ledger.c.seq, ledger.c.at_us, ledger.c.balance_after).where(ledger.c.account_id == account_id)
    newest = conn.execute(rows.order_by(ledger.c.seq.desc()).limit(1)).first()
    if newest is None or newest.at_us < now_us - PACE_US:
        return None
    places = sorted({max(1, newest.seq - (NEAR << n)) for n in range(DOUBLINGS + 1)}, reverse=True)
    behind = conn.execute(rows.where(ledger.c.seq.in_(places)).order_by(ledger.c.seq.desc())).all()
    first = next((row for row in behind if row.at_us <= now_us - DAY_US), behind[-1])
    if first.seq == behind[0].seq:
        spent = _added_up(conn, account_id, first.seq, now_us - PACE_US)
    else:
        spent = _by_balance(conn, account_id, first, newest)
    if spent <= 0:
        return None
    paced_us = min(max(now_us - first.at_us, DAY_US), PACE_US)
    return float(balance / spent * paced_us / 1_000_000)


def _added_up(conn: Connection, account_id: str, seq: int, since_us: int) -> int:
    query = select(func.sum(ledger.c.amount)).where(
        ledger.c.account_id == account_id,
        ledger.c.seq > seq,
        ledger.c.at_us >= since_us,
        ledger.c.reason != "grant",
    )
    return -int(conn.execute(query).scalar_one() or 0)


def _by_balance(conn: Connection, account_id: str, first: Row[int, int, int], newest: Row[int, int, int]) -> int:
    grants = money.history(conn, account_id, reason="grant")
    granted = sum(int(row["amount"]) for row in grants if first.seq < row["seq"] <= newest.seq)
    return int(first.balance_after + granted - newest.balance_after)


def windows(conn: Connection, account_id: str, now_us: int) -> list[dict[str, Any]]:
    """The account's keys with their calls in the last minute: id, name, calls; the busiest first."""
    keys = conn.execute(
        select(api_key.c.id, api_key.c.name).where(api_key.c.account_id == account_id, api_key.c.status != "deleted")
    ).all()
    if not keys:
        return []
    calls = rate.calls_inside(conn, [key.id for key in keys], now_us)
    rows = [{"id": key.id, "name": key.name, "calls": calls.get(key.id, 0)} for key in keys]
    return sorted(rows, key=lambda row: (-row["calls"], row["name"]))


def overview(conn: Connection, account_id: str, *, from_us: int, today_us: int, now_us: int) -> dict[str, Any]:
    """counts: messages accepted since `from_us` or, if that is earlier, `today_us` (`tally.Counts`); windows: as above,
    the active ones; is_new: nothing was ever sent."""
    counts = tally.counts(conn, account_id, min(from_us, today_us))
    return {
        "counts": counts,
        "windows": windows(conn, account_id, now_us),
        "is_new": not counts.parts and _is_new(conn, account_id),
    }


def _is_new(conn: Connection, account_id: str) -> bool:
    """Whether nothing was ever sent, as far as anything remembers."""
    for query in (
        select(message.c.id).where(message.c.account_id == account_id).limit(1),
        select(tallied.c.at_us).where(tallied.c.account_id == account_id).limit(1),
    ):
        if conn.execute(query).first() is not None:
            return False
    first = select(ledger.c.reason).where(ledger.c.account_id == account_id).order_by(ledger.c.seq).limit(FIRST_ROWS)
    return "debit" not in set(conn.execute(first).scalars())


def key_uses(conn: Connection, account_id: str, key_id: str, now_us: int) -> tuple[int, bool]:
    """Messages of a key in the last hour; and whether there were too many of the account's to look at all of them."""
    recent = (
        select(message.c.key_id)
        .where(message.c.account_id == account_id, message.c.accepted_at_us >= now_us - HOUR_US)
        .order_by(message.c.accepted_at_us.desc())
        .limit(LOOKED_AT)
        .subquery()
    )
    row = conn.execute(
        select(func.count().label("all"), func.count().filter(recent.c.key_id == key_id).label("mine"))
    ).one()
    return int(row.mine), int(row.all) >= LOOKED_AT
