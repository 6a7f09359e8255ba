# SPDX-License-Identifier: Apache-2.0
"""What people change about themselves and the users of their account; each change is in the account's audit log.

Every method takes who does it and the `Actor` for the log, and says no by a ValueError with a sentence.  Owners may do
everything; admins everything but what concerns owners; read-only users what concerns themselves.  Resets of somebody
else's password or second factor are the operator's.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hepmaild import totp
from hepmaild.login import Viewer
from hepmaild.mail.address import check_address
from hepmaild.policy import client_of
from hepmaild.second_factor import Enrolment, SecondFactor
from hepmaild.storage import audit, grants, links, sessions, tries, users
from hepmaild.storage.audit import Actor
from hepmaild.storage.grants import Factor
from hepmaild.storage.store import Store
from hepmaild.storage.users import OWNER, UserRow

if TYPE_CHECKING:
    from sqlalchemy import Connection

WRONG_CODE = "this code is wrong, too old or was used already: take the next one"


class Members:
    """Raises `StoreUnavailable` where the store fails, `SecretsUnavailable` where the vault does."""

    def __init__(self, store: Store, second_factor: SecondFactor, now_us: Callable[[], int]) -> None:
        self._store = store
        self._second_factor = second_factor
        self._now_us = now_us

    # -- the users of an account

    async def users(self, viewer: Viewer) -> list[dict[str, Any]]:
        """All of the viewer's account (`storage.users.list_of`)."""
        return await self._store.read(users.list_of, viewer.account_id)

    async def invite(self, viewer: Viewer, actor: Actor, email: str, scope: str) -> str:
        """A further user; the token of the link for them (`people.link_url`), which is shown once."""
        _check_may_give(viewer, scope)
        try:
            address = check_address(email.strip())
        except ValueError as error:
            raise ValueError(f"{email.strip()[:100]!r} is not an email address: {error}") from None
        token = links.new_token()
        await self._store.write(_invite, viewer, actor, str(uuid.uuid4()), address, scope, token, self._now_us())
        return token

    async def invite_again(self, viewer: Viewer, actor: Actor, user_id: str) -> str:
        """A new link for somebody who has not set a password yet; the one before stops working."""
        token = links.new_token()
        await self._store.write(_invite_again, viewer, actor, user_id, token, self._now_us())
        return token

    async def set_scope(self, viewer: Viewer, actor: Actor, user_id: str, scope: str) -> None:
        """Give a user another role; it counts at once."""
        _check_may_give(viewer, scope)
        await self._store.write(_set_scope, viewer, actor, user_id, scope, self._now_us())

    async def set_names(self, viewer: Viewer, actor: Actor, first_name: str, surname: str) -> None:
        """What the viewer is called."""
        await self._store.write(_set_names, viewer, actor, first_name, surname, self._now_us())

    async def set_status(self, viewer: Viewer, actor: Actor, user_id: str, status: str) -> None:
        """Suspend a user ("suspended"), or let them in again ("active")."""
        await self._store.write(_set_status, viewer, actor, user_id, status, self._now_us())

    async def remove(self, viewer: Viewer, actor: Actor, user_id: str) -> None:
        """Take a user out of the account; signed out at once."""
        await self._store.write(_remove, viewer, actor, user_id, self._now_us())

    async def reset_link(self, viewer: Viewer, actor: Actor, user_id: str, *, drop_second_factor: bool = False) -> str:
        """For operators: a link by which any user of the service sets a new password; its token, shown once."""
        if not viewer.is_operator:
            raise ValueError("only the operator can make a link for a new password")
        token = links.new_token()
        await self._store.write(reset_by_link, actor, user_id, token, drop_second_factor, self._now_us())
        return token

    # -- sessions

    async def sessions(self, viewer: Viewer, *, of_all: bool = False) -> list[dict[str, Any]]:
        """The viewer's sessions, or those of all users of the account."""
        if of_all:
            _check_manages(viewer)
        user_id = None if of_all else viewer.user_id
        return await self._store.read(sessions.list_of, viewer.account_id, self._now_us(), user_id=user_id)

    async def end_session(self, viewer: Viewer, actor: Actor, session_id: str) -> None:
        """End a session of the viewer's own, or, for owners and admins, of another user of the account."""
        await self._store.write(_end_session, viewer, actor, session_id, self._now_us())

    async def end_other_sessions(self, viewer: Viewer, actor: Actor) -> int:
        """End all the viewer's sessions but this one; how many."""
        return await self._store.write(_end_others, viewer, actor, self._now_us())

    # -- the second factor

    async def second_factor(self, viewer: Viewer) -> dict[str, Any]:
        """`{"since_us", "codes_left", "pending"}`: since when it is on (or None); an `Enrolment` if one was begun."""
        user, left = await self._store.read(_read_factor, viewer)
        return {"since_us": user.totp_since_us, "codes_left": left, "pending": await self._second_factor.pending(user)}

    async def begin_second_factor(self, viewer: Viewer) -> Enrolment:
        """A fresh secret, which is asked for once a code of it was given."""
        return await self._second_factor.begin(viewer.account_id, viewer.user_id, viewer.email)

    async def confirm_second_factor(self, viewer: Viewer, actor: Actor, code: str) -> list[str]:
        """Turn it on by a code of it; the recovery codes, which are shown once."""
        user, _ = await self._store.read(_read_factor, viewer)
        step = await self._second_factor.step_of_pending(user, code)
        if step is None:
            raise ValueError("this code is wrong: check that the clock of your device is right, and take the next one")
        codes, hashes = _fresh_codes()
        await self._store.write(_confirm, viewer, actor, user.totp_sealed or b"", step, hashes, self._now_us())
        return codes

    async def disable_second_factor(self, viewer: Viewer, actor: Actor, code: str) -> None:
        """Turn it off; a code, or a recovery code, is needed."""
        await self._with_code(viewer, actor, code, _disable)

    async def new_recovery_codes(self, viewer: Viewer, actor: Actor, code: str) -> list[str]:
        """Other recovery codes, shown once; a code is needed, and the old ones stop working."""
        codes, hashes = _fresh_codes()
        await self._with_code(viewer, actor, code, _replace_codes, hashes)
        return codes

    async def _with_code(
        self, viewer: Viewer, actor: Actor, code: str, change: Callable[..., None], *args: Any
    ) -> None:
        """Run a change for whoever has the code; wrong ones count as tries to log in."""
        user, _ = await self._store.read(_read_factor, viewer)
        if user.totp_since_us is None:
            raise ValueError("the second factor is not on")
        factor = await self._second_factor.look(user, code)
        try_id = str(uuid.uuid4())
        error = await self._store.write(_changing, viewer, actor, factor, try_id, change, args, self._now_us())
        if error:
            raise ValueError(error)


