# SPDX-License-Identifier: Apache-2.0
"""What makes a database believe that all this happened over a month, while its daemon is stopped.

Ledger and audit log are chains of hashes: their rows are written anew, so that whoever verifies them finds them whole.
"""

from __future__ import annotations

import contextlib
import random
import re
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hepmaild.storage import audit
from hepmaild.storage import credits as money

DAY_US, HOUR_US, MINUTE_US = 86_400_000_000, 3_600_000_000, 60_000_000
MONTH_US = 29 * DAY_US
LATEST_US = 40 * MINUTE_US
INSTANT = re.compile(r"\b1[5-9]\d{14}\b")  # microseconds in JSON
LEDGER = "account_id, seq, amount, balance_after, reason, message_id, granted_by, note, at_us"
AUDIT = "account_id, seq, at_us, user_id, actor, ip, via, action, subject, data"
# What was made when the accounts were.
MADE = (
    ("account", "created_at_us"), ("api_key", "created_at_us"), ("user_account", "created_at_us"),
    ("smtp_server", "changed_at_us"), ("template", "created_at_us"), ("template", "modified_at_us"),
    ("template_revision", "at_us"),
)  # fmt: skip


def pass_a_month(path: Path, kept: Iterable[str]) -> None:
    """Let it have happened over a month, most of it lately; the messages `kept` now."""
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        _age_messages(base, set(kept))
        _age_ledgers(base)
        _age_audit(base)
        for table, column in MADE:
            base.execute(f"update {table} set {column} = {column} - ?", (MONTH_US - 2 * DAY_US,))
        base.execute("delete from tally")
        base.execute("delete from rate_call")
        base.execute("delete from counter where name = 'tally'")


def _age_messages(base: sqlite3.Connection, kept: set[str]) -> None:
    chance = random.Random(5)
    settled = "select id from message where waiting = 0 order by accepted_at_us"
    rows = [message_id for (message_id,) in base.execute(settled) if message_id not in kept]
    for n, message_id in enumerate(rows):
        share = n / len(rows)
        back = 50 * MINUTE_US if share > 0.75 else 20 * HOUR_US if share > 0.4 else 28 * DAY_US
        by = int(back * chance.random()) + 2 * MINUTE_US
        base.execute(
            "update message set accepted_at_us = accepted_at_us - ?, finished_at_us = finished_at_us - ? where id = ?",
            (by, by, message_id),
        )
        events = base.execute("select seq, at_us, data from event where message_id = ?", (message_id,)).fetchall()
        for seq, at_us, data in events:
            older = INSTANT.sub(lambda found, by=by: str(int(found[0]) - by), data)  # type: ignore[misc]
            base.execute("update event set at_us = ?, data = ? where seq = ?", (at_us - by, older, seq))


def _age_ledgers(base: sqlite3.Connection) -> None:
    """A grant at the beginning; a debit and its refund when their message was accepted."""
    accepted = dict(base.execute("select id, accepted_at_us from message").fetchall())
    for (account_id,) in base.execute("select id from account").fetchall():
        found = base.execute(f"select {LEDGER} from ledger where account_id = ? order by seq", (account_id,)).fetchall()
        aged = [(*row[:8], accepted.get(row[5], row[8] - MONTH_US)) for row in found]
        balance, head = 0, money.GENESIS
        rows = []
        for seq, row in enumerate(sorted(aged, key=lambda row: (row[8], row[4])), 1):
            balance += row[2]
            values = (account_id, seq, row[2], balance, *row[4:])
            head = money.row_hash(head, values)
            rows.append((*values, head))
        _put(base, "ledger", account_id, rows)
        base.execute("update account set ledger_head = ? where id = ?", (head, account_id))


def _age_audit(base: sqlite3.Connection) -> None:
    """The changes evenly over the month, the last of them some minutes ago."""
    for (account_id,) in base.execute("select account_id from audit_head").fetchall():
        found = base.execute(f"select {AUDIT} from audit where account_id = ? order by seq", (account_id,)).fetchall()
        head, rows = audit.GENESIS, []
        for n, row in enumerate(found, 1):
            back = int((MONTH_US - LATEST_US) * (1 - n / len(found))) + LATEST_US
            values = (*row[:2], row[2] - back, *row[3:])
            head = audit.row_hash(head, values)
            rows.append((*values, head))
        _put(base, "audit", account_id, rows)
        base.execute("update audit_head set hash = ? where account_id = ?", (head, account_id))


def _put(base: sqlite3.Connection, table: str, account_id: str, rows: list[tuple[Any, ...]]) -> None:
    if not rows:
        return
    base.execute(f"delete from {table} where account_id = ?", (account_id,))
    base.executemany(f"insert into {table} values ({', '.join('?' * len(rows[0]))})", rows)


def have_a_busy_minute(path: Path, name: str, calls: int) -> None:
    """Let a key have made so many calls in the minute that begins now."""
    now_us = time.time_ns() // 1000
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as base, base:
        (key_id,) = base.execute("select id from api_key where name = ?", (name,)).fetchone()
        base.execute("insert into rate_call values (?, ?, ?, ?)", (key_id, now_us, calls, calls))
