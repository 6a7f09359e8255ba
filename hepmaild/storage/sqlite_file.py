# SPDX-License-Identifier: Apache-2.0
"""SQLite's files as the system sees them: made for their owner only, still in their place, and synced."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from hepmaild.errors import NothingCommitted
from hepmaild.private_files import give_to_owner_of, named

log = structlog.get_logger()

LOOK_S = 1.0  # at most so long is written to a file that has no name any more


def create_file(path: Path) -> None:
    """Make an empty database file that only its owner may read, with what must be set before the first table.

    Made by root (a command before the daemon's first start) it belongs to the owner of the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        give_to_owner_of(path.parent, path)
    if path.stat().st_size:
        return
    with contextlib.closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        # Deleted bodies give their disk back; pages are returned in small steps, by `shrink`.
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL").fetchall()


def trouble_of(path: Path) -> str:
    """What keeps SQLite from using this file, as far as the system shows it; empty: nothing.  Blocking."""
    folder = path.parent
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if disk.f_flag & os.ST_RDONLY:
        return f"the file system of {folder} is mounted read-only"
    if os.path.isdir(path):  # noqa: PTH112  # Path's own question raises where the folder is closed to us
        return f"{path} is a folder"
    files = (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm")))
    for place, rights in ((folder, os.R_OK | os.W_OK | os.X_OK), *((file, os.R_OK | os.W_OK) for file in files)):
        if os.access(place, os.F_OK) and not os.access(place, rights, effective_ids=True):
            return f"hepmaild's user cannot write {place}: make it the owner (chown)"
    if disk.f_blocks and not disk.f_bavail:
        return f"the disk of {folder} is full"
    return ""


@contextlib.contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A new, empty file beside `target`, for its owner's eyes only, that is gone at the end unless it was renamed.

    Its lock says that somebody works on it: what a process that was killed has left of the same target is removed
    first, since it holds all that a whole copy does, and its number may be ours now.  Raises OSError.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError), _locked(left, os.O_RDWR | os.O_NOFOLLOW):
            _remove(left)
    path = target.with_name(f".{target.name}.{os.getpid()}.part")
    with contextlib.ExitStack() as stack:
        with named(target):
            stack.enter_context(_locked(path, os.O_CREAT | os.O_EXCL | os.O_RDWR))
        try:
            yield path
        finally:
            _remove(path)


@contextlib.contextmanager
def _locked(path: Path, flags: int) -> Iterator[None]:
    """Holding it open, and its lock.  Raises OSError: somebody else has the lock, or has removed it just now."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.stat()
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """A copy and SQLite's journal of it."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)


class LogFile:
    """The write-ahead log, held open: each call into the system gives the interpreter away and waits for it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._opening = 0

    def sync(self, opening: int) -> None:
        """See `open`."""
        os.fdatasync(self.open(opening))

    def open(self, opening: int) -> int:
        """Its descriptor.

        opening: of the writer's connection; as long as that is open the log is the same file.  Raises OSError.
        """
        if opening != self._opening:
            self.close()
            self._descriptor = os.open(self.path, os.O_RDONLY)
            self._opening = opening
        return self._descriptor

    def close(self) -> None:
        """Open again at the next sync."""
        descriptor, self._descriptor, self._opening = self._descriptor, -1, 0
        if descriptor >= 0:
            os.close(descriptor)


class Place:
    """Whether the database file is still where it was opened.

    A file that was deleted or moved is written to as before, and what was acknowledged is gone with the last descriptor
    of it.  SQLite looks after that by itself, but not when it keeps a write-ahead log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: os.stat_result | None = None
        self._next_look = 0.0
        self._is_lost = False

    def remember(self) -> None:
        """It was opened just now.  Raises OSError."""
        self._opened = self._path.stat()

    def check(self) -> None:
        """Raises `StoreUnavailable` when another file is there, or none.  Looks once in `LOOK_S`."""
        now = time.monotonic()
        if now < self._next_look or self._opened is None:
            return
        try:
            is_lost = not os.path.samestat(self._path.stat(), self._opened)
        except OSError:
            is_lost = True
        if is_lost:
            if not self._is_lost:
                log.error("database_moved", path=str(self._path))
            self._is_lost = True
            raise NothingCommitted(
                f"{self._path} was deleted, moved or replaced while it is served: put it back, or restart the daemon"
            )
        self._is_lost = False
        self._next_look = now + LOOK_S
