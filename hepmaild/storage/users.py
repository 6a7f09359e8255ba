# SPDX-License-Identifier: Apache-2.0
"""The people of an account: their rows, roles, passwords, second factors.

Everything is found by (account id, user id), so that nobody reaches into another account.  Whoever's password, role or
state changes is seen with other eyes at once: those functions call `sessions.bump` or end sessions.  Refusals are
ValueErrors with a sentence for a person.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, Table, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hepmaild.mail.address import check_address
from hepmaild.storage import sessions
from hepmaild.storage.schema import account
from hepmaild.storage.schema_people import login_session, one_time_link, recovery_code, refresh_token, user

OWNER = "owner"
SCOPES = ("read_only", "admin", OWNER)
MAX_USERS = 500  # of an account: one page shows them all


@dataclass(frozen=True, slots=True)
class UserRow:
    """A user with the state of the account.  totp_since_us: since when codes are asked for; None: they are not."""

    user_id: str
    account_id: str
    email: str
    first_name: str
    surname: str
    scope: str
    is_operator: bool
    is_verified: bool
    status: str
    totp_since_us: int | None
    totp_step: int
    created_at_us: int
    modified_at_us: int
    plan: str
    account_status: str
    password_hash: str | None = field(repr=False)
    totp_sealed: bytes | None = field(repr=False)

    @property
    def name(self) -> str:
        """As people say it; may be empty."""
        return f"{self.first_name} {self.surname}".strip()

    @property
    def may_log_in(self) -> bool:
        """Whether neither the user nor the account is suspended."""
        return self.status == "active" and self.account_status == "active"


_COLUMNS = (
    user.c.id,
    user.c.account_id,
    user.c.email,
    user.c.first_name,
    user.c.surname,
    user.c.scope,
    user.c.is_operator,
    user.c.is_verified,
    user.c.status,
    user.c.totp_since_us,
    user.c.totp_step,
    user.c.created_at_us,
    user.c.modified_at_us,
    account.c.plan,
    account.c.status,
    user.c.password_hash,
    user.c.totp_sealed,
)
_USER: Select[Any] = select(*_COLUMNS).join(account, account.c.id == user.c.account_id)


def key_of_email(email: str) -> str:
    """What e-mail addresses of users are compared by: a domain in the letters of its language is that in A-labels."""
    typed = email.strip()
    if not typed.isascii():
        with suppress(ValueError):
            typed = check_address.__wrapped__(typed)  # past its cache: people type passwords into that field, too
    return typed.casefold()


def by_email(conn: Connection, email: str) -> UserRow | None:
    """The user with this e-mail address."""
    row = conn.execute(_USER.where(user.c.email_key == key_of_email(email))).one_or_none()
    return None if row is None else UserRow(*row)


def by_id(conn: Connection, user_id: str, account_id: str | None = None, *, lock: bool = False) -> UserRow | None:
    """The user with this id, of this account if one is named.  lock: the row stays as it is until the unit ends."""
    query = _USER.where(user.c.id == user_id)
    if account_id is not None:
        query = query.where(user.c.account_id == account_id)
    if lock:
        query = query.with_for_update(of=user)
    row = conn.execute(query).one_or_none()
    return None if row is None else UserRow(*row)


def find(conn: Connection, email: str) -> UserRow:
    """As `by_email`; nobody is a refusal."""
    found = by_email(conn, email)
    if found is None:
        raise ValueError(f"there is no user {email}")
    return found


def locked(conn: Connection, account_id: str, user_id: str) -> UserRow:
    """A user of this account, to be changed; nobody is a refusal."""
    found = by_id(conn, user_id, account_id, lock=True)
    if found is None:
        raise ValueError("this user is no longer in the account")
    return found


def list_of(conn: Connection, account_id: str) -> list[dict[str, Any]]:
    """An account's users, oldest first: what may be shown of each."""
    query = select(
        user.c.id,
        user.c.email,
        user.c.first_name,
        user.c.surname,
        user.c.scope,
        user.c.is_operator,
        user.c.is_verified,
        user.c.status,
        user.c.password_hash.is_not(None).label("has_password"),
        user.c.totp_since_us,
        user.c.created_at_us,
        select(func.max(login_session.c.seen_at_us))
        .where(login_session.c.user_id == user.c.id)
        .scalar_subquery()
        .label("seen_at_us"),
    ).where(user.c.account_id == account_id)
    return [dict(row) for row in conn.execute(query.order_by(user.c.created_at_us, user.c.id)).mappings()]


