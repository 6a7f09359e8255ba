# SPDX-License-Identifier: Apache-2.0
"""API keys: minted, rotated, disabled, deleted (contract: api-keys.md).

The secret itself is never here: callers make it with `new_secret`, store its SHA-256 and its last five characters, and
show it once.  Refusals are ValueErrors with a sentence for a person.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import string
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from hepmaild.counted import counted
from hepmaild.mail import chaos as chaos_rules
from hepmaild.masking import KEY_PREFIX
from hepmaild.storage.directory import bump
from hepmaild.storage.schema import account, api_key

SECRET_CHARS = 40
_ALPHABET = string.ascii_letters + string.digits


class Refused(ValueError):
    """A change that cannot be; field: which input it is about ("": none of them)."""

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.field = field


def new_secret() -> str:
    """A fresh key from the system's secure random source: 40 of 62 characters, 238 bits."""
    return KEY_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_CHARS))


def looks_like_key(secret: str) -> bool:
    """Whether this has the form of a key at all."""
    rest = secret[len(KEY_PREFIX) :]
    return secret.startswith(KEY_PREFIX) and len(rest) == SECRET_CHARS and rest.isascii() and rest.isalnum()


def hash_secret(secret: str) -> bytes:
    """What is stored and looked up instead of the key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def mint(
    conn: Connection,
    *,
    account_id: str,
    key_id: str,
    name: str,
    secret: str,
    limit: int,
    permissions: list[str] | None,
    senders: list[str] | None,
    addresses: list[str] | None,
    expires_at_us: int | None,
    now_us: int,
    chaos: str | None = None,
) -> dict[str, Any]:
    """Store a new key; `{"id", "name"}`.

    limit: how many the account's plan allows.  chaos: how its sandbox misbehaves (`mail.chaos`); None: an ordinary key.
    Raises `Refused`.
    """
    name = _check_name(name)
    if expires_at_us is not None and expires_at_us <= now_us:
        raise Refused("the expiry lies in the past: give a date or instant to come", "expires")
    _check_chaos(chaos)
    # Two mints at once must not both be the fifteenth: the account's row is the lock.
    conn.execute(select(account.c.id).where(account.c.id == account_id).with_for_update(key_share=True)).one()
    alive = (api_key.c.account_id == account_id) & (api_key.c.status != "deleted")
    count = conn.execute(select(func.count()).select_from(api_key).where(alive)).scalar_one()
    if count >= limit:
        raise Refused(f"the account has {counted(count, 'API key')}, as many as its plan allows: delete one first")
    _check_free(conn, account_id, name)
    conn.execute(
        insert(api_key).values(
            id=key_id,
            account_id=account_id,
            name=name,
            secret_hash=hash_secret(secret),
            last_five=secret[-5:],
            status="active",
            permissions=_json(permissions),
            senders=_json(senders),
            addresses=_json(addresses),
            expires_at_us=expires_at_us,
            chaos=chaos,
            created_at_us=now_us,
        )
    )
    bump(conn)
    return {"id": key_id, "name": name}


def _check_name(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise Refused("a key's name has 1 to 100 printable characters", "name")
    return name


def _check_chaos(chaos: str | None) -> None:
    if chaos is not None and chaos not in chaos_rules.KINDS:
        raise Refused(f"there is no chaos called {chaos!r}; there are {', '.join(chaos_rules.KINDS)}", "chaos")


def _check_free(conn: Connection, account_id: str, name: str, but: str = "") -> None:
    """The account's row is locked."""
    here = (api_key.c.account_id == account_id) & (api_key.c.status != "deleted") & (api_key.c.id != but)
    if conn.execute(select(api_key.c.id).where(here, api_key.c.name == name)).first():
        raise Refused(f"the account has a key named {name!r} already: choose another name", "name")


def of_account(conn: Connection, account_id: str, key_id: str, *, is_to_change: bool = False) -> dict[str, Any] | None:
    """One of the account's keys; None: there is none, it was deleted, or it is somebody else's.

    is_to_change: locked until the unit ends.
    """
    query = select(api_key).where(
        api_key.c.id == key_id, api_key.c.account_id == account_id, api_key.c.status != "deleted"
    )
    if is_to_change:
        query = query.with_for_update(key_share=True)
    row = conn.execute(query).mappings().one_or_none()
    return None if row is None else _public(dict(row))


