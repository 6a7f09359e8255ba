# SPDX-License-Identifier: Apache-2.0
"""Credentials of an API request: a bearer token, or HTTP Basic with the key as user name (RFC 6750, RFC 7617)."""

from __future__ import annotations

import base64
import time
from dataclasses import replace

from hepmaild.errors import ErrorKind, Refusal, RefusedError
from hepmaild.http.call import Call
from hepmaild.intake import Intake
from hepmaild.mail.submission import Door, KeyIdentity, Permission, RateState

MAX_SECRET = 256
WINDOW_S = 60

_HOW = 'Send it as "Authorization: Bearer hyd-mail-...", or as the user name of HTTP Basic with an empty password.'


def read_credentials(authorization: str | None) -> str | Refusal:
    """The secret in an Authorization header; a Refusal (MISSING_KEY, INVALID_KEY) says how to send one."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer" and rest:
        return rest[:MAX_SECRET]
    if scheme.lower() == "basic" and rest:
        try:
            user, _, password = base64.b64decode(rest[: 4 * MAX_SECRET], validate=True).decode("utf-8").partition(":")
        except ValueError:
            return Refusal(ErrorKind.INVALID_KEY, f"The Basic credentials cannot be read. {_HOW}")
        if password:
            return Refusal(ErrorKind.INVALID_KEY, f"The key must be the user name and the password empty. {_HOW}")
        if user:
            return user[:MAX_SECRET]
    return Refusal(ErrorKind.MISSING_KEY, f"An API key is needed. {_HOW}")


def check_readable(authorization: str | None) -> None:
    """Raises RefusedError (MISSING_KEY) when no key can be read from the header, whatever is wrong with it."""
    secret = read_credentials(authorization)
    if isinstance(secret, Refusal):
        raise RefusedError(replace(secret, kind=ErrorKind.MISSING_KEY))


async def identify(
    intake: Intake, call: Call, authorization: str | None, needs: Permission | None = None, word: str | None = None
) -> KeyIdentity:
    """Whose request this is, counted in the shared window.

    needs: which permission the key must have instead of `http`.  word: the caller's idempotency word.

    Raises RefusedError (401, 403 or 429) and StoreUnavailable (503).  Cancelled before the count, nothing is counted.
    """
    key = await recognise(intake, call, authorization, needs)
    await count(intake, call, key, word)
    return key


async def recognise(
    intake: Intake, call: Call, authorization: str | None, needs: Permission | None = None
) -> KeyIdentity:
    """Whose request this is, not counted yet.  From here on every answer tells the key's rate.

    Raises RefusedError (401, 403) and StoreUnavailable (503).  Cancel-safe.
    """
    secret = read_credentials(authorization)
    if isinstance(secret, Refusal):
        raise RefusedError(secret)
    verified = await intake.authenticate(secret, door=Door.HTTP, peer_ip=str(call.client_ip), needs=needs)
    if isinstance(verified, Refusal):
        raise RefusedError(verified)
    key = verified.key
    call.key_id = key.key_id
    # Until the window answers: the key is valid, so its limit is told, and nothing is promised.
    call.rate = RateState(key.calls_per_minute, 0, int(time.time()) + WINDOW_S)
    return key


async def count(intake: Intake, call: Call, key: KeyIdentity, word: str | None = None) -> None:
    """Count the request in the shared window.

    Raises RefusedError (429) and StoreUnavailable (503).  Cancelled before the count, nothing is counted.
    """
    taken = await intake.take_call(key, word=word)
    if isinstance(taken, Refusal):
        raise RefusedError(taken)
    call.rate = taken
