# SPDX-License-Identifier: Apache-2.0
"""Every column that holds sealed secrets, for the questions that concern all of them: which keys, and seal anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sqlalchemy import Column, Connection, Table, and_, func, select, update

from hepmaild.storage.schema import dkim_key
from hepmaild.storage.schema_own_smtp import smtp_server
from hepmaild.storage.schema_people import user

# Table and column, which may be null.  The row is named by the primary key, in its order.
COLUMNS: tuple[tuple[Table, Column[bytes]], ...] = (
    (dkim_key, dkim_key.c.sealed_key),
    (user, user.c.totp_sealed),
    (smtp_server, smtp_server.c.password_sealed),
)


def heads(conn: Connection, octets: int) -> Counter[bytes]:
    """The distinct beginnings of the sealed values, and how many have each."""
    found: Counter[bytes] = Counter()
    for table, column in COLUMNS:
        head = func.substr(column, 1, octets).label("head")
        for row in conn.execute(
            select(head, func.count()).select_from(table).where(column.is_not(None)).group_by(head)
        ):
            found[bytes(row[0])] += row[1]
    return found


def reseal_some(
    conn: Connection, head: bytes, fn: Callable[[str, str, tuple[str, ...], bytes], bytes], limit: int
) -> int:
    """Replace sealed values that do not begin with `head` by `fn(table, column, row, sealed)`; how many it were.

    limit: at most so many, since all else waits for a unit; fewer: none is left.
    """
    count = 0
    for table, column in COLUMNS:
        keys = list(table.primary_key.columns)
        old = select(*keys, column).where(column.is_not(None), func.substr(column, 1, len(head)) != head)
        for row in conn.execute(old.order_by(*keys).limit(limit - count).with_for_update()).all():
            *names, sealed = row
            value = fn(table.name, column.name, tuple(str(name) for name in names), bytes(sealed))
            this_row = and_(*(key == name for key, name in zip(keys, names, strict=True)))
            conn.execute(update(table).where(this_row).values({column.name: value}))
            count += 1
        if count == limit:
            break
    return count
