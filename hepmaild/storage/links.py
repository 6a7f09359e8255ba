# SPDX-License-Identifier: Apache-2.0
"""One-time links: the first sign-in, a reset by the operator, an invitation.  The database has their SHA-256 only."""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import Connection, delete, insert, select, update

from hepmaild.config import DAY_US
from hepmaild.storage.schema_people import one_time_link

LIFE_US = DAY_US
BATCH = 500
SIGN_IN, RESET, INVITE = "sign-in", "reset", "invite"


def new_token() -> str:
    """A fresh one from the system's secure random source: 43 URL-safe characters, 256 bits."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def make(conn: Connection, *, token: str, user_id: str, purpose: str, now_us: int, life_us: int = LIFE_US) -> None:
    """Keep a link; it takes the place of those that the user has not used."""
    conn.execute(delete(one_time_link).where(one_time_link.c.user_id == user_id, one_time_link.c.used_at_us.is_(None)))
    conn.execute(
        insert(one_time_link).values(
            token_hash=hash_token(token),
            user_id=user_id,
            purpose=purpose,
            created_at_us=now_us,
            expires_at_us=now_us + life_us,
        )
    )


def find(conn: Connection, token: str, now_us: int) -> tuple[str, str] | None:
    """User id and purpose of a link that works; None: it was used, is too old, or never was."""
    row = conn.execute(
        select(one_time_link.c.user_id, one_time_link.c.purpose).where(
            one_time_link.c.token_hash == hash_token(token),
            one_time_link.c.used_at_us.is_(None),
            one_time_link.c.expires_at_us > now_us,
        )
    ).one_or_none()
    return None if row is None else (row.user_id, row.purpose)


def use(conn: Connection, token: str, now_us: int) -> bool:
    """Use a link, once; False: it does not work (any more)."""
    changed = conn.execute(
        update(one_time_link)
        .where(
            one_time_link.c.token_hash == hash_token(token),
            one_time_link.c.used_at_us.is_(None),
            one_time_link.c.expires_at_us > now_us,
        )
        .values(used_at_us=now_us)
    )
    return bool(changed.rowcount)


def prune(conn: Connection, now_us: int) -> int:
    """Drop links whose time is over; how many went (at most BATCH)."""
    old = select(one_time_link.c.token_hash).where(one_time_link.c.expires_at_us <= now_us).limit(BATCH)
    hashes = conn.execute(old).scalars().all()
    if hashes:
        conn.execute(delete(one_time_link).where(one_time_link.c.token_hash.in_(hashes)))
    return len(hashes)
