# SPDX-License-Identifier: Apache-2.0
"""DKIM keys in the database: pending until DNS shows them, active while they sign, retired afterwards.

Private keys come and go sealed (`vault`).  Refusals are ValueErrors with a sentence for a person.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, delete, insert, select, update

from hepmaild.storage.directory import bump
from hepmaild.storage.schema import dkim_key

PENDING, ACTIVE, RETIRED = "pending", "active", "retired"
# Both keys sign that long after a rotation: some verifier's name server may not have the new record yet.
OVERLAP_US = 3_600_000_000

_SHOWN = (
    dkim_key.c.domain,
    dkim_key.c.selector,
    dkim_key.c.algorithm,
    dkim_key.c.state,
    dkim_key.c.public_key,
    dkim_key.c.created_at_us,
    dkim_key.c.checked_at_us,
    dkim_key.c.changed_at_us,
)


@dataclass(frozen=True, slots=True)
class SealedKey:
    """An active key as it is stored."""

    domain: str
    selector: str
    algorithm: str
    sealed: bytes = field(repr=False)


def add(
    conn: Connection,
    *,
    domain: str,
    selector: str,
    algorithm: str,
    sealed_key: bytes,
    public_key: str,
    now_us: int,
) -> dict[str, Any]:
    """Store a new key, pending."""
    same = (dkim_key.c.domain == domain) & (dkim_key.c.selector == selector)
    if conn.execute(select(dkim_key.c.state).where(same)).first() is not None:
        raise ValueError(f"{domain} has a key with the selector {selector} already: choose another selector")
    conn.execute(
        insert(dkim_key).values(
            domain=domain,
            selector=selector,
            algorithm=algorithm,
            sealed_key=sealed_key,
            public_key=public_key,
            state=PENDING,
            created_at_us=now_us,
            changed_at_us=now_us,
        )
    )
    return find(conn, domain, selector)


def find(conn: Connection, domain: str, selector: str) -> dict[str, Any]:
    """One key without its private part."""
    row = conn.execute(_shown(domain, selector)).mappings().one_or_none()
    if row is None:
        raise ValueError(f"{domain} has no key with the selector {selector}; `hepmaild dkim list` shows all")
    return dict(row)


def list_of(conn: Connection, domain: str | None = None, *, states: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Keys without their private parts, of a domain or of all, by domain and age."""
    wanted = select(*_SHOWN).order_by(dkim_key.c.domain, dkim_key.c.created_at_us, dkim_key.c.selector)
    if domain is not None:
        wanted = wanted.where(dkim_key.c.domain == domain)
    if states:
        wanted = wanted.where(dkim_key.c.state.in_(states))
    return [dict(row) for row in conn.execute(wanted).mappings()]


def signing_domains(conn: Connection) -> frozenset[str]:
    """The domains with an active key."""
    return frozenset(conn.execute(select(dkim_key.c.domain).where(dkim_key.c.state == ACTIVE).distinct()).scalars())


def active_of(conn: Connection, domain: str) -> list[SealedKey]:
    """A domain's active keys; Ed25519 after RSA, for verifiers that give up at the first one they do not know."""
    rows = conn.execute(
        select(dkim_key.c.selector, dkim_key.c.algorithm, dkim_key.c.sealed_key)
        .where(dkim_key.c.domain == domain, dkim_key.c.state == ACTIVE)
        .order_by(dkim_key.c.algorithm.desc(), dkim_key.c.created_at_us.desc(), dkim_key.c.selector)
    )
    return [SealedKey(domain, row.selector, row.algorithm, bytes(row.sealed_key)) for row in rows]


def note_check(conn: Connection, domain: str, selector: str, now_us: int) -> None:
    """DNS was asked for this key's record."""
    conn.execute(update(dkim_key).where(_is(domain, selector)).values(checked_at_us=now_us))


def activate(conn: Connection, domain: str, selector: str, now_us: int) -> dict[str, Any]:
    """Sign with this key from now on.  Those of the same algorithm before it go on for `OVERLAP_US`."""
    found = _locked(conn, domain, selector)
    if found["state"] != ACTIVE:
        conn.execute(update(dkim_key).where(_is(domain, selector)).values(state=ACTIVE, changed_at_us=now_us))
        bump(conn)
    return find(conn, domain, selector)


def activate_seen(conn: Connection, domain: str, selector: str, now_us: int) -> bool:
    """DNS shows the record: activate the key if it is still pending; whether it was."""
    note_check(conn, domain, selector, now_us)
    changed = conn.execute(
        update(dkim_key)
        .where(_is(domain, selector), dkim_key.c.state == PENDING)
        .values(state=ACTIVE, changed_at_us=now_us)
    )
    if changed.rowcount:
        bump(conn)
    return bool(changed.rowcount)


def retire(conn: Connection, domain: str, selector: str, now_us: int) -> dict[str, Any]:
    """Do not sign with this key any more."""
    found = _locked(conn, domain, selector)
    if found["state"] != RETIRED:
        conn.execute(update(dkim_key).where(_is(domain, selector)).values(state=RETIRED, changed_at_us=now_us))
        bump(conn)
    return find(conn, domain, selector)


def retire_overlapped(conn: Connection, now_us: int) -> list[dict[str, Any]]:
    """Retire every active key whose successor has been active for `OVERLAP_US`; what was retired."""
    gone = [key for key, due_us in _overlapped(conn) if due_us <= now_us]
    for key in gone:
        conn.execute(
            update(dkim_key).where(_is(key["domain"], key["selector"])).values(state=RETIRED, changed_at_us=now_us)
        )
    if gone:
        bump(conn)
    return gone


def remove(conn: Connection, domain: str, selector: str) -> dict[str, Any]:
    """Delete a key for good; an active one must be retired first."""
    found = _locked(conn, domain, selector)
    if found["state"] == ACTIVE:
        raise ValueError(f"this key signs mail: run `hepmaild dkim retire {domain} {selector}` first")
    conn.execute(delete(dkim_key).where(_is(domain, selector)))
    return {"domain": domain, "selector": selector, "removed": True}


def waiting(conn: Connection) -> tuple[list[dict[str, Any]], int | None]:
    """What time will bring: the pending keys, and when (µs) the next overlap ends, None when there is none."""
    ends = [due_us for _key, due_us in _overlapped(conn)]
    return list_of(conn, states=(PENDING,)), min(ends, default=None)


def _overlapped(conn: Connection) -> list[tuple[dict[str, Any], int]]:
    """The active keys that have a successor of the same algorithm, and when (µs) they are to be retired."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    found: list[tuple[dict[str, Any], int]] = []
    active = list_of(conn, states=(ACTIVE,))
    for key in sorted(active, key=lambda key: (key["changed_at_us"], key["created_at_us"]), reverse=True):
        successor = newest.setdefault((key["domain"], key["algorithm"]), key)
        if successor is not key:
            found.append((key, successor["changed_at_us"] + OVERLAP_US))
    return found


def _is(domain: str, selector: str) -> Any:
    return (dkim_key.c.domain == domain) & (dkim_key.c.selector == selector)


def _shown(domain: str, selector: str) -> Select[Any]:
    return select(*_SHOWN).where(_is(domain, selector))


def _locked(conn: Connection, domain: str, selector: str) -> RowMapping | dict[str, Any]:
    """The key, locked against others that change it (PostgreSQL; on SQLite there is one writer)."""
    row = conn.execute(_shown(domain, selector).with_for_update()).mappings().one_or_none()
    return row if row is not None else find(conn, domain, selector)
