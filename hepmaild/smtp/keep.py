# SPDX-License-Identifier: Apache-2.0
"""Where a session keeps the content while it arrives: in memory, above 1 MB in a file that a thread writes."""

from __future__ import annotations

from pathlib import Path

import structlog
import trio

from hepmaild.mail.content import CHUNK_OCTETS, SPOOL_OCTETS, Content, ContentBuilder, add_piece
from hepmaild.threads import in_thread

log = structlog.get_logger()


class ContentKeeper:
    """Collects one message after another.  Memory: SPOOL_OCTETS, and CHUNK_OCTETS on their way into the file."""

    def __init__(self, spool_dir: Path | None, limiter: trio.CapacityLimiter) -> None:
        self._spool_dir = spool_dir
        self._limiter = limiter
        self._builder: ContentBuilder | None = None
        self._pending: list[bytes] = []
        self._pending_octets = 0

    def begin(self) -> None:
        """A message begins."""
        self.discard()
        self._builder = ContentBuilder(self._spool_dir)

    async def write(self, piece: bytes) -> bool:
        """Keep a piece.  False: it could not be kept (disk full), nor will the rest be.

        Writes to a file are gathered, and done in a thread, which cancellation waits for.
        """
        builder = self._builder
        if builder is None:
            return False
        if not self._pending and not builder.is_spooled and builder.size + len(piece) <= SPOOL_OCTETS:
            builder.write(piece)
            return True
        add_piece(self._pending, piece)
        self._pending_octets += len(piece)
        return self._pending_octets < CHUNK_OCTETS or await self._write_pending(builder)

    async def finish(self) -> Content | None:
        """All of it; None when it could not be kept."""
        builder = self._builder
        if builder is None or (self._pending and not await self._write_pending(builder)):
            return None
        self._builder = None
        return builder.finish()

    def discard(self) -> None:
        """Drop what was kept."""
        self._pending.clear()
        self._pending_octets = 0
        if self._builder is not None:
            self._builder.discard()
            self._builder = None

    async def _write_pending(self, builder: ContentBuilder) -> bool:
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_octets = 0
        try:
            await in_thread(builder.write, data, limiter=self._limiter)
        except OSError as problem:
            log.warning("spool_failed", error=str(problem))
            self.discard()
            return False
        return True
