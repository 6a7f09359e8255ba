# SPDX-License-Identifier: Apache-2.0
"""Messages, their content and their events: the rows every step of the pipeline shares."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, func, select

from hepmaild.mail.content import SPOOL_OCTETS, Content
from hepmaild.storage.bulk import Query, bulk_insert
from hepmaild.storage.schema import body, event

_EVENT = bulk_insert(event, "message_id", "account_id", "at_us", "kind", "data")
_BODY = bulk_insert(body, "message_id", "n", "at_us", "data")


def insert_events(conn: Connection, events: Iterable[tuple[str, str, int, str, str]]) -> None:
    """Append events: message id, account id, at_us, kind, data as JSON."""
    _EVENT.run(conn, list(events))


def insert_bodies(conn: Connection, rows: list[tuple[str, int, int, bytes]]) -> None:
    """Append pieces of content: message id, number, at_us, octets."""
    _BODY.run(conn, rows)


def stage_piece(conn: Connection, message_id: str, n: int, data: bytes, at_us: int) -> None:
    """Store a piece of a large content ahead of the unit that accepts its message."""
    _BODY.run(conn, [(message_id, n, at_us, data)])


_SMALL = Query(
    select(body.c.message_id, body.c.data).where(
        body.c.message_id.in_(bindparam("ids", expanding=True)), body.c.n == 0
    ),
    "ids",
)


def small_contents(conn: Connection, message_ids: list[str]) -> dict[str, Content]:
    """The contents of messages that are small enough to be one piece each."""
    return {message_id: Content(data) for message_id, data in _SMALL.ask(conn, message_ids)}


def load_content(conn: Connection, message_id: str, spool_dir: str | None = None) -> Content | None:
    """The content of a message; spooled when it is large.  None: it is not kept any more."""
    pieces = select(body.c.data).where(body.c.message_id == message_id).order_by(body.c.n)
    octets = conn.execute(
        select(func.sum(func.length(body.c.data))).where(body.c.message_id == message_id)
    ).scalar_one_or_none()
    if octets is None:
        return None
    if octets <= SPOOL_OCTETS:
        return Content(b"".join(row.data for row in conn.execute(pieces)))
    spool = tempfile.TemporaryFile(dir=spool_dir, prefix="hepmaild-")  # noqa: SIM115
    numbers = conn.execute(select(body.c.id).where(body.c.message_id == message_id).order_by(body.c.n)).scalars().all()
    for number in numbers:  # one at a time: a driver may fetch a whole result at once
        spool.write(conn.execute(select(body.c.data).where(body.c.id == number)).scalar_one())
    spool.flush()
    return Content(file=spool, size=int(octets))