def change(
    conn: Connection,
    key_id: str,
    *,
    name: str,
    permissions: list[str] | None,
    senders: list[str] | None,
    addresses: list[str] | None,
    expires_at_us: int | None,
    now_us: int,
    chaos: str | None = None,
) -> dict[str, list[Any]]:
    """Another name and other restrictions for a key, whose secret stays; what changed: `{column: [before, after]}`.

    Raises `Refused`.  An expiry in the past may stay, but not be set.  A chaos key can misbehave otherwise (chaos None:
    as before), and never becomes an ordinary one, nor the other way: mail would leave, or stay, unexpectedly.
    """
    name = _check_name(name)
    before = _public(_find(conn, key_id))
    if expires_at_us is not None and expires_at_us <= now_us and expires_at_us != before["expires_at_us"]:
        raise Refused("the expiry lies in the past: give a date or instant to come", "expires")
    if chaos is not None and before["chaos"] is None:
        raise Refused("an ordinary key cannot become a chaos key: make a new one", "chaos")
    _check_chaos(chaos)
    conn.execute(select(account.c.id).where(account.c.id == before["account_id"]).with_for_update(key_share=True)).one()
    _check_free(conn, before["account_id"], name, but=key_id)
    after: dict[str, Any] = {
        "name": name,
        "permissions": permissions,
        "senders": senders,
        "addresses": addresses,
        "expires_at_us": expires_at_us,
        "chaos": before["chaos"] if chaos is None else chaos,
    }
    changed = {column: [before[column], value] for column, value in after.items() if before[column] != value}
    if changed:
        stored = {c: _json(v) if c in ("permissions", "senders", "addresses") else v for c, v in after.items()}
        conn.execute(update(api_key).where(api_key.c.id == key_id).values(**stored))
        bump(conn)
    return changed


def list_of(conn: Connection, account_id: str) -> list[dict[str, Any]]:
    """An account's keys without the deleted ones, oldest first; JSON columns decoded."""
    rows = conn.execute(
        select(api_key)
        .where(api_key.c.account_id == account_id, api_key.c.status != "deleted")
        .order_by(api_key.c.created_at_us, api_key.c.id)
    ).mappings()
    return [_public(dict(r)) for r in rows]


def account_of(conn: Connection, key_id: str) -> str:
    """Whose key it is."""
    return str(_find(conn, key_id)["account_id"])


def rotate(conn: Connection, key_id: str, secret: str) -> dict[str, Any]:
    """A new secret for a key; the old one stops at once."""
    found = _find(conn, key_id)
    conn.execute(
        update(api_key).where(api_key.c.id == key_id).values(secret_hash=hash_secret(secret), last_five=secret[-5:])
    )
    bump(conn)
    return {"id": key_id, "name": found["name"]}


def set_status(conn: Connection, key_id: str, status: str) -> dict[str, Any]:
    """active, disabled or (final) deleted."""
    found = _find(conn, key_id)
    values: dict[str, Any] = {"status": status}
    if status == "deleted":
        # The secret must not stay valid in any form; the row stays for the log's sake.
        values["secret_hash"] = hash_secret(f"deleted:{key_id}")
    conn.execute(update(api_key).where(api_key.c.id == key_id).values(**values))
    bump(conn)
    return {"id": key_id, "name": found["name"], "status": status}


def note_use(conn: Connection, uses: list[tuple[str, int, str, str]]) -> None:
    """Last used: key id, when (µs), from which address, by which door.  The caller locked these keys."""
    for key_id, at_us, ip, door in uses:
        conn.execute(
            update(api_key)
            .where(api_key.c.id == key_id)
            .values(last_used_at_us=at_us, last_used_ip=ip, last_used_door=door)
        )


def _find(conn: Connection, key_id: str) -> dict[str, Any]:
    row = (
        conn.execute(
            select(api_key).where(api_key.c.id == key_id, api_key.c.status != "deleted").with_for_update(key_share=True)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise ValueError(f"there is no key {key_id}; `hepmaild key list EMAIL` shows an account's keys")
    return dict(row)


def _json(values: list[str] | None) -> str | None:
    return None if values is None else json.dumps(values)


def _public(row: dict[str, Any]) -> dict[str, Any]:
    del row["secret_hash"]
    for name in ("permissions", "senders", "addresses"):
        row[name] = None if row[name] is None else json.loads(row[name])
    return row
