# SPDX-License-Identifier: Apache-2.0
"""What is cached of keys, accounts and senders, and the generation that says whether the cache still holds.

Every function that changes one of them calls `bump` in the same unit.  A process that reads an unmoved generation may
use what it has; that read is the only one an authenticated MAIL or request costs.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass

from sqlalchemy import Connection, select

from hepmaild.storage.counters import count_up
from hepmaild.storage.schema import account, api_key, counter, sender

GENERATION = select(counter.c.value).where(counter.c.name == "generation")


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key with the state of its account.  None in a restriction: no restriction.

    chaos: how its sandbox misbehaves (`mail.chaos`); "": an ordinary key.
    """

    key_id: str
    name: str
    last_five: str
    status: str
    permissions: frozenset[str] | None
    senders: frozenset[str] | None
    addresses: tuple[str, ...] | None
    expires_at_us: int | None
    account_id: str
    account_email: str
    account_status: str
    plan: str
    chaos: str = ""


@dataclass(frozen=True, slots=True)
class SenderRow:
    """An address that may stand in From.  account_id "": every account may use it."""

    account_id: str
    address: str
    address_key: str
    route: str
    daily_cap: int
    is_default: bool


def bump(conn: Connection) -> None:
    """Say that keys, accounts or senders changed; part of the unit that changes them."""
    count_up(conn, "generation")


_KEY = select(
    api_key.c.id,
    api_key.c.name,
    api_key.c.last_five,
    api_key.c.status,
    api_key.c.secret_hash,
    api_key.c.permissions,
    api_key.c.senders,
    api_key.c.addresses,
    api_key.c.expires_at_us,
    api_key.c.chaos,
    account.c.id.label("account_id"),
    account.c.email,
    account.c.status.label("account_status"),
    account.c.plan,
).join(account, account.c.id == api_key.c.account_id)


def key_by_hash(conn: Connection, secret_hash: bytes) -> KeyRow | None:
    """The key with this secret, unless it was deleted."""
    row = conn.execute(_KEY.where(api_key.c.secret_hash == secret_hash, api_key.c.status != "deleted")).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_hash, secret_hash):
        return None
    return KeyRow(
        key_id=row.id,
        name=row.name,
        last_five=row.last_five,
        status=row.status,
        permissions=None if row.permissions is None else frozenset(json.loads(row.permissions)),
        senders=None if row.senders is None else frozenset(json.loads(row.senders)),
        addresses=None if row.addresses is None else tuple(json.loads(row.addresses)),
        expires_at_us=row.expires_at_us,
        account_id=row.account_id,
        account_email=row.email,
        account_status=row.account_status,
        plan=row.plan,
        chaos=row.chaos or "",
    )


def senders_of(conn: Connection, account_id: str) -> list[SenderRow]:
    """The senders this account may use that live in the database: its own and the global ones, own ones first."""
    rows = conn.execute(
        select(sender)
        .where(sender.c.account_id.in_([account_id, ""]))
        .order_by(sender.c.account_id.desc(), sender.c.id)
    )
    return [SenderRow(r.account_id, r.address, r.address_key, r.route, r.daily_cap, r.is_default) for r in rows]
