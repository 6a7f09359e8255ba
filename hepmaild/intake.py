# SPDX-License-Identifier: Apache-2.0
"""The intake: the only way in for mail, whichever door it came by.

Interface first; every method returns a value or a `Refusal`, and raises `StoreUnavailable` when the store does not
answer (503 / 451 4.3.0; 454 4.7.0 at AUTH).
"""

from __future__ import annotations

from hepmaild.errors import Refusal
from hepmaild.mail.submission import Door, KeyIdentity, RateState, Receipt, Submission, Verified


class Intake:
    async def authenticate(self, secret: str, *, door: Door, peer_ip: str) -> Verified | Refusal:
        """Check a key.  Refusals: INVALID_KEY, KEY_DISABLED, KEY_EXPIRED, IP_NOT_ALLOWED, CHANNEL_NOT_ALLOWED,
        ACCOUNT_SUSPENDED, TOO_MANY_FAILED_KEYS (with retry_after_s: HTTP answers 429 with Retry-After; SMTP waits
        retry_after_s... capped at 10 s, then answers the 535).  Cancel-safe."""
        raise NotImplementedError

    async def open_transaction(self, key: KeyIdentity, *, door: Door, peer_ip: str) -> KeyIdentity | Refusal:
        """At every MAIL: is the key still good, is there room in the backlog, are we draining?  Returns the identity
        as it is now.  Refusals: the key ones of `authenticate` (535: the session is as before AUTH), BACKLOG_FULL,
        DRAINING."""
        raise NotImplementedError

    async def take_call(self, key: KeyIdentity, *, recipients: int = 0) -> RateState | Refusal:
        """Count one call in the shared window, durably.  HTTP: once per send request with a valid key, before the body
        is read (recipients=0).  SMTP: when the content is about to be asked for (DATA, first BDAT) with the number
        of recipients so far, so that missing credits show early.  Refusals: RATE_LIMITED (retry_after_s set),
        DAILY_LIMIT_REACHED, INSUFFICIENT_CREDITS (extra: required, balance)."""
        raise NotImplementedError

    async def accept(self, submission: Submission) -> Receipt | Refusal:
        """Everything after the call was counted: sender, idempotency, one durable commit, hand over to delivery, wait
        for the first attempt up to `delivery.relay_wait_s` (SMTP with smtp.reply="on-commit": not at all).
        Cancellation before the commit costs nothing; from the commit on the message is ours whatever the caller does.
        RELAY_FAILED carries the next hop's reply in `reply`."""
        raise NotImplementedError