def add(conn: Connection, *, account_id: str, user_id: str, email: str, scope: str, now_us: int) -> None:
    """A further user of an account, who cannot log in before a password is set."""
    _check_scope(scope)
    _check_room(conn, account_id)
    is_new = by_email(conn, email) is None and insert_new(
        conn,
        user,
        id=user_id,
        account_id=account_id,
        email=email,
        email_key=key_of_email(email),
        scope=scope,
        is_operator=False,
        created_at_us=now_us,
        modified_at_us=now_us,
    )
    if not is_new:
        # Told apart only for those who may invite; e-mail addresses are unique in the whole service.
        raise ValueError(f"{email} is a user of this service already: use another address")


def _check_room(conn: Connection, account_id: str) -> None:
    """Raise ValueError when the account has as many users as it may; until the unit ends nobody else adds one."""
    conn.execute(select(account.c.id).where(account.c.id == account_id).with_for_update(key_share=True))
    theirs = select(func.count()).select_from(user).where(user.c.account_id == account_id)
    if conn.execute(theirs).scalar_one() >= MAX_USERS:
        raise ValueError(f"the account has {MAX_USERS} users, as many as it may: remove one first")


def insert_new(conn: Connection, table: Table, **values: Any) -> bool:
    """Insert a row; False: there is one with the same key, which another process may have written just now."""
    make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    return bool(conn.execute(make(table).values(**values).on_conflict_do_nothing()).rowcount)


def set_scope(conn: Connection, account_id: str, user_id: str, scope: str, now_us: int) -> UserRow:
    """Another role; the user as it was.  The last owner stays one."""
    _check_scope(scope)
    found = locked(conn, account_id, user_id)
    if found.scope == OWNER and scope != OWNER:
        _check_another_owner(conn, found)
    conn.execute(update(user).where(user.c.id == user_id).values(scope=scope, modified_at_us=now_us))
    sessions.bump(conn)
    return found


def set_operator(conn: Connection, user_id: str, is_operator: bool, now_us: int) -> None:
    """Make a user an operator of the service, or no longer."""
    conn.execute(update(user).where(user.c.id == user_id).values(is_operator=is_operator, modified_at_us=now_us))
    sessions.bump(conn)


def set_names(conn: Connection, account_id: str, user_id: str, first_name: str, surname: str, now_us: int) -> None:
    """What a user is called."""
    names = {"first_name": first_name.strip(), "surname": surname.strip()}
    if any(len(name) > 100 or not name.isprintable() for name in names.values()):
        raise ValueError("a name has at most 100 printable characters")
    conn.execute(
        update(user).where(user.c.id == user_id, user.c.account_id == account_id).values(**names, modified_at_us=now_us)
    )
    sessions.bump(conn)


def set_status(conn: Connection, account_id: str, user_id: str, status: str, now_us: int) -> UserRow:
    """active or suspended; the user as it was.  One that is suspended is signed out everywhere."""
    if status not in {"active", "suspended"}:
        raise ValueError(f"no status: {status}")
    found = locked(conn, account_id, user_id)
    if found.scope == OWNER and status != "active":
        _check_another_owner(conn, found)
    conn.execute(update(user).where(user.c.id == user_id).values(status=status, modified_at_us=now_us))
    if status != "active":
        sessions.end_of_user(conn, user_id, by="suspended", now_us=now_us)
    sessions.bump(conn)
    return found


def remove(conn: Connection, account_id: str, user_id: str) -> UserRow:
    """Take a user away, with sessions and links; the user as it was."""
    found = locked(conn, account_id, user_id)
    if found.scope == OWNER:
        _check_another_owner(conn, found)
    theirs = select(login_session.c.id).where(login_session.c.user_id == user_id)
    conn.execute(delete(refresh_token).where(refresh_token.c.session_id.in_(theirs)))
    for column in (login_session.c.user_id, recovery_code.c.user_id, one_time_link.c.user_id, user.c.id):
        conn.execute(delete(column.table).where(column == user_id))
    sessions.bump(conn)
    return found


def set_password(conn: Connection, user_id: str, password_hash: str, now_us: int, *, by: str = "password") -> None:
    """Another password; every session and link of the user ends.  by: what to call that."""
    conn.execute(update(user).where(user.c.id == user_id).values(password_hash=password_hash, modified_at_us=now_us))
    conn.execute(delete(one_time_link).where(one_time_link.c.user_id == user_id, one_time_link.c.used_at_us.is_(None)))
    sessions.end_of_user(conn, user_id, by=by, now_us=now_us)


