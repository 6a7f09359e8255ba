# SPDX-License-Identifier: Apache-2.0
"""The units in which somebody becomes logged in: everything that was found out before is checked again, and written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, select

from hepmaild.storage import audit, links, sessions, tries, users
from hepmaild.storage.audit import Actor
from hepmaild.storage.schema import account
from hepmaild.storage.sessions import NewSession, NotRotated, SessionRow
from hepmaild.storage.users import UserRow


@dataclass(frozen=True, slots=True)
class Factor:
    """What the second factor's code turned out to be.  needed: it is on.  step: of a code; recovery_hash: of a
    recovery code; neither: it was wrong."""

    needed: bool
    step: int | None = None
    recovery_hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """The try that was written down when this began (`tries.begin`)."""

    try_id: str
    client: str
    email_key: str


@dataclass(frozen=True, slots=True)
class Granted:
    """Somebody is logged in.  wrapped: see `sessions.Rotated`."""

    user: UserRow
    session: SessionRow
    wrapped: bytes | None = None


Failure = Literal["code", "suspended", "changed"]


def by_password(
    conn: Connection,
    seen: UserRow,
    factor: Factor,
    proof: Proof,
    new: NewSession,
    token_hash: bytes,
    *,
    rehashed: str | None,
    now_us: int,
) -> Granted | Failure:
    """Log in whoever gave the right password.  seen: the user as the password was checked.

    "changed": password or second factor have changed since.  "code": the second factor is wrong; it counts as a try.
    """
    user = _hold(conn, seen.user_id)
    if user is None or user.password_hash != seen.password_hash or user.totp_sealed != seen.totp_sealed:
        return "changed"
    failure = _check(conn, user, factor, proof, now_us)
    if failure is not None:
        return failure
    if rehashed is not None and seen.password_hash is not None:
        users.rehash(conn, user.user_id, seen.password_hash, rehashed)
    tries.succeed(conn, client=proof.client, email_key=proof.email_key)
    if new.kind == "program":
        sessions.end_of_user(conn, user.user_id, by="grant", kind="program", now_us=now_us)
    return Granted(user, sessions.begin(conn, new, token_hash, now_us))


def by_link(
    conn: Connection,
    seen: UserRow,
    factor: Factor,
    proof: Proof,
    new: NewSession,
    token_hash: bytes,
    *,
    link_token: str,
    password_hash: str,
    actor: Actor,
    now_us: int,
) -> Granted | Failure:
    """Set the password of whoever has the link, and log in.  "changed": the link does not work any more."""
    user = _hold(conn, seen.user_id)
    link = links.find(conn, link_token, now_us)
    if user is None or link is None or link[0] != user.user_id or user.totp_sealed != seen.totp_sealed:
        return "changed"
    failure = _check(conn, user, factor, proof, now_us)
    if failure is not None:
        return failure
    if not links.use(conn, link_token, now_us):
        return "changed"
    users.set_password(conn, user.user_id, password_hash, now_us, by="reset")
    users.verify_address(conn, user.user_id)
    tries.succeed(conn, client=proof.client, email_key=proof.email_key)
    session = sessions.begin(conn, new, token_hash, now_us)
    audit.note(
        conn,
        account_id=user.account_id,
        actor=actor,
        action="user.password",
        subject=user.email,
        data={"by": "link", "purpose": link[1]},
        now_us=now_us,
    )
    return Granted(dataclasses.replace(user, is_verified=True), session)


def by_change(
    conn: Connection,
    seen: UserRow,
    proof: Proof,
    session_id: str,
    new: NewSession,
    token_hash: bytes,
    *,
    password_hash: str,
    actor: Actor,
    now_us: int,
) -> Granted | Failure:
    """Change the password of whoever gave the right one; the session in which they did goes on under another id."""
    user = _hold(conn, seen.user_id)
    if user is None or user.password_hash != seen.password_hash or sessions.live(conn, session_id, now_us) is None:
        return "changed"
    tries.take_back(conn, proof.try_id)
    users.set_password(conn, user.user_id, password_hash, now_us)
    session = sessions.begin(conn, new, token_hash, now_us)
    audit.note(
        conn,
        account_id=user.account_id,
        actor=actor,
        action="user.password",
        subject=user.email,
        data={"by": "change"},
        now_us=now_us,
    )
    return Granted(user, session)


def _hold(conn: Connection, user_id: str) -> UserRow | None:
    """The user, and the state of the account, as both stay until the unit ends.

    On PostgreSQL a suspension that runs at the same time comes before this, and is seen, or behind it, and ends the
    session that is begun here.
    """
    user = users.by_id(conn, user_id, lock=True)
    if user is None:
        return None
    query = select(account.c.status).where(account.c.id == user.account_id).with_for_update(read=True)
    return dataclasses.replace(user, account_status=conn.execute(query).scalar_one())


def _check(conn: Connection, user: UserRow, factor: Factor, proof: Proof, now_us: int) -> Failure | None:
    if not user.may_log_in:
        tries.take_back(conn, proof.try_id)
        return "suspended"
    if not factor.needed or use_factor(conn, user, factor, now_us):
        return None
    tries.wrong_code(conn, proof.try_id)
    return "code"


def use_factor(conn: Connection, user: UserRow, factor: Factor, now_us: int) -> bool:
    """Use the code up; False: it is wrong, or was used before."""
    if factor.step is not None:
        return users.use_step(conn, user.user_id, factor.step)
    if factor.recovery_hash is not None:
        return users.use_recovery_code(conn, user.user_id, factor.recovery_hash, now_us)
    return False


def by_refresh(
    conn: Connection, *, token_hash: bytes, next_hash: bytes, wrapped: bytes, ip: str, now_us: int
) -> Granted | NotRotated:
    """Go on with a session (`sessions.rotate`).  A theft is written into the account's audit log."""
    done = sessions.rotate(conn, token_hash=token_hash, next_hash=next_hash, wrapped=wrapped, now_us=now_us)
    if isinstance(done, NotRotated):
        _note_theft(conn, done, ip, now_us)
        return done
    user = users.by_id(conn, done.session.user_id)
    if user is None or not user.may_log_in:
        return NotRotated()
    return Granted(user, done.session, done.wrapped)


def by_revoke(conn: Connection, *, token_hash: bytes, user_id: str, ip: str, now_us: int) -> NotRotated | None:
    """End a session (`sessions.revoke`).  A theft is written into the account's audit log."""
    done = sessions.revoke(conn, token_hash=token_hash, user_id=user_id, now_us=now_us)
    if done is not None:
        _note_theft(conn, done, ip, now_us)
    return done


def _note_theft(conn: Connection, done: NotRotated, ip: str, now_us: int) -> None:
    stolen = done.theft_from
    user = None if stolen is None else users.by_id(conn, stolen.user_id)
    if user is None or stolen is None:
        return
    audit.note(
        conn,
        account_id=user.account_id,
        actor=Actor(user.user_id, user.email, ip, "api"),
        action="session.theft",
        subject=user.email,
        data={"session": stolen.session_id, "kind": stolen.kind},
        now_us=now_us,
    )
