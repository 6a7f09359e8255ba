# SPDX-License-Identifier: Apache-2.0
"""Files on their way in: room first, then piece by piece into the store, then there as a whole or not at all.

Never more than a piece of a file is in memory.  Decision 0106 says why they go into the database.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import trio

from hepmaild.errors import ErrorKind, Refusal, RefusedError, StoreUnavailable
from hepmaild.mail.sizes import MAX_ATTACHMENT_OCTETS
from hepmaild.storage import uploads as rows
from hepmaild.storage.store import Store
from hepmaild.storage.uploads import NoRoom, Upload

PIECE_OCTETS = 1 << 20
DROP_S = 5.0  # for giving room back when nobody waits any more
SECOND_US = 1_000_000


class Uploads:
    """quota: how many octets an account may have at once; asked for every file."""

    def __init__(self, store: Store, now_us: Callable[[], int], quota: Callable[[], int]) -> None:
        self._store = store
        self._now_us = now_us
        self._quota = quota

    @asynccontextmanager
    async def receive(self, account_id: str, declared: int | None) -> AsyncIterator[Incoming]:
        """Room for a file of at most `declared` octets, or of the largest there may be.

        A block that ends without `Incoming.finish`, by whatever, leaves nothing behind; should the process die, the
        reaper clears up.  Raises RefusedError (UPLOAD_QUOTA_REACHED, TOO_MANY_CONNECTIONS) and StoreUnavailable.
        """
        upload_id = str(uuid.uuid4())
        at_most = min(declared or MAX_ATTACHMENT_OCTETS, MAX_ATTACHMENT_OCTETS)
        quota, now_us = self._quota(), self._now_us()
        incoming = Incoming(self._store, self._now_us, upload_id, at_most)
        try:
            # Inside: a unit that did not answer in time may have been committed.
            full = await self._store.write(
                rows.begin, account_id, upload_id, at_most=at_most, quota=quota, now_us=now_us
            )
            if full is not None:
                incoming.is_settled = True
                raise RefusedError(_no_room(full, at_most, quota, now_us))
            yield incoming
        finally:
            if not incoming.is_settled:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + DROP_S), suppress(StoreUnavailable):
                    await self._store.write(rows.drop, upload_id)


class Incoming:
    """A file that arrives.  is_settled: it is there, or it never began."""

    def __init__(self, store: Store, now_us: Callable[[], int], upload_id: str, at_most: int) -> None:
        self._store = store
        self._now_us = now_us
        self._upload_id = upload_id
        self._at_most = at_most
        self._pending = bytearray()
        self._pieces = 0
        self.size = 0
        self.is_settled = False

    async def write(self, data: bytes) -> None:
        """Append octets.  Raises RefusedError (REQUEST_TOO_LARGE) and StoreUnavailable."""
        self.size += len(data)
        if self.size > self._at_most:
            raise RefusedError(too_large())
        self._pending += data
        while len(self._pending) >= PIECE_OCTETS:
            piece = bytes(self._pending[:PIECE_OCTETS])
            del self._pending[:PIECE_OCTETS]
            await self._store.write(rows.add_piece, self._upload_id, self._pieces, piece)
            self._pieces += 1

    async def finish(self, filename: str, content_type: str) -> Upload:
        """The file is complete, durable when this returns, and kept for a day.

        Raises StoreUnavailable; RefusedError (UNAVAILABLE) when it took so long that it was given up.
        """
        found = Upload(self._upload_id, filename, content_type, self.size)
        last = (self._pieces, bytes(self._pending)) if self._pending else None
        if not await self._store.write(rows.finish, found, last, self._now_us()):
            text = "The file took too long to arrive and was given up; send it again, faster."
            raise RefusedError(Refusal(ErrorKind.UNAVAILABLE, text))
        self.is_settled = True
        return found


def too_large() -> Refusal:
    """The refusal for a file that is larger than an attachment may be."""
    text = f"A file may have {MAX_ATTACHMENT_OCTETS >> 20} MB; this one is larger."
    return Refusal(ErrorKind.REQUEST_TOO_LARGE, text, field="file")


def _no_room(full: NoRoom, at_most: int, quota: int, now_us: int) -> Refusal:
    wait_s = max(1, -(-(full.until_us - now_us) // SECOND_US))
    if full.what == "open":
        text = f"{rows.MAX_OPEN} files of this account are arriving already; send the next one after them."
        return Refusal(ErrorKind.TOO_MANY_CONNECTIONS, text, retry_after_s=1)
    if full.what == "number":
        text = f"The account keeps {rows.MAX_KEPT} uploads, as many as it may; each goes after 24 hours."
    else:
        text = (
            f"The account keeps {full.kept} octets of uploads and may have {quota}: no room for {at_most} more."
            " Each goes after 24 hours; use an upload in several messages instead of sending it again."
        )
    return Refusal(ErrorKind.UPLOAD_QUOTA_REACHED, text, retry_after_s=wait_s)
