# SPDX-License-Identifier: Apache-2.0
"""Tokens: access tokens (JWT, RFC 7519), refresh tokens, and what guards forms against forgery.

Access tokens are signed with Ed25519 (RFC 8037).  Every process has a key of its own, in memory only; the store has the
public halves, for every process to check with.  So no secret is shared, and a stolen database signs nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hepmaild.config import DAY_US
from hepmaild.storage import sessions
from hepmaild.storage.store import Store

TOPIC = "people"
ISSUER = "hepmaild"
ALGORITHM = "EdDSA"
ACCESS_S = 900
TICKET_S = 300  # from the right password to the code of the second factor
SIGNING_US = DAY_US  # so long a process signs with one key
CHECKING_US = 7 * SIGNING_US  # and so long what it signed is accepted at all: forms that were left open
MAX_ACCESS_CHARS = 4096
REFRESH_CHARS = 128
_CLAIMS = ("iss", "sub", "id", "account_id", "name", "scope", "is_account_verified", "iat", "exp", "jti", "sid")
_NONCE_OCTETS = 12


@dataclass(frozen=True, slots=True)
class Access:
    """What a good access token says."""

    session_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a good ticket says: who gave the right password, and a digest of what they were then."""

    user_id: str
    digest: str

    def fits(self, state: bytes) -> bool:
        """Whether the user is still what they were."""
        return secrets.compare_digest(self.digest, _digest(state))


@dataclass(frozen=True, slots=True)
class _Key:
    """Our own key."""

    id: str
    made_at_us: int
    private: Ed25519PrivateKey = field(repr=False)