def rehash(conn: Connection, user_id: str, before: str, after: str) -> None:
    """The same password under other parameters, unless it was changed meanwhile."""
    conn.execute(update(user).where(user.c.id == user_id, user.c.password_hash == before).values(password_hash=after))


def verify_address(conn: Connection, user_id: str) -> None:
    """The person came in by a link that was given to them."""
    conn.execute(update(user).where(user.c.id == user_id).values(is_verified=True))


def begin_totp(conn: Connection, account_id: str, user_id: str, sealed: bytes) -> None:
    """Keep a second factor that is not asked for before it was confirmed."""
    if locked(conn, account_id, user_id).totp_since_us is not None:
        raise ValueError("the second factor is on already: turn it off first")
    conn.execute(update(user).where(user.c.id == user_id).values(totp_sealed=sealed, totp_step=0))


def confirm_totp(
    conn: Connection, account_id: str, user_id: str, sealed: bytes, step: int, hashes: Collection[bytes], now_us: int
) -> None:
    """Ask for codes from now on; `hashes` are those of the recovery codes.  sealed: the secret that was confirmed."""
    found = locked(conn, account_id, user_id)
    if found.totp_sealed != sealed or found.totp_since_us is not None:
        raise ValueError("the second factor was changed meanwhile: begin anew")
    conn.execute(
        update(user).where(user.c.id == user_id).values(totp_since_us=now_us, totp_step=step, modified_at_us=now_us)
    )
    replace_recovery_codes(conn, user_id, hashes)


def end_totp(conn: Connection, user_id: str, now_us: int) -> bool:
    """No second factor any more; whether there was one."""
    conn.execute(delete(recovery_code).where(recovery_code.c.user_id == user_id))
    changed = conn.execute(
        update(user)
        .where(user.c.id == user_id, user.c.totp_sealed.is_not(None))
        .values(totp_sealed=None, totp_since_us=None, totp_step=0, modified_at_us=now_us)
    )
    return bool(changed.rowcount)


def use_step(conn: Connection, user_id: str, step: int) -> bool:
    """Use the code of this step; False: it, or a later one, was used before."""
    changed = conn.execute(update(user).where(user.c.id == user_id, user.c.totp_step < step).values(totp_step=step))
    return bool(changed.rowcount)


def replace_recovery_codes(conn: Connection, user_id: str, hashes: Collection[bytes]) -> None:
    """Other recovery codes; the old ones are worth nothing any more."""
    conn.execute(delete(recovery_code).where(recovery_code.c.user_id == user_id))
    if hashes:
        conn.execute(insert(recovery_code), [{"user_id": user_id, "code_hash": each} for each in hashes])


def use_recovery_code(conn: Connection, user_id: str, code_hash: bytes, now_us: int) -> bool:
    """Use a recovery code; False: there is none like that, or it was used before."""
    changed = conn.execute(
        update(recovery_code)
        .where(
            recovery_code.c.user_id == user_id,
            recovery_code.c.code_hash == code_hash,
            recovery_code.c.used_at_us.is_(None),
        )
        .values(used_at_us=now_us)
    )
    return bool(changed.rowcount)


def recovery_codes_left(conn: Connection, user_id: str) -> int:
    """How many of them were not used yet."""
    query = select(func.count()).where(recovery_code.c.user_id == user_id, recovery_code.c.used_at_us.is_(None))
    return int(conn.execute(query).scalar_one())


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        raise ValueError(f"no role: {scope}; there are {', '.join(SCOPES)}")


def _check_another_owner(conn: Connection, but: UserRow) -> None:
    """Raise ValueError unless the account has another owner who can log in.  They are locked, so that two cannot leave
    at once."""
    query = select(user.c.id).where(user.c.account_id == but.account_id, user.c.scope == OWNER)
    if but.password_hash is not None:  # one who was invited may never come, and the link is dead after a day
        query = query.where(user.c.password_hash.is_not(None))
    others = conn.execute(
        query.where(user.c.status == "active", user.c.id != but.user_id).order_by(user.c.id).with_for_update()
    )
    if not others.all():
        raise ValueError("an account keeps at least one owner who has a password: make somebody else owner first")
