# SPDX-License-Identifier: Apache-2.0
"""Figures of an account for its pages: what the top line and the overview show."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select

from hepmaild.storage import rate, tally
from hepmaild.storage.schema import account, api_key, ledger, message
from hepmaild.storage.schema import tally as tallied

PACE_US = 7 * 86_400_000_000
HOUR_US = 3_600_000_000
LOOKED_AT = 2_000  # messages that are looked at for the uses of one key
FIRST_ROWS = 100  # ledger rows among which the first debit is, where there was one


def top_line(conn: Connection, account_id: str, now_us: int) -> dict[str, Any]:
    """balance; lasts_s: how long it lasts at the pace of the last week (None: nothing was spent); calls: in the last
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
    """By two rows: the ledger's newest, and the last one before the week began."""
    spent_until = select(ledger.c.seq, ledger.c.at_us, ledger.c.balance_after).where(ledger.c.account_id == account_id)
    newest = conn.execute(spent_until.order_by(ledger.c.seq.desc()).limit(1)).first()
    if newest is None or newest.at_us < now_us - PACE_US:
        return None
    # A bounded look back: the pace of the last thousand rows is good enough where a week holds more.
    first = conn.execute(
        spent_until.where(ledger.c.seq <= max(1, newest.seq - 1000)).order_by(ledger.c.seq.desc()).limit(1)
    ).first()
    if first is None:
        return None
    spent = conn.execute(
        select(func.sum(ledger.c.amount)).where(
            ledger.c.account_id == account_id,
            ledger.c.seq > first.seq,
            ledger.c.at_us >= now_us - PACE_US,
            ledger.c.reason != "grant",
        )
    ).scalar_one()
    begun_us = max(first.at_us, now_us - PACE_US)
    if not spent or spent >= 0 or now_us <= begun_us:
        return None
    return float(balance / -spent * (now_us - begun_us) / 1_000_000)


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
