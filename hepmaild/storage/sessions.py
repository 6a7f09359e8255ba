# SPDX-License-Identifier: Apache-2.0
"""Who is logged in: sessions, their refresh tokens, and the keys that access tokens are checked with.

A session is one login.  It ends when its time is over, or in any of the ways of `ENDINGS`; each of them moves a
generation of its own (`bump`), so that what a process has cached of sessions is good as long as `GENERATION` has not
moved.  That one is a sum with the generation of accounts, which only grow: a suspended account moves it too.

Tokens are here as SHA-256 only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, cast, delete, func, insert, select, update

from hepmaild.config import DAY_US
from hepmaild.storage.counters import count_up
from hepmaild.storage.schema import counter
from hepmaild.storage.schema_people import login_session, refresh_token, token_key, user

LIFE_US = 30 * DAY_US  # of a session, from the login
GRACE_US = 30_000_000  # so long the tabs of a browser may present the same token
BATCH = 500
TOKENS_BATCH = 2_000
# Why a session ended.  grant: a newer login of a program.  theft: a used refresh token came again.
ENDINGS = ("sign-out", "revoked", "password", "reset", "suspended", "grant", "theft")

GENERATION = select(cast(func.sum(counter.c.value), BigInteger)).where(counter.c.name.in_(["generation", "people"]))


@dataclass(frozen=True, slots=True)
class NewSession:
    """A login that succeeded."""

    session_id: str
    user_id: str
    kind: str
    ip: str
    agent: str


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session that lives."""

    session_id: str
    user_id: str
    kind: str
    ends_at_us: int


@dataclass(frozen=True, slots=True)
class Rotated:
    """A refresh token was accepted.  wrapped: somebody with the same token was here just before; the token that came
    after it, as they left it; None: the caller's own next token counts."""

    session: SessionRow
    wrapped: bytes | None


@dataclass(frozen=True, slots=True)
class NotRotated:
    """A refresh token was not accepted.  theft_from: it was used before, and so its session has ended now."""

    theft_from: SessionRow | None = None


def bump(conn: Connection) -> None:
    """Say that sessions, users or token keys changed; part of the unit that changes them."""
    count_up(conn, "people")


def begin(conn: Connection, new: NewSession, token_hash: bytes, now_us: int) -> SessionRow:
    """Open a session with its first refresh token."""
    ends_at_us = now_us + LIFE_US
    conn.execute(
        insert(login_session).values(
            id=new.session_id,
            user_id=new.user_id,
            kind=new.kind,
            ip=new.ip[:45],
            agent=new.agent[:200],
            created_at_us=now_us,
            seen_at_us=now_us,
            ends_at_us=ends_at_us,
        )
    )
    conn.execute(insert(refresh_token).values(token_hash=token_hash, session_id=new.session_id, created_at_us=now_us))
    return SessionRow(new.session_id, new.user_id, new.kind, ends_at_us)


def rotate(
    conn: Connection, *, token_hash: bytes, next_hash: bytes, wrapped: bytes, now_us: int
) -> Rotated | NotRotated:
    """Use a refresh token, once; the next one takes its place.

    wrapped: the next token, readable with this one alone; kept for browsers, whose tabs may come with the same token
    within `GRACE_US`: they get the same next one.  Any other token that was used before ends its session.
    """
    session_id = session_of(conn, token_hash)
    session = None if session_id is None else _lock(conn, session_id)
    if session is None or session.ended_at_us is not None or session.ends_at_us <= now_us:
        return NotRotated()
    row = SessionRow(session.id, session.user_id, session.kind, session.ends_at_us)
    token = conn.execute(select(refresh_token).where(refresh_token.c.token_hash == token_hash)).one()
    if token.used_at_us is not None:
        if _within_grace(conn, row, token, now_us):
            return Rotated(row, bytes(token.successor))
        end(conn, [row.session_id], by="theft", now_us=now_us)
        return NotRotated(theft_from=row)
    # The one before it was used in the very moment in which this one was made; those before that have none any more.
    one_before = (refresh_token.c.session_id == row.session_id) & (refresh_token.c.used_at_us == token.created_at_us)
    conn.execute(update(refresh_token).where(one_before, refresh_token.c.successor.is_not(None)).values(successor=None))
    conn.execute(
        update(refresh_token)
        .where(refresh_token.c.token_hash == token_hash)
        .values(used_at_us=now_us, successor=wrapped if row.kind == "browser" else None)
    )
    conn.execute(insert(refresh_token).values(token_hash=next_hash, session_id=row.session_id, created_at_us=now_us))
    conn.execute(update(login_session).where(login_session.c.id == row.session_id).values(seen_at_us=now_us))
    return Rotated(row, None)


