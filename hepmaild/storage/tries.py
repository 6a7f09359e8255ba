# SPDX-License-Identifier: Apache-2.0
"""Tries to log in, counted by all processes together (contract: login-api.md, `42901`).

A try is written down before the password is looked at, as if it had failed, and taken back if it was right: so however
many are made at once, no more than the limit are ever looked at.  What was typed as an e-mail address is kept hashed:
now and then it is a password or a key.
"""

from __future__ import annotations

import hashlib
import zlib

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from hepmaild.storage.counters import count_up
from hepmaild.storage.schema_people import login_try

WINDOW_US = 900_000_000
PER_EMAIL = 5  # from one client
PER_CLIENT = 20
CODES_PER_EMAIL = 20  # wrong second factors behind the right password, from wherever
GATES = 64
BATCH = 500


def wait_us(conn: Connection, client: str, email_key: str, now_us: int) -> int:
    """How long until this client may try this e-mail address; 0: now."""
    by_client = login_try.c.client == client
    by_email = login_try.c.email_hash == _hash(email_key)
    return max(
        _until_room(conn, by_client & by_email, PER_EMAIL, now_us),
        _until_room(conn, by_client & login_try.c.counts_client, PER_CLIENT, now_us),
        _until_room(conn, by_email & login_try.c.is_code, CODES_PER_EMAIL, now_us),
    )


def client_wait_us(conn: Connection, client: str, now_us: int) -> int:
    """How long until this client may try anything at all; 0: now."""
    return _until_room(conn, (login_try.c.client == client) & login_try.c.counts_client, PER_CLIENT, now_us)


def _until_room(conn: Connection, these: ColumnElement[bool], limit: int, now_us: int) -> int:
    query = select(login_try.c.at_us).where(these, login_try.c.at_us > now_us - WINDOW_US)
    oldest = conn.execute(query.order_by(login_try.c.at_us.desc()).offset(limit - 1).limit(1)).scalar_one_or_none()
    return 0 if oldest is None else max(1, int(oldest) + WINDOW_US - now_us)


def begin(conn: Connection, *, try_id: str, client: str, email_key: str, now_us: int) -> int:
    """Write a try down; 0.  Else it may not be made yet: for how long (µs)."""
    _close_gate(conn, client)
    wait = wait_us(conn, client, email_key, now_us)
    if not wait:
        _insert(conn, try_id, client, email_key, now_us)
    return wait


def failed_refresh(conn: Connection, *, try_id: str, client: str, now_us: int) -> int:
    """Count a refresh token that is none; 0.  Else there were too many already: how long to wait (µs)."""
    _close_gate(conn, client)
    wait = client_wait_us(conn, client, now_us)
    if not wait:
        _insert(conn, try_id, client, "", now_us)
    return wait


def take_back(conn: Connection, try_id: str) -> None:
    """The try was neither right nor wrong: the password was right, and more is needed."""
    conn.execute(delete(login_try).where(login_try.c.id == try_id))


def wrong_code(conn: Connection, try_id: str) -> None:
    """The password of this try was right, the second factor was not."""
    conn.execute(update(login_try).where(login_try.c.id == try_id).values(is_code=True))


def succeed(conn: Connection, *, client: str, email_key: str) -> None:
    """Start both counts anew.  Tries at other e-mail addresses go on counting for those."""
    by_client = login_try.c.client == client
    conn.execute(delete(login_try).where(by_client, login_try.c.email_hash == _hash(email_key)))
    conn.execute(update(login_try).where(by_client, login_try.c.counts_client).values(counts_client=False))


def forget(conn: Connection, email_key: str) -> None:
    """The operator made a way in for this address: what was tried before does not stand in it."""
    conn.execute(delete(login_try).where(login_try.c.email_hash == _hash(email_key)))


def prune(conn: Connection, now_us: int) -> int:
    """Drop what no window holds any more; how many went (at most BATCH)."""
    old = select(login_try.c.id).where(login_try.c.at_us <= now_us - WINDOW_US).limit(BATCH)
    ids = conn.execute(old).scalars().all()
    if ids:
        conn.execute(delete(login_try).where(login_try.c.id.in_(ids)))
    return len(ids)


def _hash(email_key: str) -> bytes:
    return hashlib.sha256(email_key.encode("utf-8", "surrogatepass")).digest()


def _insert(conn: Connection, try_id: str, client: str, email_key: str, now_us: int) -> None:
    conn.execute(
        insert(login_try).values(
            id=try_id, client=client, email_hash=_hash(email_key), counts_client=True, is_code=False, at_us=now_us
        )
    )


def _close_gate(conn: Connection, client: str) -> None:
    """Until this unit ends nobody else counts tries of this client.  On SQLite there is one writer anyway."""
    if conn.dialect.name != "postgresql":
        return
    count_up(conn, f"login gate {zlib.crc32(client.encode()) % GATES}")
