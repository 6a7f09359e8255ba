# SPDX-License-Identifier: Apache-2.0
"""People who log in: passwords, second factors, sessions, one-time links (contract: login-api.md).

    password_grant / refresh / revoke     what `/oauth/token` and the sign-in page do
    code_grant                            its second step, for who has a second factor
    viewer_of                             who asks, for every request: the token is checked and its session still lives
    open_link / set_password_by_link      the first sign-in and the operator's reset
    members                               what people may change about themselves and the users of their account

An access token is good for 15 minutes at most, but each request also looks whether its session lives: whatever ended it
in any process counts at once.  That look is one small read of a generation; sessions are cached behind it.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import structlog
import trio

from hepmaild import passwords
from hepmaild.errors import SecretsUnavailable, StoreUnavailable
from hepmaild.login import (
    BAD_REFRESH_TOKEN,
    BAD_REVOKED_TOKEN,
    BUSY,
    DEAD_LINK,
    NEEDS_CODE,
    NO_SECRETS,
    OLD_TICKET,
    SUSPENDED,
    WRONG_CODE,
    WRONG_OLD_PASSWORD,
    WRONG_PASSWORD,
    Kind,
    Link,
    LoginRefusal,
    TokenSet,
    Viewer,
    bad_password,
    too_many,
)
from hepmaild.login_rows import read_link, read_viewer
from hepmaild.members import Members, end_factor
from hepmaild.policy import client_of
from hepmaild.second_factor import SecondFactor
from hepmaild.storage import audit, grants, sessions, tries, users
from hepmaild.storage.audit import Actor
from hepmaild.storage.grants import Granted, Proof
from hepmaild.storage.sessions import NewSession, NotRotated
from hepmaild.storage.store import Store
from hepmaild.storage.users import UserRow
from hepmaild.threads import in_thread
from hepmaild.tokens import SIGNING_US, Tokens, hash_refresh, new_refresh_token, unwrap, wrap
from hepmaild.vault import Vault

log = structlog.get_logger()

MAX_CACHED = 10_000
MAX_EMAIL = 1000
TURNS = 4  # logins that are looked at at once; the hashing itself has a limiter of its own
TURN_WAIT_S = 20.0
LINK_PATH = "/link/"


class People:
    """`start` before the first question; `run` renews the signing key, until cancelled.

    hashing, files: passwords, and the vault's files, at once.  wall_us: the clock that telephones go by; None: now_us.
    turn_wait_s: a login's, for others.  All raise `StoreUnavailable`; cancelled before its commit one changes nothing.
    """

    def __init__(
        self,
        store: Store,
        vault: Vault,
        *,
        hashing: trio.CapacityLimiter,
        files: trio.CapacityLimiter,
        now_us: Callable[[], int],
        wall_us: Callable[[], int] | None = None,
        turn_wait_s: float = TURN_WAIT_S,
        cost: passwords.Cost = passwords.COST,
    ) -> None:
        self._store = store
        self._turn_wait_s = turn_wait_s
        self._cost = cost
        self._hashing = hashing
        self._now_us = now_us
        self._tokens = Tokens(store, now_us)
        self._turns = trio.CapacityLimiter(TURNS)
        self._generation: int | None = None
        self._known: OrderedDict[str, tuple[Viewer, int]] = OrderedDict()
        self.second_factor = SecondFactor(store, vault, files, wall_us or now_us)
        self.members = Members(store, self.second_factor, now_us)

    async def start(self) -> None:
        """Get ready to sign and check.  Raises `StoreUnavailable`."""
        await self._tokens.renew()
        await self.learn()

    async def run(self) -> None:
        """Sign with a fresh key every day, until cancelled."""
        while True:
            await trio.sleep(SIGNING_US / 1e6)
            try:
                await self._tokens.renew()
            except StoreUnavailable:
                log.warning("token_key_not_renewed", kept="the previous one")

    # -- who asks

    async def viewer_of(self, access_token: str) -> Viewer | None:
        """Whose access token this is; None: nobody's, or its session has ended."""
        await self.learn()
        access = self._tokens.read(access_token)
        if access is None:
            return None
        viewer = await self._viewer(access.session_id)
        return viewer if viewer is not None and viewer.user_id == access.user_id else None

    async def viewer_in(self, session_id: str) -> Viewer | None:
        """Who is logged in by this session; None: it has ended.  For what outlives a request, such as a websocket."""
        await self.learn()
        return await self._viewer(session_id)

    async def user_of(self, viewer: Viewer) -> UserRow | None:
        """The viewer's own row."""
        return await self._store.read(users.by_id, viewer.user_id)

    async def learn(self) -> None:
        """Drop what is cached if anything has changed anywhere, by a read that begins now."""
        generation = await self._store.glance(sessions.GENERATION)
        if generation != self._generation:
            self._known = OrderedDict()  # not cleared: who reads just now puts what was so before into the old one
            await self._tokens.load()
            self._generation = generation

    async def _viewer(self, session_id: str) -> Viewer | None:
        cache = self._known
        known = cache.get(session_id)
        if known is None:
            known = await self._store.read(read_viewer, session_id, self._now_us())
            if known is None:
                return None
            cache[session_id] = known
            if len(cache) > MAX_CACHED:
                cache.popitem(last=False)
        viewer, ends_at_us = known
        return viewer if ends_at_us > self._now_us() else None

    def csrf_token(self, session_id: str) -> str:
        """What forms of this session carry."""
        return self._tokens.guard(session_id)

    def check_csrf(self, session_id: str, token: str) -> bool:
        """Whether a form that came carries what `csrf_token` made for this session, in any process."""
        return self._tokens.is_guard(session_id, token)

    def visitor_token(self, visitor: str) -> str:
        """What the sign-in form of this visitor carries; worth nothing for a session, even one of the same name."""
        return self._tokens.guard_visitor(visitor)

    def check_visitor(self, visitor: str, token: str) -> bool:
        """Whether a sign-in form carries what `visitor_token` made for this visitor, in any process."""
        return self._tokens.is_visitor_guard(visitor, token)

    # -- logging in

    async def password_grant(
        self, email: str, password: str, *, otp: str | None, ip: str, agent: str, kind: Kind, visitor: str = ""
    ) -> TokenSet | LoginRefusal:
        """Log in with e-mail address and password (and the second factor's code, where it is on).

        An unknown user takes as long as a wrong password.  A program's login ends the user's earlier programs'.
        visitor: what a browser is known by; where only the code is missing, the refusal has a ticket for it.
        """
        email_key = _email_key(email)
        client = client_of(ip)
        async with self._turn() as has_turn:
            if not has_turn:
                return BUSY
            try_id = str(uuid.uuid4())
            wait_us = await self._store.write(
                tries.begin, try_id=try_id, client=client, email_key=email_key, now_us=self._now_us()
            )
            if wait_us:
                return too_many(wait_us)
            found = await self._store.read(users.by_email, email_key)
            if found is None or not await self._is_password(found, password):
                if found is None:
                    await self._is_password(None, password)
                return WRONG_PASSWORD
            done = await self._second_step(found, password, otp, Proof(try_id, client, email_key), ip, agent, kind)
        if done is NEEDS_CODE and visitor:
            return replace(NEEDS_CODE, ticket=self._tokens.ticket(visitor, found.user_id, _state_of(found)))
        return done

    async def code_grant(
        self, ticket: str, otp: str | None, *, visitor: str, ip: str, agent: str
    ) -> TokenSet | LoginRefusal:
        """Log in a browser by its ticket and the code.  A wrong code is a try, as beside the password.

        `OLD_TICKET` when it is too old, somebody else's, or password or second factor have changed since.
        """
        told = self._tokens.read_ticket(visitor, ticket)
        found = None if told is None else await self._store.read(users.by_id, told.user_id)
        if told is None or found is None or not told.fits(_state_of(found)):
            return OLD_TICKET
        proof = Proof(str(uuid.uuid4()), client_of(ip), _email_key(found.email))
        async with self._turn() as has_turn:
            if not has_turn:
                return BUSY
            refusal = await self._begin_code(otp, proof)
            return refusal or await self._second_step(found, None, otp, proof, ip, agent, "browser")

    async def _second_step(
        self, found: UserRow, password: str | None, otp: str | None, proof: Proof, ip: str, agent: str, kind: Kind
    ) -> TokenSet | LoginRefusal:
        """The password was right.  None: it was looked at a moment ago."""
        if found.totp_since_us is not None and not otp:
            await self._store.write(tries.take_back, proof.try_id)
            return NEEDS_CODE
        try:
            factor = await self.second_factor.look(found, otp)
        except SecretsUnavailable as error:
            await self._store.write(tries.take_back, proof.try_id)
            log.error("second_factor_unusable", user_id=found.user_id, reason=str(error))
            return NO_SECRETS
        if not found.may_log_in:
            await self._store.write(tries.take_back, proof.try_id)
            return SUSPENDED
        rehashed = None
        if password is not None and found.password_hash and passwords.needs_rehash(found.password_hash, self._cost):
            rehashed = await self._hash(password)
        token = new_refresh_token()
        granted: Granted | str = await self._store.write(
            grants.by_password,
            found,
            factor,
            proof,
            _new_session(found, kind, ip, agent),
            hash_refresh(token),
            rehashed=rehashed,
            now_us=self._now_us(),
        )
        if isinstance(granted, str):
            return {"code": WRONG_CODE, "suspended": SUSPENDED}.get(granted, WRONG_PASSWORD)
        return self._token_set(granted, token)

    async def refresh(self, refresh_token: str, *, ip: str) -> TokenSet | LoginRefusal:
        """Another token set for a refresh token, which is used up by that.

        One that was used before ends its whole session, and with it every token that came of it.  Only browsers, whose
        tabs may ask at the same time, get the same next token for half a minute.
        """
        client, now_us = client_of(ip), self._now_us()
        token_hash = hash_refresh(refresh_token)
        # Whoever signed in by a browser stays so, whatever others behind the same address try.
        if await self._store.read(sessions.kind_of_living, token_hash, now_us) == "program":
            wait_us = await self._store.read(tries.client_wait_us, client, now_us)
            if wait_us:
                return too_many(wait_us)
        token = new_refresh_token()
        done: Granted | NotRotated = await self._store.write(
            grants.by_refresh,
            token_hash=token_hash,
            next_hash=hash_refresh(token),
            wrapped=wrap(refresh_token, token),
            ip=ip,
            now_us=now_us,
        )
        if isinstance(done, NotRotated):
            _warn_of_theft(done, client)
            return await self._failed_refresh(client)
        if done.wrapped is not None:
            same = unwrap(refresh_token, done.wrapped)
            if same is None:
                return BAD_REFRESH_TOKEN
            token = same
        return self._token_set(done, token)

    async def _failed_refresh(self, client: str) -> LoginRefusal:
        wait_us = await self._store.write(
            tries.failed_refresh, try_id=str(uuid.uuid4()), client=client, now_us=self._now_us()
        )
        return too_many(wait_us) if wait_us else BAD_REFRESH_TOKEN

    async def revoke(self, viewer: Viewer, refresh_token: str, *, ip: str) -> LoginRefusal | None:
        """End the session of a refresh token of the viewer's own; a refusal when it is none (any more)."""
        token_hash, user_id, now_us = hash_refresh(refresh_token), viewer.user_id, self._now_us()
        done = await self._store.write(grants.by_revoke, token_hash=token_hash, user_id=user_id, ip=ip, now_us=now_us)
        if done is None:
            return None
        _warn_of_theft(done, client_of(ip))
        return BAD_REVOKED_TOKEN

    async def sign_out(self, session_id: str) -> None:
        """End a session; nothing happens when it has ended."""
        await self._store.write(sessions.end, [session_id], by="sign-out", now_us=self._now_us())

    async def change_password(
        self, viewer: Viewer, old: str, new: str, *, ip: str, agent: str
    ) -> TokenSet | LoginRefusal:
        """The viewer's own password, for whoever knows the old one.

        Every session ends, this one too, which goes on under the tokens that are returned.
        """
        try:
            passwords.check_password(new, email=viewer.email)
        except ValueError as error:
            return bad_password(error)
        async with self._turn() as has_turn:
            if not has_turn:
                return BUSY
            proved = await self._prove(viewer, old, ip)
            if isinstance(proved, LoginRefusal):
                return proved
            found, proof = proved
            kept = await self._hash(new)
        token = new_refresh_token()
        granted: Granted | str = await self._store.write(
            grants.by_change,
            found,
            proof,
            viewer.session_id,
            _new_session(found, "browser", ip, agent),
            hash_refresh(token),
            password_hash=kept,
            actor=Actor(found.user_id, found.email, ip, "dashboard"),
            now_us=self._now_us(),
        )
        return WRONG_OLD_PASSWORD if isinstance(granted, str) else self._token_set(granted, token)

    async def drop_second_factor(self, viewer: Viewer, actor: Actor, password: str) -> LoginRefusal | None:
        """Turn the viewer's own second factor off by the password: for whoever lost the app and the recovery codes.

        A wrong password counts as a try to log in.
        """
        async with self._turn() as has_turn:
            if not has_turn:
                return BUSY
            proved = await self._prove(viewer, password, actor.ip)
            if isinstance(proved, LoginRefusal):
                return proved
            found, proof = proved
        is_off = await self._store.write(end_factor, viewer, actor, found, proof.try_id, self._now_us())
        return None if is_off else WRONG_OLD_PASSWORD

    async def _prove(self, viewer: Viewer, password: str, ip: str) -> tuple[UserRow, Proof] | LoginRefusal:
        """Whether somebody who is logged in knows the own password; counted as a try to log in.  Within a turn."""
        proof = Proof(str(uuid.uuid4()), client_of(ip), _email_key(viewer.email))
        wait_us = await self._store.write(
            tries.begin, try_id=proof.try_id, client=proof.client, email_key=proof.email_key, now_us=self._now_us()
        )
        if wait_us:
            return too_many(wait_us)
        found = await self._store.read(users.by_id, viewer.user_id)
        if found is None or not await self._is_password(found, password):
            return WRONG_OLD_PASSWORD
        return found, proof

    # -- one-time links

    async def open_link(self, token: str) -> Link | None:
        """What a one-time link is for; None: it does not work (any more).  Looking does not use it up.

        Nothing is counted: 256 random bits are not to be guessed.
        """
        return await self._store.read(read_link, token, self._now_us())

    async def set_password_by_link(
        self, token: str, password: str, *, ip: str, agent: str, kind: Kind = "browser", otp: str | None = None
    ) -> TokenSet | LoginRefusal:
        """Use a link: set the password, end every earlier session, and log in.

        A second factor that is on is asked for here too (40103); a password that is not good enough is 40003.
        """
        link = await self._store.read(read_link, token, self._now_us())
        found = None if link is None else await self._store.read(users.by_id, link.user_id)
        if found is None:
            return DEAD_LINK
        try:
            passwords.check_password(password, email=found.email)
        except ValueError as error:
            return bad_password(error)
        proof = Proof(str(uuid.uuid4()), client_of(ip), _email_key(found.email))
        async with self._turn() as has_turn:
            if not has_turn:
                return BUSY
            if found.totp_since_us is not None:
                refusal = await self._begin_code(otp, proof)
                if refusal is not None:
                    return refusal
            try:
                factor = await self.second_factor.look(found, otp)
            except SecretsUnavailable:
                return NO_SECRETS
            kept = await self._hash(password)
        refresh_token = new_refresh_token()
        granted: Granted | str = await self._store.write(
            grants.by_link,
            found,
            factor,
            proof,
            _new_session(found, kind, ip, agent),
            hash_refresh(refresh_token),
            link_token=token,
            password_hash=kept,
            actor=Actor(found.user_id, found.email, ip, "dashboard"),
            now_us=self._now_us(),
        )
        if isinstance(granted, str):
            return {"code": WRONG_CODE, "suspended": SUSPENDED}.get(granted, DEAD_LINK)
        return self._token_set(granted, refresh_token)

    async def _begin_code(self, otp: str | None, proof: Proof) -> LoginRefusal | None:
        """Codes behind a link are tried within the same limits as those behind a password."""
        if not otp:
            return NEEDS_CODE
        wait_us = await self._store.write(
            tries.begin, try_id=proof.try_id, client=proof.client, email_key=proof.email_key, now_us=self._now_us()
        )
        return too_many(wait_us) if wait_us else None

    # -- helpers

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[bool]:
        """Wait for one of the turns, not for ever."""
        with trio.move_on_after(self._turn_wait_s) as scope:
            await self._turns.acquire()
        if scope.cancelled_caught:
            yield False
            return
        try:
            yield True
        finally:
            self._turns.release()

    async def _hash(self, password: str) -> str:
        return await in_thread(passwords.hash_password, password, self._cost, limiter=self._hashing)

    async def _is_password(self, found: UserRow | None, password: str) -> bool:
        """Whether it is; the same work whoever is asked for."""
        kept = passwords.decoy(self._cost) if found is None or found.password_hash is None else found.password_hash
        given = password[: passwords.MAX_LENGTH + 1]
        return await in_thread(passwords.verify_password, kept, given, limiter=self._hashing)

    def _token_set(self, granted: Granted, refresh_token: str) -> TokenSet:
        user, session = granted.user, granted.session
        scope = scope_of(user)
        claims: dict[str, Any] = {
            "sub": user.email,
            "id": user.user_id,
            "account_id": user.account_id,
            "name": user.name,
            "scope": list(scope),
            "is_account_verified": user.is_verified,
            "sid": session.session_id,
        }
        access_token, expires_s = self._tokens.sign(claims)
        return TokenSet(access_token, refresh_token, expires_s * 1000, scope, session.session_id)


def scope_of(user: UserRow) -> tuple[str, ...]:
    """As the API tells it: the role in the account, and whether the user is an operator."""
    return (user.scope, "operator") if user.is_operator else (user.scope,)


def link_url(base: str, token: str) -> str:
    """The address of a one-time link.  base: as people reach the dashboard, with or without a slash at its end."""
    return f"{base.rstrip('/')}{LINK_PATH}{token}"


def _email_key(email: str) -> str:
    return users.key_of_email(audit.clean(email, MAX_EMAIL))


def _state_of(user: UserRow) -> bytes:
    """What a ticket is for: this password, this second factor."""
    return (user.password_hash or "").encode() + b"\0" + (user.totp_sealed or b"")


def _warn_of_theft(done: NotRotated, client: str) -> None:
    if done.theft_from is not None:
        log.warning("refresh_token_reused", user_id=done.theft_from.user_id, client=client)


def _new_session(user: UserRow, kind: Kind, ip: str, agent: str) -> NewSession:
    return NewSession(str(uuid.uuid4()), user.user_id, kind, ip, audit.clean(agent, 200))


__all__ = ["Link", "LoginRefusal", "People", "TokenSet", "Viewer", "link_url", "scope_of"]
