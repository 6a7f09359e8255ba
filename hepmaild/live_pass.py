# SPDX-License-Identifier: Apache-2.0
"""A pass to the live stream for the operator's command line, who has the database and no session.

It is signed with a key of its own, made for this one pass: the public half is in the database for a minute, the private
one is forgotten at once.  Whoever can write there is the operator.  It opens the live stream and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hepmaild.storage import sessions
from hepmaild.storage.store import Store

PASS_US = 60_000_000
MAX_CHARS = 500
_PREFIX = "hepmaild-live"


@dataclass(frozen=True, slots=True)
class LivePass:
    """What a good pass opens: the messages of one account, or (None) of all."""

    account_id: str | None


async def make_pass(store: Store, account_id: str | None, now_us: Callable[[], int]) -> str:
    """A pass that can be shown for a minute.  Raises `StoreUnavailable`."""
    private = Ed25519PrivateKey.generate()
    octets = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    until_us = now_us() + PASS_US
    key_id = _id_of(octets)
    await store.write(sessions.publish_key, key_id, octets, until_us)
    claims = _encode(json.dumps({"account": account_id, "until": until_us}).encode("ascii"))
    said = f"{_PREFIX}.{key_id}.{claims}"
    return f"{said}.{_encode(private.sign(said.encode('ascii')))}"


async def check_pass(store: Store, text: str, now_us: Callable[[], int]) -> LivePass | None:
    """What a pass opens; None: it is none, or too old.  Raises `StoreUnavailable`."""
    said, _, signature = text.rpartition(".")
    parts = said.split(".")
    if len(text) > MAX_CHARS or len(parts) != 3 or parts[0] != _PREFIX or not text.isascii():
        return None
    keys = await store.read(sessions.public_keys, now_us())
    octets = keys.get(parts[1], (b"", 0))[0]
    if not octets or _id_of(octets) != parts[1]:
        return None
    try:
        Ed25519PublicKey.from_public_bytes(octets).verify(_decode(signature), said.encode("ascii"))
        claims = json.loads(_decode(parts[2]))
    except (InvalidSignature, ValueError, binascii.Error):
        return None
    if now_us() >= claims["until"]:
        return None
    return LivePass(claims["account"])


def _id_of(public: bytes) -> str:
    """Unlike the ids of keys that sign access tokens: neither takes what the other signed."""
    return "live-" + hashlib.sha256(b"live" + public).hexdigest()[:16]


def _encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
