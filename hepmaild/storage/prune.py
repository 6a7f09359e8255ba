# SPDX-License-Identifier: Apache-2.0
"""What is old goes, in small batches, so that no unit waits long behind it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, and_, bindparam, delete, exists, or_, select, tuple_, update

from hepmaild.storage import rate
from hepmaild.storage.bulk import Bulk
from hepmaild.storage.schema import account, body, event, idempotency, message, recipient
from hepmaild.storage.settle import DROP_BODY

BATCH = 500
LOOK = 5_000  # pieces of content in one look for orphans


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
        DROP_BODY.run(conn, [(i,) for i in ids])
        conn.execute(update(message).where(message.c.id.in_(ids)).values(body_until_us=None))
    return len(ids)


def orphans(conn: Connection, after: int, before_us: int) -> tuple[list[int], int]:
    """Pieces that were staged before then for a message which was never accepted; and up to which piece was looked.

    A look at the `LOOK` pieces behind `after`: all of them are as many as wait, or are kept.  0: that was the end.
    """
    rows = conn.execute(
        select(body.c.id, body.c.at_us, message.c.id.is_(None).label("is_lost"))
        .join(message, message.c.id == body.c.message_id, isouter=True)
        .where(body.c.id > after)
        .order_by(body.c.id)
        .limit(LOOK)
    ).all()
    lost = [row.id for row in rows if row.is_lost and row.at_us < before_us]
    return lost, rows[-1].id if len(rows) == LOOK else 0


def drop_orphans(conn: Connection, pieces: Sequence[int], before_us: int) -> None:
    """Drop these pieces, at most BATCH, as long as they are still what they were: SQLite gives a number again."""
    accepted = exists().where(message.c.id == body.c.message_id)
    conn.execute(delete(body).where(body.c.id.in_(pieces), body.c.at_us < before_us, ~accepted))


def finished_messages(conn: Connection, plan: str, before_us: int, known: Collection[str] = ()) -> list[str]:
    """Finished messages from before then, of accounts on this plan; at most BATCH.  A look only.

    known: all plans there are; with it also those of accounts whose plan left the settings.

    It goes from account to account: by time alone it would go, every time, through all that other plans keep longer.
    """
    theirs = account.c.plan == plan
    if known:
        theirs = or_(theirs, account.c.plan.not_in(sorted(known)))
    if conn.dialect.name == "sqlite":
        # An id that no index is used for: else it begins with the messages all the same.
        whole = account.join(message, message.c.account_id == account.c.id.concat(""))
        old = select(message.c.id).select_from(whole).where(message.c.accepted_at_us < before_us)
        return list(conn.execute(old.where(theirs, message.c.waiting == 0).limit(BATCH)).scalars())
    # Pairs are compared, in the order of both, as only the index on both can do.  The first message that stands there
    # says whether the account has an old one.  Of `= 0` PostgreSQL expects little until it has counted, and would sort
    # all there is.
    place = tuple_(message.c.account_id, message.c.accepted_at_us)
    order = (message.c.account_id, message.c.accepted_at_us, message.c.id)
    first = select(*order).where(place >= tuple_(account.c.id, 0)).order_by(*order).limit(1).lateral()
    finished = select(*order).where(place >= tuple_(first.c.account_id, 0), message.c.waiting <= 0)
    oldest = finished.order_by(*order).limit(BATCH).lateral()
    found = (
        select(oldest.c.id)
        .select_from(account)
        .join(first, and_(first.c.account_id == account.c.id, first.c.accepted_at_us < before_us))
        .join(oldest, and_(oldest.c.account_id == first.c.account_id, oldest.c.accepted_at_us < before_us))
    )
    return list(conn.execute(found.where(theirs).limit(BATCH)).scalars())


# Message by message: PostgreSQL that has not counted yet goes through all there is for a list of them.
_DROP = tuple(
    Bulk(delete(column.table).where(column == bindparam("m")), "m")
    for column in (event.c.message_id, recipient.c.message_id, body.c.message_id, message.c.id)
)


def drop_messages(conn: Connection, ids: Sequence[str]) -> None:
    """Drop the log of these messages, at most BATCH; the ledger stays."""
    for drop in _DROP:
        drop.run(conn, [(i,) for i in ids])


def rate_calls(conn: Connection, now_us: int) -> int:
    """Drop calls that no window can hold any more."""
    return rate.prune(conn, now_us)
