# SPDX-License-Identifier: Apache-2.0
"""Messages, their content and their events: the rows every step of the pipeline shares."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from sqlalchemy import Connection, bindparam, func, select

from hepmaild.errors import SpoolUnavailable
from hepmaild.mail.content import SPOOL_OCTETS, Content
from hepmaild.private_files import give_to_owner_of
from hepmaild.storage.bulk import Query, bulk_insert
from hepmaild.storage.schema import body, event

SPOOL_NAME = "spool"

_EVENT = bulk_insert(event, "message_id", "account_id", "at_us", "kind", "data")
_BODY = bulk_insert(body, "message_id", "n", "at_us", "data")


def make_spool(state_dir: Path) -> Path:
    """The folder for content on its way that is too large for memory; made if it is not there.

    Made by root (a `serve` by hand) it belongs to the owner of `state_dir`, as all that root makes there.  Raises
    OSError when this user cannot write into it: every large message would be refused.
    """
    folder = state_dir / SPOOL_NAME
    folder.mkdir(exist_ok=True, mode=0o700)
    give_to_owner_of(state_dir, folder)
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, "hepmaild's user cannot write here: make it the owner (chown)", str(folder))
    return folder


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
    """The content of a message; spooled when it is large.  None: it is not kept any more.

    Raises `SpoolUnavailable`.
    """
    pieces = select(body.c.data).where(body.c.message_id == message_id).order_by(body.c.n)
    octets = conn.execute(
        select(func.sum(func.length(body.c.data))).where(body.c.message_id == message_id)
    ).scalar_one_or_none()
    if octets is None:
        return None
    if octets <= SPOOL_OCTETS:
        return Content(b"".join(row.data for row in conn.execute(pieces)))
    with _spooling():
        spool = tempfile.TemporaryFile(dir=spool_dir, prefix="hepmaild-")  # noqa: SIM115
    numbers = conn.execute(select(body.c.id).where(body.c.message_id == message_id).order_by(body.c.n)).scalars().all()
    for number in numbers:  # one at a time: a driver may fetch a whole result at once
        piece = conn.execute(select(body.c.data).where(body.c.id == number)).scalar_one()
        with _spooling():
            spool.write(piece)
            spool.flush()
    return Content(file=spool, size=int(octets))


@contextlib.contextmanager
def _spooling() -> Iterator[None]:
    """What is wrong with a file here is not the database's."""
    try:
        yield
    except OSError as error:
        raise SpoolUnavailable(error.strerror or str(error)) from error