class Tokens:
    """Signs and checks.  `renew` once before the first signature, and then before `SIGNING_US` have passed."""

    def __init__(self, store: Store, now_us: Callable[[], int]) -> None:
        self._store = store
        self._now_us = now_us
        self._own: _Key | None = None
        self._public: dict[str, tuple[Ed25519PublicKey, int]] = {}

    async def renew(self) -> None:
        """Sign with a fresh key from now on, which is in the store first.  Raises `StoreUnavailable`."""
        private = Ed25519PrivateKey.generate()
        octets = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        key_id = base64.urlsafe_b64encode(hashlib.sha256(octets).digest())[:22].decode("ascii")
        made_at_us = self._now_us()
        until_us = made_at_us + CHECKING_US
        await self._store.write(sessions.publish_key, key_id, octets, until_us)
        self._public[key_id] = (private.public_key(), until_us)
        self._own = _Key(key_id, made_at_us, private)
        await self._store.announce(TOPIC)  # a hint: who has not heard it learns it by the generation

    async def load(self) -> None:
        """Read everybody's public keys.  Raises `StoreUnavailable`."""
        rows = await self._store.read(sessions.public_keys, self._now_us())
        before, own = self._public, self._own
        self._public = {
            key_id: before.get(key_id) or (Ed25519PublicKey.from_public_bytes(octets), until_us)
            for key_id, (octets, until_us) in rows.items()
        }
        if own is not None:  # the snapshot may be older than it
            self._public[own.id] = (own.private.public_key(), own.made_at_us + CHECKING_US)

    def sign(self, claims: Mapping[str, Any]) -> tuple[str, int]:
        """An access token with these claims and ours, and when it expires (Unix seconds)."""
        key = self._key()
        now_s = self._now_us() // 1_000_000
        complete = {**claims, "iss": ISSUER, "iat": now_s, "exp": now_s + ACCESS_S, "jti": secrets.token_hex(16)}
        return jwt.encode(complete, key.private, algorithm=ALGORITHM, headers={"kid": key.id}), now_s + ACCESS_S

    def read(self, token: str) -> Access | None:
        """What an access token says; None: it is not ours, was changed, or is too old.

        Only EdDSA is accepted, whatever the token says of itself, and only our own claims.
        """
        if len(token) > MAX_ACCESS_CHARS:
            return None
        try:
            key = self._public_key(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                # The times are looked at below, by our own clock.
                options={"require": list(_CLAIMS), "verify_exp": False, "verify_iat": False, "verify_aud": False},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        now_s = self._now_us() / 1_000_000
        issued, expires = claims["iat"], claims["exp"]
        if not (type(issued) is int and type(expires) is int) or not issued <= expires <= issued + ACCESS_S:
            return None
        if now_s >= expires or not all(type(claims[name]) is str for name in ("sid", "id")):
            return None
        return Access(claims["sid"], claims["id"])

    def guard(self, session_id: str) -> str:
        """What a form of this session carries, so that no other site can send it."""
        return self._guard(_guarded(session_id))

    def is_guard(self, session_id: str, given: str) -> bool:
        """Whether `guard` made this for the session, in any process, within the last days."""
        return self._is_guard(_guarded(session_id), given)

    def guard_visitor(self, visitor: str) -> str:
        """As `guard`, for who has no session yet.  A visitor's name is the browser's word: it guards no session."""
        return self._guard(_visited(visitor))

    def is_visitor_guard(self, visitor: str, given: str) -> bool:
        """As `is_guard`, for what `guard_visitor` made."""
        return self._is_guard(_visited(visitor), given)

    def _guard(self, octets: bytes) -> str:
        key = self._key()
        return f"{key.id}.{_text(key.private.sign(octets))}"

    def _is_guard(self, octets: bytes, given: str) -> bool:
        key_id, _, signature = given[:200].partition(".")
        key = self._public_key(key_id)
        return key is not None and _is_signed(key, signature, octets)

    def ticket(self, visitor: str, user_id: str, state: bytes) -> str:
        """What whoever gave the right password a moment ago comes back with, for `TICKET_S`.

        visitor: what their browser is known by.  state: of the user; a ticket is worth nothing once it has changed.
        """
        key = self._key()
        body = f"{key.id}.{user_id}.{self._now_us() // 1_000_000 + TICKET_S}.{_digest(state)}"
        return f"{body}.{_text(key.private.sign(_ticketed(visitor, body)))}"

    def read_ticket(self, visitor: str, given: str) -> Ticket | None:
        """What a ticket says; None: it is not ours, not this visitor's, was changed, or is too old."""
        body, _, signature = given[:400].rpartition(".")
        key_id, user_id, until_s, digest = (body.split(".") + [""] * 4)[:4]
        key = self._public_key(key_id)
        if key is None or not _is_signed(key, signature, _ticketed(visitor, body)):
            return None
        return Ticket(user_id, digest) if self._now_us() < int(until_s) * 1_000_000 else None

    def _key(self) -> _Key:
        assert self._own is not None, "renew() first"
        return self._own

    def _public_key(self, key_id: object) -> Ed25519PublicKey | None:
        key, until_us = self._public.get(key_id, (None, 0)) if isinstance(key_id, str) else (None, 0)
        return key if until_us > self._now_us() else None


def _guarded(session_id: str) -> bytes:
    """Never the beginning of a JWT, so that neither signature can stand for the other."""
    return b"hepmaild form\0" + session_id.encode("utf-8", "surrogatepass")


def _visited(visitor: str) -> bytes:
    return b"hepmaild visitor\0" + visitor.encode("utf-8", "surrogatepass")


def _ticketed(visitor: str, body: str) -> bytes:
    return b"hepmaild code\0" + f"{visitor}\0{body}".encode("utf-8", "surrogatepass")


def _digest(state: bytes) -> str:
    return _text(hashlib.sha256(b"hepmaild state\0" + state).digest())


def _is_signed(key: Ed25519PublicKey, signature: str, octets: bytes) -> bool:
    try:
        key.verify(base64.urlsafe_b64decode(signature + "=="), octets)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _text(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode("ascii").rstrip("=")


def new_refresh_token() -> str:
    """128 URL-safe characters, 768 random bits."""
    return secrets.token_urlsafe(REFRESH_CHARS * 3 // 4)


def hash_refresh(token: str) -> bytes:
    """What is kept of a refresh token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def wrap(token: str, successor: str) -> bytes:
    """The token that follows `token`, readable with `token` alone, of which the database has only the hash."""
    nonce = os.urandom(_NONCE_OCTETS)
    return nonce + AESGCM(_wrapping_key(token)).encrypt(nonce, successor.encode("ascii"), None)


def unwrap(token: str, wrapped: bytes) -> str | None:
    """What `wrap` was given; None: it was wrapped with another token."""
    try:
        return AESGCM(_wrapping_key(token)).decrypt(wrapped[:_NONCE_OCTETS], wrapped[_NONCE_OCTETS:], None).decode()
    except (InvalidTag, ValueError):
        return None


def _wrapping_key(token: str) -> bytes:
    """The token has 768 random bits: one hash, other than the kept one, makes a key of it."""
    return hashlib.sha256(b"hepmaild successor\0" + token.encode("utf-8", "surrogatepass")).digest()
