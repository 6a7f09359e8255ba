# SPDX-License-Identifier: Apache-2.0
"""Figures of an account for its pages: what the top line and the overview show."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select

from hepmaild.storage.rate import WINDOW_US
from hepmaild.storage.schema import account, api_key, ledger, rate_call

PACE_US = 7 * 86_400_000_000


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
        "calls": _calls(conn, account_id, now_us),
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


def _calls(conn: Connection, account_id: str, now_us: int) -> int:
    """Calls in the last minute of the account's busiest key."""
    counted = (
        select(func.sum(rate_call.c.calls).label("calls"))
        .join(api_key, api_key.c.id == rate_call.c.key_id)
        .where(api_key.c.account_id == account_id, rate_call.c.at_us > now_us - WINDOW_US)
        .group_by(rate_call.c.key_id)
        .subquery()
    )
    return int(conn.execute(select(func.max(counted.c.calls))).scalar_one() or 0)
