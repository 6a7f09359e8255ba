# SPDX-License-Identifier: Apache-2.0
"""Numbers that only grow, each under a name of its own."""

from __future__ import annotations

from sqlalchemy import Connection, update
from sqlalchemy.dialects import postgresql, sqlite

from hepmaild.storage.schema import counter


def count_up(conn: Connection, name: str) -> None:
    """Raise it by one, as part of the unit; on PostgreSQL who comes second waits for the first one's end.

    The first two may meet too, and neither sees the other's row.
    """
    changed = conn.execute(update(counter).where(counter.c.name == name).values(value=counter.c.value + 1))
    if not changed.rowcount:
        make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
        statement = make(counter).values(name=name, value=1)
        conn.execute(
            statement.on_conflict_do_update(index_elements=[counter.c.name], set_={"value": counter.c.value + 1})
        )
