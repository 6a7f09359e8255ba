# SPDX-License-Identifier: Apache-2.0
"""Idempotency words beside the unit that accepts: whether a call may be one that was made before, and freeing one."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, delete, exists, select

from hepmaild.config import DAY_US
from hepmaild.storage.accept import Twin
from hepmaild.storage.bulk import Query
from hepmaild.storage.schema import idempotency, message, recipient

WORD_LIFE_US = DAY_US  # of a caller's own word
BY_CALLER = "w:"  # before a word of the caller's; others are fingerprints of what came by SMTP
LATEST = 100  # messages of an account that are looked at: without credits, or over its day, it gets no newer ones

_latest = (
    select(message.c.id, message.c.recipients)
    .where(message.c.account_id == bindparam("account"))
    .order_by(message.c.accepted_at_us.desc(), message.c.id.desc())
    .limit(LATEST)
    .subquery()
)
_WORDS = Query(
    select(idempotency.c.word, idempotency.c.at_us, _latest.c.recipients)
    .join(_latest, _latest.c.id == idempotency.c.message_id)
    .where(idempotency.c.key_id == bindparam("the_key"))
)


def may_be_again(
    conn: Connection, account_id: str, key_id: str, recipients: int, replay_window_us: int, now_us: int
) -> bool:
    """Whether the account's latest messages include one that this key would be told of again, and not pay for again.

    By SMTP, where the word is not known yet.  recipients: as many as it must have.
    """
    return any(
        at_us > now_us - (WORD_LIFE_US if word.startswith(BY_CALLER) else replay_window_us) and recipients == of_message
        for word, at_us, of_message in _WORDS.ask(conn, account=account_id, the_key=key_id)
    )


def is_stored(conn: Connection, key_id: str, word: str, since_us: int) -> bool:
    """Whether this key used the word for a message that was accepted after `since_us`."""
    found = select(idempotency.c.at_us).where(idempotency.c.key_id == key_id, idempotency.c.word == word)
    at_us = conn.execute(found).scalar()
    return at_us is not None and at_us > since_us


def twin_of(conn: Connection, key_id: str, word: str, fingerprint: bytes, since_us: int) -> Twin | None:
    """The message that this key used the word for after `since_us`, if it was by the same call."""
    found = (
        select(idempotency.c.message_id, message.c.answer, idempotency.c.at_us)
        .join(message, message.c.id == idempotency.c.message_id, isouter=True)
        .where(
            idempotency.c.key_id == key_id,
            idempotency.c.word == word,
            idempotency.c.fingerprint == fingerprint,
            idempotency.c.at_us > since_us,
        )
    )
    row = conn.execute(found).one_or_none()
    return None if row is None else Twin(row.message_id, row.answer or "{}", row.at_us)


def free_if_refused(conn: Connection, message_id: str) -> bool:
    """Free the word of a message whose first attempt everybody was refused in, as the end of its call would have done;
    whether it did.  What was tried again, cancelled, or expired was queued as far as its caller would have heard."""
    lasts = exists().where(
        recipient.c.message_id == message_id, (recipient.c.state != "failed") | (recipient.c.attempts > 1)
    )
    freed = conn.execute(delete(idempotency).where(idempotency.c.message_id == message_id, ~lasts))
    return freed.rowcount > 0
