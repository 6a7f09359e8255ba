# SPDX-License-Identifier: Apache-2.0
"""What is old goes, in small batches, so that no unit waits long behind it."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, or_, select, update

from hepmaild.storage import rate
from hepmaild.storage.schema import account, body, event, idempotency, message, recipient

BATCH = 500


def idempotency_words(conn: Connection, before_us: int) -> int:
    """Forget words older than the longest life a word has; how many went (at most BATCH)."""
    old = select(idempotency.c.message_id).where(idempotency.c.at_us < before_us).limit(BATCH)
    return int(
        conn.execute(
            delete(idempotency).where(idempotency.c.message_id.in_(old), idempotency.c.at_us < before_us)
        ).rowcount
    )


def bodies(conn: Connection, now_us: int) -> int:
    """Drop kept content whose time has come; how many messages lost theirs."""
    ids = (
        conn.execute(
            select(message.c.id).where(message.c.body_until_us <= now_us).order_by(message.c.body_until_us).limit(BATCH)
        )
        .scalars()
        .all()
    )
    if ids:
        conn.execute(delete(body).where(body.c.message_id.in_(ids)))
        conn.execute(update(message).where(message.c.id.in_(ids)).values(body_until_us=None))
    return len(ids)


def orphans(conn: Connection, before_us: int) -> int:
    """Drop pieces that were staged for a message which was never accepted."""
    ids = (
        conn.execute(
            select(body.c.id)
            .join(message, message.c.id == body.c.message_id, isouter=True)
            .where(message.c.id.is_(None), body.c.at_us < before_us)
            .limit(BATCH)
        )
        .scalars()
        .all()
    )
    if ids:
        conn.execute(delete(body).where(body.c.id.in_(ids)))
    return len(ids)


def finished_messages(conn: Connection, plan: str, before_us: int, known: Collection[str] = ()) -> int:
    """Drop the log of finished messages of accounts on this plan; the ledger stays.

    known: all plans there are; with it also that of accounts whose plan left the settings.
    """
    theirs = account.c.plan == plan
    if known:
        theirs = or_(theirs, account.c.plan.not_in(sorted(known)))
    ids = (
        conn.execute(
            select(message.c.id)
            .join(account, account.c.id == message.c.account_id)
            .where(theirs, message.c.accepted_at_us < before_us, message.c.waiting == 0)
            .order_by(message.c.accepted_at_us)
            .limit(BATCH)
        )
        .scalars()
        .all()
    )
    if ids:
        for table in (event.c.message_id, recipient.c.message_id, body.c.message_id):
            conn.execute(delete(table.table).where(table.in_(ids)))
        conn.execute(delete(message).where(message.c.id.in_(ids)))
    return len(ids)


def rate_calls(conn: Connection, now_us: int) -> int:
    """Drop calls that no window can hold any more."""
    return rate.prune(conn, now_us)
