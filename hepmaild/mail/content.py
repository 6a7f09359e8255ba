# SPDX-License-Identifier: Apache-2.0
"""The octets of one message: in memory while small, in an unlinked temporary file above `SPOOL_OCTETS`.

Octets are as they travel after the dot-stuffing is taken out: lines end in CRLF, no terminating dot.  A spooled file
has no name, so a dead process leaves nothing behind.  Reading and writing a spool are blocking file operations on the
page cache; callers that move more than a chunk do so in a thread.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SPOOL_OCTETS = 1 << 20
CHUNK_OCTETS = 256 << 10
HEAD_LIMIT_OCTETS = 512 << 10
SMALL_OCTETS = 512


def add_piece(pieces: list[bytes], piece: bytes) -> None:
    """Append, small ones put together: each is an object of its own, twenty times as large as one of two octets."""
    if len(piece) < SMALL_OCTETS and pieces and len(pieces[-1]) < SMALL_OCTETS:
        pieces[-1] += piece
    else:
        pieces.append(piece)


class Content:
    """A finished message.  `size` in octets.  Read-only once made; `close` frees the spool early."""

    __slots__ = ("_data", "_file", "size")

    def __init__(self, data: bytes = b"", *, file: IO[bytes] | None = None, size: int | None = None) -> None:
        self._data = data
        self._file = file
        self.size = len(data) if size is None else size

    @property
    def is_spooled(self) -> bool:
        """Whether the octets are in a file."""
        return self._file is not None

    @property
    def data(self) -> bytes:
        """All octets; only for content that is not spooled."""
        if self._file is not None:
            raise ValueError("spooled content is read by chunks()")
        return self._data

    def head(self, limit: int = HEAD_LIMIT_OCTETS) -> bytes:
        """The first `limit` octets at most: enough to hold any header section that is accepted."""
        if self._file is None:
            return self._data[:limit]
        self._file.seek(0)
        return self._file.read(limit)

    def chunks(self, start: int = 0, octets: int = CHUNK_OCTETS) -> Iterator[bytes]:
        """The octets from `start`, in pieces of at most `octets`."""
        if self._file is None:
            for at in range(start, self.size, octets):
                yield self._data[at : at + octets]
            return
        at = start
        while at < self.size:
            self._file.seek(at)
            piece = self._file.read(min(octets, self.size - at))
            if not piece:
                raise OSError("the spool file is shorter than what was written to it")
            at += len(piece)
            yield piece

    def close(self) -> None:
        """Free the spool file, if there is one."""
        if self._file is not None:
            self._file.close()


class ContentBuilder:
    """Collects message octets, moving them to a file once they pass `SPOOL_OCTETS`.

    `needs_thread` says that the next `write` touches a file and should run in a thread when it is large.
    """

    def __init__(self, spool_dir: Path | None = None) -> None:
        self._spool_dir = spool_dir
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None
        self.size = 0

    @property
    def is_spooled(self) -> bool:
        """Whether the octets so far are in a file."""
        return self._file is not None

    def write(self, piece: bytes) -> None:
        """Append octets.  Raises OSError when the disk is full."""
        self.size += len(piece)
        if self._file is None:
            add_piece(self._parts, piece)
            if self.size <= SPOOL_OCTETS:
                return
            self._file = tempfile.TemporaryFile(dir=self._spool_dir, prefix="hepmaild-")  # noqa: SIM115
            piece = b"".join(self._parts)
            self._parts.clear()
        self._file.write(piece)
        self._file.flush()  # a full disk shows here, where it is expected, not when the file is read or closed

    def finish(self) -> Content:
        """The finished content; the builder must not be used afterwards."""
        if self._file is None:
            return Content(b"".join(self._parts))
        return Content(file=self._file, size=self.size)

    def discard(self) -> None:
        """Drop everything collected.  Raises nothing."""
        self._parts.clear()
        if self._file is not None:
            with contextlib.suppress(OSError):  # it tries once more to write what found no room
                self._file.close()
            self._file = None
