# SPDX-License-Identifier: Apache-2.0
"""What the live stream reads: which messages had events after a number.

Numbers are given inside transactions: on PostgreSQL one may be committed after a greater one.  So whoever follows asks
again for those that were missing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from hepmaild.storage.schema import event
from hepmaild.storage.sessions import GENERATION

AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class News:
    """events: (number, account id, message id) in order.  generation: of accounts, keys and sessions.

    is_all: there are no more than these.
    """

    events: list[tuple[int, str, str]]
    generation: int
    is_all: bool = True


def newest(conn: Connection) -> int:
    """The greatest number given so far, 0 when there is none."""
    return int(conn.execute(select(func.coalesce(func.max(event.c.seq), 0))).scalar_one())


IN_FLIGHT = 200  # numbers that units which run now may still commit


def resume_point(conn: Connection) -> int:
    """Where to go on for whoever reads the messages now: a little back, since to be told twice does no harm."""
    return max(0, newest(conn) - (0 if conn.dialect.name == "sqlite" else IN_FLIGHT))


def news(conn: Connection, after: int, missing: Collection[int] = (), limit: int = AT_ONCE) -> News:
    """Events with greater numbers than `after`, and those of `missing` that are there by now."""
    columns = select(event.c.seq, event.c.account_id, event.c.message_id)
    rows = list(conn.execute(columns.where(event.c.seq > after).order_by(event.c.seq).limit(limit + 1)))
    is_all = len(rows) <= limit
    found = [(int(seq), str(account_id), str(message_id)) for seq, account_id, message_id in rows[:limit]]
    if missing:
        late = conn.execute(columns.where(event.c.seq.in_(sorted(missing))).order_by(event.c.seq))
        found = [(int(seq), str(account_id), str(message_id)) for seq, account_id, message_id in late] + found
    generation = conn.execute(GENERATION).scalar_one_or_none()
    return News(found, int(generation or 0), is_all)
