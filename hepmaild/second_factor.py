# SPDX-License-Identifier: Apache-2.0
"""The second factor of one user: set up, confirmed, checked, turned off.  The secret is sealed by the vault."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from hepmaild import totp
from hepmaild.sealing import sealing
from hepmaild.storage import users
from hepmaild.storage.grants import Factor
from hepmaild.storage.store import Store
from hepmaild.storage.users import UserRow
from hepmaild.threads import in_thread
from hepmaild.vault import Place, Vault

ISSUER = "hepmaild"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What somebody puts into an app.  secret: base32.  uri: `otpauth://…`, for a QR code."""

    secret: str = field(repr=False)
    uri: str = field(repr=False)


class SecondFactor:
    """Secrets are opened and sealed in a thread: the vault's file may be slow.  Methods raise `SecretsUnavailable`.

    wall_us: the clock that codes go by.  The process's own does not follow steps of the machine's: after one of a
    minute nobody's code would be right, until a restart.
    """

    def __init__(self, store: Store, vault: Vault, files: trio.CapacityLimiter, wall_us: Callable[[], int]) -> None:
        self._store = store
        self._vault = vault
        self._files = files
        self._wall_us = wall_us

    async def look(self, user: UserRow, given: str | None) -> Factor:
        """What this code is; it is used up by `grants.use_factor` only."""
        if user.totp_since_us is None:
            return Factor(needed=False)
        cleaned = totp.clean(given or "")
        if totp.looks_like_recovery(cleaned):
            return Factor(needed=True, recovery_hash=totp.hash_recovery(cleaned))
        secret = await self._open(user)
        return Factor(needed=True, step=totp.matching_step(secret, cleaned, self._wall_us()))

    async def begin(self, account_id: str, user_id: str, email: str) -> Enrolment:
        """A fresh secret, which counts from its confirmation on.  ValueError: it is on already."""
        secret = secrets.token_bytes(totp.SECRET_OCTETS)
        async with sealing(self._vault, self._store, self._files):
            value = await in_thread(self._vault.seal, _place(user_id), secret, limiter=self._files)
            await self._store.write(users.begin_totp, account_id, user_id, value)
        return Enrolment(totp.secret_text(secret), totp.enrolment_uri(secret, issuer=ISSUER, email=email))

    async def pending(self, user: UserRow) -> Enrolment | None:
        """What was begun and not confirmed yet."""
        if user.totp_sealed is None or user.totp_since_us is not None:
            return None
        secret = await self._open(user)
        return Enrolment(totp.secret_text(secret), totp.enrolment_uri(secret, issuer=ISSUER, email=user.email))

    async def step_of_pending(self, user: UserRow, given: str) -> int | None:
        """The step of a code for what was begun; None: it is wrong."""
        if user.totp_sealed is None or user.totp_since_us is not None:
            raise ValueError("begin with the second factor first")
        return totp.matching_step(await self._open(user), totp.clean(given), self._wall_us())

    async def _open(self, user: UserRow) -> bytes:
        assert user.totp_sealed is not None
        return await in_thread(self._vault.open, _place(user.user_id), user.totp_sealed, limiter=self._files)


def _place(user_id: str) -> Place:
    return Place("user_account", "totp_sealed", (user_id,))