def reset_by_link(
    conn: Connection,
    actor: Actor,
    user_id: str,
    token: str,
    drop_second_factor: bool,
    now_us: int,
    *,
    life_us: int = links.LIFE_US,
) -> UserRow:
    """A one-time link for a user, by whoever may do that; what they have still works until it is used."""
    user = users.by_id(conn, user_id)
    if user is None:
        raise ValueError("there is no such user any more")
    purpose = links.SIGN_IN if user.password_hash is None else links.RESET
    links.make(conn, token=token, user_id=user_id, purpose=purpose, now_us=now_us, life_us=life_us)
    tries.forget(conn, users.key_of_email(user.email))
    dropped = drop_second_factor and users.end_totp(conn, user_id, now_us)
    data = {"purpose": purpose, "second_factor_dropped": dropped}
    _note(conn, user.account_id, actor, "user.link", user.email, now_us, data)
    return user


def _note(
    conn: Connection,
    account_id: str,
    actor: Actor,
    action: str,
    subject: str,
    now_us: int,
    data: dict[str, Any] | None = None,
) -> None:
    audit.note(conn, account_id=account_id, actor=actor, action=action, subject=subject, data=data, now_us=now_us)


def _check_manages(viewer: Viewer) -> None:
    if viewer.scope not in {OWNER, "admin"}:
        raise ValueError("your role in this account does not allow that: ask its owner")


