# SPDX-License-Identifier: Apache-2.0
"""Files that callers put in for messages to come (contract: send-api.md, `uploadId`).

They lie in the database in pieces, like large messages: every process can read them, one backup holds them, and what
is half there is found by a query.  The row comes first and counts at once, with all that the file may come to, so the
account's quota holds however many uploads run at the same time in however many processes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from hepmaild.config import DAY_US
from hepmaild.storage.schema import account
from hepmaild.storage.schema_templates import upload, upload_piece

LIFE_US = DAY_US
OPEN_LIFE_US = 900_000_000  # longer than a request may take
MAX_OPEN = 4  # that arrive at once, of an account
MAX_KEPT = 1000
PRUNED = 5  # of up to 15 MB each in one unit


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is there.  size: in octets."""

    upload_id: str
    filename: str
    content_type: str
    size: int


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Why another upload cannot begin: "open" (too many arrive), "number" or "octets" (of those that are kept).

    until_us: when the next one goes.  kept: in octets.
    """

    what: str
    until_us: int
    kept: int


@dataclass(frozen=True, slots=True)
class Kept:
    """All uploads there are.  octets: what they take, and what those that arrive may come to.  most: of one account."""

    files: int
    accounts: int
    octets: int
    most: int


def begin(conn: Connection, account_id: str, upload_id: str, *, at_most: int, quota: int, now_us: int) -> NoRoom | None:
    """Take room for a file of `at_most` octets; None: it was taken.  `finish` or `drop` must follow."""
    # Two at once must not both have the last room: the account's row is the lock.
    conn.execute(select(account.c.id).where(account.c.id == account_id).with_for_update(key_share=True)).one()
    alive = (upload.c.account_id == account_id) & (upload.c.expires_at_us > now_us)
    totals = select(func.count(), func.coalesce(func.sum(upload.c.size), 0), func.min(upload.c.expires_at_us))
    number, octets, next_us = conn.execute(totals.where(alive)).one()
    is_open = alive & upload.c.is_complete.is_(False)
    coming = conn.execute(select(func.count()).select_from(upload).where(is_open)).scalar_one()
    if coming >= MAX_OPEN:
        return NoRoom("open", now_us + 1_000_000, int(octets))
    if number >= MAX_KEPT or octets + at_most > quota:
        what = "number" if number >= MAX_KEPT else "octets"
        return NoRoom(what, int(next_us or now_us), int(octets))
    conn.execute(
        insert(upload).values(
            id=upload_id,
            account_id=account_id,
            filename="",
            content_type="",
            size=at_most,
            is_complete=False,
            at_us=now_us,
            expires_at_us=now_us + OPEN_LIFE_US,
        )
    )
    return None


def add_piece(conn: Connection, upload_id: str, n: int, data: bytes) -> None:
    """Store a piece of a file that arrives."""
    conn.execute(insert(upload_piece).values(upload_id=upload_id, n=n, data=data))


def finish(conn: Connection, found: Upload, last: tuple[int, bytes] | None, now_us: int) -> bool:
    """The file is there as a whole, with this last piece; False: it took so long that its room was given away."""
    here = (upload.c.id == found.upload_id) & upload.c.is_complete.is_(False)
    values = {
        "filename": found.filename,
        "content_type": found.content_type,
        "size": found.size,
        "is_complete": True,
        "expires_at_us": now_us + LIFE_US,
    }
    if not conn.execute(update(upload).where(here).values(**values)).rowcount:
        return False
    if last is not None:
        add_piece(conn, found.upload_id, *last)
    return True


def drop(conn: Connection, upload_id: str) -> None:
    """Forget a file and give its room back."""
    conn.execute(delete(upload_piece).where(upload_piece.c.upload_id == upload_id))
    conn.execute(delete(upload).where(upload.c.id == upload_id))


def find(conn: Connection, account_id: str, upload_ids: Collection[str], now_us: int) -> dict[str, Upload]:
    """Those of the account's files that are there and have not expired."""
    alive = upload.c.is_complete.is_(True) & (upload.c.expires_at_us > now_us)
    query = select(upload).where(upload.c.account_id == account_id, upload.c.id.in_(list(upload_ids)), alive)
    return {row.id: Upload(row.id, row.filename, row.content_type, row.size) for row in conn.execute(query)}


def load(conn: Connection, upload_id: str) -> list[bytes]:
    """The pieces of a file, in order; fewer than there were when it has gone meanwhile."""
    query = select(upload_piece.c.data).where(upload_piece.c.upload_id == upload_id).order_by(upload_piece.c.n)
    return list(conn.execute(query).scalars())


def kept(conn: Connection) -> Kept:
    """What uploads take in the database, those included that have expired and go with the next look."""
    each = select(func.count().label("files"), func.sum(upload.c.size).label("octets")).group_by(upload.c.account_id)
    one = each.subquery()
    totals = select(func.sum(one.c.files), func.count(), func.sum(one.c.octets), func.max(one.c.octets))
    return Kept(*(int(figure or 0) for figure in conn.execute(totals).one()))


def prune(conn: Connection, now_us: int) -> int:
    """Drop files past their day, and those whose process died while they arrived; how many went (at most PRUNED)."""
    over = select(upload.c.id).where(upload.c.expires_at_us <= now_us).order_by(upload.c.expires_at_us).limit(PRUNED)
    ids = list(conn.execute(over).scalars())
    if ids:
        conn.execute(delete(upload_piece).where(upload_piece.c.upload_id.in_(ids)))
        conn.execute(delete(upload).where(upload.c.id.in_(ids)))
    return len(ids)


def prune_pieces(conn: Connection) -> int:
    """Drop pieces whose file has no row (any more): written by a process that lost its room; how many went."""
    whole = upload_piece.outerjoin(upload, upload.c.id == upload_piece.c.upload_id)
    lost = select(upload_piece.c.upload_id).select_from(whole).where(upload.c.id.is_(None)).distinct().limit(PRUNED)
    ids = list(conn.execute(lost).scalars())
    if ids:
        conn.execute(delete(upload_piece).where(upload_piece.c.upload_id.in_(ids)))
    return len(ids)
