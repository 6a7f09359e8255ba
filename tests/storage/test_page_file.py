# SPDX-License-Identifier: Apache-2.0
"""Getting the database file onto the disk part by part: what is refused, who gives up, and SQLite's locks."""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from hepmaild.storage import page_file
from hepmaild.storage.page_file import PageFile

DEADLINE_S = 120
PARTS = 64
PART = page_file._LEAST_OCTETS
SIZE = 2 * PARTS * PART + 4096


@pytest.fixture(autouse=True)
def without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_file, "PAUSE_S", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is longer than PARTS of the least size, and not a multiple of anything."""
    found = tmp_path / "test.db"
    found.write_bytes(b"x" * SIZE)
    return found


@pytest.fixture
def file(path: Path) -> Iterator[PageFile]:
    found = PageFile(path)
    yield found
    found.close()


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes of what was synced to its end."""
    found: list[int] = []
    real = os.fdatasync

    def sync(descriptor: int) -> None:
        real(descriptor)
        found.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fdatasync", sync)
    return found


def inode_of(path: Path) -> int:
    return path.stat().st_ino


async def in_thread(file: PageFile) -> None:
    with trio.fail_after(DEADLINE_S):
        await trio.to_thread.run_sync(file.sync, PARTS)


def parts_of(file: PageFile, monkeypatch: pytest.MonkeyPatch, failure: int = 0) -> list[tuple[int, int]]:
    """(offset, octets) of what the kernel is asked to write from now on.  failure: of every call, an error number."""
    asked: list[tuple[int, int]] = []
    real: Any = file._write
    assert real is not None

    def write(descriptor: int, at: int, octets: int, flags: int) -> int:
        asked.append((at, octets))
        if failure:
            ctypes.set_errno(failure)
            return -1
        answer: int = real(descriptor, at, octets, flags)
        return answer

    monkeypatch.setattr(file, "_write", write)
    return asked


async def test_the_parts_are_the_file(
    file: PageFile, path: Path, syncs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = parts_of(file, monkeypatch)
    await in_thread(file)
    assert asked[0][0] == 0
    assert all(before + octets == after for (before, octets), (after, _) in pairwise(asked))
    assert sum(asked[-1]) >= SIZE
    assert PARTS <= len(asked) <= PARTS + 1
    assert syncs == [inode_of(path)]


async def test_a_small_file_has_few_parts(tmp_path: Path, syncs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.db"
    path.write_bytes(b"x" * (PART + 1))
    file = PageFile(path)
    asked = parts_of(file, monkeypatch)
    await in_thread(file)
    file.close()
    assert len(asked) == 2
    assert syncs == [inode_of(path)]


async def test_where_it_is_refused_the_sync_does_it_all(
    file: PageFile, path: Path, syncs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = parts_of(file, monkeypatch, errno.EPERM)
    await in_thread(file)
    assert len(asked) == 1
    assert syncs == [inode_of(path)]


async def test_what_could_not_be_written_is_an_error(
    file: PageFile, syncs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = parts_of(file, monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        await in_thread(file)
    assert len(asked) == 1
    assert syncs == []


async def test_without_the_call_the_sync_does_it_all(
    path: Path, syncs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_kwargs: object())
    file = PageFile(path)
    await in_thread(file)
    file.close()
    assert syncs == [inode_of(path)]


async def test_who_gives_up_waits_for_one_part(
    file: PageFile, syncs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def write(_descriptor: int, at: int, _octets: int, _flags: int) -> int:
        asked.append(at)
        trio.from_thread.run_sync(scope.cancel)
        return 0

    monkeypatch.setattr(file, "_write", write)
    with trio.CancelScope() as scope:
        await in_thread(file)
    assert scope.cancelled_caught
    assert len(asked) == 1
    assert syncs == []


async def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await in_thread(PageFile(tmp_path / "missing.db"))


def locks_on(path: Path) -> int:
    """How many POSIX locks this process has on the file (proc(5), /proc/locks)."""
    pid, inode = str(os.getpid()), str(path.stat().st_ino)
    fields = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sum(field[1] == "POSIX" and field[4] == pid and field[5].rpartition(":")[2] == inode for field in fields)


async def test_the_locks_of_sqlite_are_left_alone(tmp_path: Path) -> None:
    """The descriptor stays open between two syncs: to close it would take them all."""
    path = tmp_path / "test.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("CREATE TABLE t (word TEXT)")
        held = locks_on(path)
        assert held
        file = PageFile(path)
        await in_thread(file)
        await in_thread(file)
        assert locks_on(path) == held
    file.close()