def _check_may_give(viewer: Viewer, scope: str) -> None:
    _check_manages(viewer)
    if scope not in users.SCOPES:
        raise ValueError(f"there is no role {scope!r}")
    if scope == OWNER and viewer.scope != OWNER:
        raise ValueError("only an owner can make somebody owner")


def _manageable(conn: Connection, viewer: Viewer, user_id: str) -> UserRow:
    """A user of the viewer's account whom the viewer may change."""
    _check_manages(viewer)
    found = users.locked(conn, viewer.account_id, user_id)
    if found.scope == OWNER and viewer.scope != OWNER:
        raise ValueError("only an owner can change an owner")
    if found.is_operator and not viewer.is_operator:
        raise ValueError("only an operator can change an operator")
    return found


def _invite(
    conn: Connection, viewer: Viewer, actor: Actor, user_id: str, email: str, scope: str, token: str, now_us: int
) -> None:
    users.add(conn, account_id=viewer.account_id, user_id=user_id, email=email, scope=scope, now_us=now_us)
    links.make(conn, token=token, user_id=user_id, purpose=links.INVITE, now_us=now_us)
    _note(conn, viewer.account_id, actor, "user.invite", email, now_us, {"scope": scope})


def _invite_again(conn: Connection, viewer: Viewer, actor: Actor, user_id: str, token: str, now_us: int) -> None:
    found = _manageable(conn, viewer, user_id)
    if found.password_hash is not None:
        raise ValueError(f"{found.email} has a password already: the operator makes links for new ones")
    links.make(conn, token=token, user_id=user_id, purpose=links.INVITE, now_us=now_us)
    _note(conn, viewer.account_id, actor, "user.invite", found.email, now_us, {"scope": found.scope, "again": True})


def _set_scope(conn: Connection, viewer: Viewer, actor: Actor, user_id: str, scope: str, now_us: int) -> None:
    found = _manageable(conn, viewer, user_id)
    if found.scope != scope:
        users.set_scope(conn, viewer.account_id, user_id, scope, now_us)
        data = {"from": found.scope, "to": scope}
        _note(conn, viewer.account_id, actor, "user.scope", found.email, now_us, data)


def _set_names(conn: Connection, viewer: Viewer, actor: Actor, first_name: str, surname: str, now_us: int) -> None:
    users.set_names(conn, viewer.account_id, viewer.user_id, first_name, surname, now_us)
    _note(conn, viewer.account_id, actor, "user.name", viewer.email, now_us)


def _set_status(conn: Connection, viewer: Viewer, actor: Actor, user_id: str, status: str, now_us: int) -> None:
    found = _manageable(conn, viewer, user_id)
    if user_id == viewer.user_id:
        raise ValueError("you cannot suspend yourself")
    if found.status != status:
        users.set_status(conn, viewer.account_id, user_id, status, now_us)
        action = "user.resume" if status == "active" else "user.suspend"
        _note(conn, viewer.account_id, actor, action, found.email, now_us)


def _remove(conn: Connection, viewer: Viewer, actor: Actor, user_id: str, now_us: int) -> None:
    found = _manageable(conn, viewer, user_id)
    users.remove(conn, viewer.account_id, user_id)
    _note(conn, viewer.account_id, actor, "user.remove", found.email, now_us, {"scope": found.scope})