def _within_grace(conn: Connection, session: SessionRow, token: Any, now_us: int) -> bool:
    if session.kind != "browser" or token.successor is None or now_us > token.used_at_us + GRACE_US:
        return False
    unused = select(refresh_token.c.token_hash).where(
        refresh_token.c.session_id == session.session_id,
        refresh_token.c.used_at_us.is_(None),
        refresh_token.c.created_at_us == token.used_at_us,
    )
    return conn.execute(unused).first() is not None


def session_of(conn: Connection, token_hash: bytes) -> str | None:
    """The session that this refresh token belongs to, used or not, ended or not."""
    query = select(refresh_token.c.session_id).where(refresh_token.c.token_hash == token_hash)
    found: str | None = conn.execute(query).scalar_one_or_none()
    return found


def kind_of_living(conn: Connection, token_hash: bytes, now_us: int) -> str | None:
    """The kind of the living session that this refresh token belongs to, used or not; None: there is none."""
    query = (
        select(login_session.c.kind)
        .join(refresh_token, refresh_token.c.session_id == login_session.c.id)
        .where(
            refresh_token.c.token_hash == token_hash,
            login_session.c.ended_at_us.is_(None),
            login_session.c.ends_at_us > now_us,
        )
    )
    found: str | None = conn.execute(query).scalar_one_or_none()
    return found


def revoke(conn: Connection, *, token_hash: bytes, user_id: str, now_us: int) -> NotRotated | None:
    """End the session of a refresh token that is this user's and good; else why it is not, as `rotate` says it."""
    session_id = session_of(conn, token_hash)
    session = None if session_id is None else _lock(conn, session_id)
    if session is None or session.user_id != user_id or session.ended_at_us is not None or session.ends_at_us <= now_us:
        return NotRotated()
    used = select(refresh_token.c.used_at_us).where(refresh_token.c.token_hash == token_hash)
    is_good = conn.execute(used).scalar_one() is None
    end(conn, [session.id], by="sign-out" if is_good else "theft", now_us=now_us)
    return None if is_good else NotRotated(SessionRow(session.id, session.user_id, session.kind, session.ends_at_us))


def _lock(conn: Connection, session_id: str) -> Any:
    return conn.execute(select(login_session).where(login_session.c.id == session_id).with_for_update()).one_or_none()


def end(conn: Connection, session_ids: Sequence[str], *, by: str, now_us: int) -> int:
    """End these sessions; how many had not ended before."""
    return _end(conn, login_session.c.id.in_(session_ids), by=by, now_us=now_us)


def end_of_user(conn: Connection, user_id: str, *, by: str, now_us: int, kind: str = "", but: str = "") -> int:
    """End a user's sessions; how many.  kind: only those of one kind.  but: all but this one."""
    these = login_session.c.user_id == user_id
    if kind:
        these &= login_session.c.kind == kind
    if but:
        these &= login_session.c.id != but
    return _end(conn, these, by=by, now_us=now_us)


def end_of_account(conn: Connection, account_id: str, *, by: str, now_us: int) -> int:
    """End the sessions of all users of an account; how many."""
    theirs = select(user.c.id).where(user.c.account_id == account_id)
    return _end(conn, login_session.c.user_id.in_(theirs), by=by, now_us=now_us)


