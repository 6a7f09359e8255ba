# SPDX-License-Identifier: Apache-2.0
"""The words of logging in: who asks, what they get, what they are told (contract: login-api.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["program", "browser"]


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who asks.  scope: "owner", "admin" or "read_only"."""

    user_id: str
    account_id: str
    email: str
    name: str
    scope: str
    is_operator: bool
    session_id: str
    plan: str
    account_status: str


@dataclass(frozen=True, slots=True)
class TokenSet:
    """Somebody is logged in.  expires_at_ms: of the access token, Unix milliseconds.  scope: as the API tells it."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at_ms: int
    scope: tuple[str, ...]
    session_id: str


@dataclass(frozen=True, slots=True)
class LoginRefusal:
    """Somebody is not logged in.  code: as in login-api.md.  message: a sentence, safe to show.

    ticket: with `NEEDS_CODE`, what a browser comes back with beside the code (`People.code_grant`).
    """

    code: int
    http_status: int
    message: str
    retry_after_s: int | None = None
    ticket: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Link:
    """A one-time link that works.  purpose: "sign-in", "reset" or "invite".  needs_otp: a second factor is on."""

    purpose: str
    user_id: str
    email: str
    needs_otp: bool


WRONG_PASSWORD = LoginRefusal(40102, 403, "Username and password are incorrect")
WRONG_OLD_PASSWORD = LoginRefusal(40102, 403, "This is not your present password")
BAD_REFRESH_TOKEN = LoginRefusal(40106, 403, "Refresh token is invalid")
BAD_REVOKED_TOKEN = LoginRefusal(40106, 401, "Refresh token is invalid")
NEEDS_CODE = LoginRefusal(40103, 401, "The code of your second factor is needed: send it as X-OTP")
WRONG_CODE = LoginRefusal(40103, 401, "This code is wrong, too old or was used already: take the next one")
OLD_TICKET = LoginRefusal(40102, 403, "That took too long: sign in once more")
SUSPENDED = LoginRefusal(40302, 403, "This account is suspended: ask the operator")
DEAD_LINK = LoginRefusal(41001, 410, "This link was used already or is too old: ask for another one")
BUSY = LoginRefusal(50301, 503, "Too many people log in at the moment: try again soon", 5)
NO_SECRETS = LoginRefusal(50301, 503, "The second factor cannot be checked at the moment: tell the operator", 60)


def too_many(wait_us: int) -> LoginRefusal:
    """The refusal for a client with too many wrong tries, which may try again in so many microseconds."""
    wait_s = max(1, -(-wait_us // 1_000_000))
    minutes = -(-wait_s // 60)
    text = f"Too many wrong tries from your IP address: try again in {minutes} minute{'s' if minutes > 1 else ''}"
    return LoginRefusal(42901, 429, text, wait_s)


def bad_password(error: ValueError) -> LoginRefusal:
    """The refusal for a new password that is not good enough."""
    text = str(error)
    return LoginRefusal(40003, 400, text[:1].upper() + text[1:])