def _end_session(conn: Connection, viewer: Viewer, actor: Actor, session_id: str, now_us: int) -> None:
    gone = "this session has ended already"
    whose = sessions.live(conn, session_id, now_us)
    if whose is None:
        raise ValueError(gone)
    if whose.user_id != viewer.user_id:
        if users.by_id(conn, whose.user_id, viewer.account_id) is None:
            raise ValueError(gone)  # somebody else's account: nothing is told
        _manageable(conn, viewer, whose.user_id)
    ended = sessions.end_in_account(conn, viewer.account_id, session_id, now_us)
    if ended is None:
        raise ValueError(gone)
    data = {"kind": ended["kind"], "ip": ended["ip"]}
    _note(conn, viewer.account_id, actor, "session.end", ended["email"], now_us, data)


def _end_others(conn: Connection, viewer: Viewer, actor: Actor, now_us: int) -> int:
    ended = sessions.end_of_user(conn, viewer.user_id, by="revoked", but=viewer.session_id, now_us=now_us)
    if ended:
        _note(conn, viewer.account_id, actor, "session.end", viewer.email, now_us, {"sessions": ended})
    return ended


def _read_factor(conn: Connection, viewer: Viewer) -> tuple[UserRow, int]:
    user = users.by_id(conn, viewer.user_id, viewer.account_id)
    if user is None:
        raise ValueError("this user is no longer in the account")
    return user, users.recovery_codes_left(conn, viewer.user_id)


def _confirm(
    conn: Connection, viewer: Viewer, actor: Actor, sealed: bytes, step: int, hashes: list[bytes], now_us: int
) -> None:
    users.confirm_totp(conn, viewer.account_id, viewer.user_id, sealed, step, hashes, now_us)
    _note(conn, viewer.account_id, actor, "second_factor.on", viewer.email, now_us)


def _changing(
    conn: Connection,
    viewer: Viewer,
    actor: Actor,
    factor: Factor,
    try_id: str,
    change: Callable[..., None],
    args: tuple[Any, ...],
    now_us: int,
) -> str:
    """Use the code and make the change; why not, if not.  A wrong code stays written down as a try."""
    email_key, client = users.key_of_email(viewer.email), client_of(actor.ip)
    wait_us = tries.begin(conn, try_id=try_id, client=client, email_key=email_key, now_us=now_us)
    if wait_us:
        minutes = -(-wait_us // 60_000_000)
        return f"too many wrong tries: wait {minutes} minute{'' if minutes == 1 else 's'}"
    user = users.locked(conn, viewer.account_id, viewer.user_id)
    if not grants.use_factor(conn, user, factor, now_us):
        tries.wrong_code(conn, try_id)
        return WRONG_CODE
    tries.take_back(conn, try_id)
    change(conn, viewer, actor, now_us, *args)
    return ""


def _disable(conn: Connection, viewer: Viewer, actor: Actor, now_us: int) -> None:
    users.end_totp(conn, viewer.user_id, now_us)
    _note(conn, viewer.account_id, actor, "second_factor.off", viewer.email, now_us)


def end_factor(conn: Connection, viewer: Viewer, actor: Actor, seen: UserRow, try_id: str, now_us: int) -> bool:
    """Turn the second factor off for whoever gave the right password; False: it is another one by now."""
    user = users.locked(conn, viewer.account_id, viewer.user_id)
    if user.password_hash != seen.password_hash:
        return False
    tries.take_back(conn, try_id)
    if users.end_totp(conn, viewer.user_id, now_us):
        _note(conn, viewer.account_id, actor, "second_factor.off", viewer.email, now_us, {"by": "password"})
    return True


def _replace_codes(conn: Connection, viewer: Viewer, actor: Actor, now_us: int, hashes: list[bytes]) -> None:
    users.replace_recovery_codes(conn, viewer.user_id, hashes)
    _note(conn, viewer.account_id, actor, "second_factor.codes", viewer.email, now_us)


def _fresh_codes() -> tuple[list[str], list[bytes]]:
    codes = list(totp.recovery_codes(secrets.token_bytes(totp.RECOVERY_CODES * totp.RECOVERY_OCTETS)))
    return codes, [totp.hash_recovery(totp.clean(code)) for code in codes]
