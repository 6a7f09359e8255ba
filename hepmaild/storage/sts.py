# SPDX-License-Identifier: Apache-2.0
"""The MTA-STS policies of destinations, so that a restart does not forget that TLS must be good (RFC 8461 §3.3)."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from hepmaild.delivery.mta_sts import Kept
from hepmaild.storage.schema import sts_policy
from hepmaild.storage.store import Store

BATCH = 500


def get(conn: Connection, domain: str) -> Kept | None:
    """The policy that is kept for a domain, expired or not."""
    row = conn.execute(select(sts_policy).where(sts_policy.c.domain == domain)).first()
    if row is None:
        return None
    return Kept(row.domain, row.policy_id, row.policy, row.fetched_at_us, row.expires_at_us)


def put(conn: Connection, kept: Kept) -> None:
    """Replace what is kept for the domain.  What another process fetched later stays."""
    values = {
        "policy_id": kept.policy_id,
        "policy": kept.text,
        "fetched_at_us": kept.fetched_at_us,
        "expires_at_us": kept.expires_at_us,
    }
    # Two processes may meet here; both engines have this statement, each its own class for it.
    make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    statement = make(sts_policy).values(domain=kept.domain, **values)
    conn.execute(
        statement.on_conflict_do_update(
            index_elements=[sts_policy.c.domain],
            set_=values,
            where=sts_policy.c.fetched_at_us <= kept.fetched_at_us,
        )
    )


def prune(conn: Connection, now_us: int) -> int:
    """Drop policies whose time is over; how many went (at most BATCH)."""
    old = select(sts_policy.c.domain).where(sts_policy.c.expires_at_us <= now_us).limit(BATCH)
    domains = conn.execute(old).scalars().all()
    if domains:
        conn.execute(delete(sts_policy).where(sts_policy.c.domain.in_(domains), sts_policy.c.expires_at_us <= now_us))
    return len(domains)


class StsTable:
    """The table as the resolver wants it: `delivery.sts_policies.PolicyStore`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def load(self, domain: str) -> Kept | None:
        """What is kept for a domain.  Raises `StoreUnavailable`."""
        return await self._store.read(get, domain)

    async def save(self, kept: Kept) -> None:
        """Replace it; durable when this returns.  Raises `StoreUnavailable`."""
        await self._store.write(put, kept)