def _end(conn: Connection, these: Any, *, by: str, now_us: int) -> int:
    changed = conn.execute(
        update(login_session)
        .where(these, login_session.c.ended_at_us.is_(None))
        .values(ended_at_us=now_us, ended_by=by)
    )
    if changed.rowcount:
        bump(conn)
    return int(changed.rowcount)


def live(conn: Connection, session_id: str, now_us: int) -> SessionRow | None:
    """The session, if it has not ended."""
    row = conn.execute(select(login_session).where(login_session.c.id == session_id)).one_or_none()
    if row is None or row.ended_at_us is not None or row.ends_at_us <= now_us:
        return None
    return SessionRow(row.id, row.user_id, row.kind, row.ends_at_us)


def list_of(conn: Connection, account_id: str, now_us: int, *, user_id: str | None = None) -> list[dict[str, Any]]:
    """The living sessions of an account (or one of its users), those seen last first; at most 200."""
    query = (
        select(
            login_session.c.id,
            login_session.c.user_id,
            user.c.email,
            login_session.c.kind,
            login_session.c.ip,
            login_session.c.agent,
            login_session.c.created_at_us,
            login_session.c.seen_at_us,
            login_session.c.ends_at_us,
        )
        .join(user, user.c.id == login_session.c.user_id)
        .where(
            user.c.account_id == account_id, login_session.c.ended_at_us.is_(None), login_session.c.ends_at_us > now_us
        )
        .order_by(login_session.c.seen_at_us.desc(), login_session.c.id)
        .limit(200)
    )
    if user_id is not None:
        query = query.where(user.c.id == user_id)
    return [dict(row) for row in conn.execute(query).mappings()]


def end_in_account(conn: Connection, account_id: str, session_id: str, now_us: int) -> dict[str, Any] | None:
    """End one session of an account; whose it was.  None: there is no such session in it."""
    query = (
        select(login_session.c.id, login_session.c.user_id, user.c.email, login_session.c.kind, login_session.c.ip)
        .join(user, user.c.id == login_session.c.user_id)
        .where(login_session.c.id == session_id, user.c.account_id == account_id)
    )
    found = conn.execute(query).mappings().one_or_none()
    if found is None:
        return None
    end(conn, [session_id], by="revoked", now_us=now_us)
    return dict(found)


def publish_key(conn: Connection, key_id: str, public_key: bytes, until_us: int) -> None:
    """Have every process accept what this key signs, until then."""
    conn.execute(insert(token_key).values(id=key_id, public_key=public_key, until_us=until_us))
    bump(conn)


def public_keys(conn: Connection, now_us: int) -> dict[str, tuple[bytes, int]]:
    """The keys that count: id to public key and until when."""
    rows = conn.execute(select(token_key).where(token_key.c.until_us > now_us))
    return {row.id: (bytes(row.public_key), row.until_us) for row in rows}


def prune(conn: Connection, now_us: int) -> int:
    """Drop sessions whose time is over, with their tokens, and old keys; how many sessions, or tokens of them, went.

    At most BATCH sessions, and TOKENS_BATCH tokens: a program may have had a million of them.
    """
    conn.execute(delete(token_key).where(token_key.c.until_us <= now_us))
    old = select(login_session.c.id).where(login_session.c.ends_at_us <= now_us).limit(BATCH)
    ids = conn.execute(old).scalars().all()
    if not ids:
        return 0
    theirs = select(refresh_token.c.token_hash).where(refresh_token.c.session_id.in_(ids)).limit(TOKENS_BATCH)
    gone = conn.execute(delete(refresh_token).where(refresh_token.c.token_hash.in_(theirs))).rowcount
    if gone >= TOKENS_BATCH:
        return int(gone)
    conn.execute(delete(login_session).where(login_session.c.id.in_(ids)))
    return len(ids)
