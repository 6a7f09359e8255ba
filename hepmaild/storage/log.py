# SPDX-License-Identifier: Apache-2.0
"""The send log: what `log tail` and `log show` print, and later the Logs page shows."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, select

from hepmaild.mail.chaos import kind_of
from hepmaild.storage import queue as queue_rows
from hepmaild.storage.schema import event, ledger, message, recipient


def tail(conn: Connection, account_id: str | None, limit: int = 50, before: tuple[int, str] | None = None) -> list[Any]:
    """The newest messages, newest first, each with its recipients; `before` = (accepted_at_us, id) pages on."""
    query = select(message).order_by(message.c.accepted_at_us.desc(), message.c.id.desc()).limit(limit)
    if account_id is not None:
        query = query.where(message.c.account_id == account_id)
    if before is not None:
        at_us, message_id = before
        query = query.where(
            (message.c.accepted_at_us < at_us) | ((message.c.accepted_at_us == at_us) & (message.c.id < message_id))
        )
    rows = list(conn.execute(query))
    addresses: dict[str, list[str]] = {r.id: [] for r in rows}
    if rows:
        for m, address in conn.execute(
            select(recipient.c.message_id, recipient.c.address)
            .where(recipient.c.message_id.in_(list(addresses)))
            .order_by(recipient.c.message_id, recipient.c.n)
        ):
            addresses[m].append(address)
    return [
        {
            "message_id": r.id,
            "at": r.accepted_at_us,
            "state": r.state,
            "door": r.door,
            "sender": r.sender,
            "recipients": addresses[r.id],
            "subject": r.subject,
            "key": r.key_name,
            "key_last_five": r.key_last_five,
            "size": r.size,
            "route": r.route,
            "chaos": kind_of(r.route) or None,
            "ms": None if r.finished_at_us is None else (r.finished_at_us - r.accepted_at_us) // 1000,
        }
        for r in rows
    ]


def show(conn: Connection, message_id: str) -> dict[str, Any]:
    """Everything about one message: recipients, events with both legs' steps, ledger rows."""
    shown = queue_rows.show(conn, message_id)
    events = conn.execute(select(event).where(event.c.message_id == message_id).order_by(event.c.seq))
    money = conn.execute(select(ledger).where(ledger.c.message_id == message_id).order_by(ledger.c.seq))
    return {
        **shown,
        "chaos": kind_of(shown["route"]) or None,
        "events": [{"seq": e.seq, "at": e.at_us, "kind": e.kind, "data": json.loads(e.data)} for e in events],
        "ledger": [
            {"at": r.at_us, "amount": r.amount, "balance_after": r.balance_after, "reason": r.reason} for r in money
        ],
    }
