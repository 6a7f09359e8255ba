# SPDX-License-Identifier: Apache-2.0
"""`db backup`: what it must not overwrite, and what it must not make up."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

ME = "me@example.com"


@pytest.mark.parametrize("name", ["hepmaild.db", "hepmaild.db-wal", "hepmaild.db-shm", "symlink", "hardlink", "folder"])
def test_the_database_is_no_place_for_its_copy(cli: Any, tmp_path: Path, name: str) -> None:
    cli.ok("account", "add", ME)
    state = tmp_path / "state"
    database = state / "hepmaild.db"
    (tmp_path / "folder").symlink_to(state)
    (state / "symlink").symlink_to(database)
    os.link(database, state / "hardlink")
    target = tmp_path / "folder" / "hepmaild.db" if name == "folder" else state / name
    with closing(sqlite3.connect(database)) as service:  # has the file open, as the daemon has
        service.execute("select count(*) from account").fetchone()
        before = database.stat()
        said = cli.refused("db", "backup", str(target))
        assert "is the database itself" in said
        assert "name another file" in said
        assert database.stat().st_ino == before.st_ino
        assert service.execute("select email from account").fetchall() == [(ME,)]
    assert [row["email"] for row in cli.json("account", "list")] == [ME]


@pytest.mark.parametrize("name", ["secrets.key", "hepmaild.lock", "../notes.txt"])
def test_only_copies_are_replaced(cli: Any, tmp_path: Path, name: str) -> None:
    cli.ok("account", "add", ME)
    target = tmp_path / "state" / name
    target.write_text("precious")
    said = cli.refused("db", "backup", str(target))
    assert "is no copy of a database" in said
    assert target.read_text() == "precious"
    copy = tmp_path / "copy.db"
    copy.touch()  # as mktemp leaves it
    for _ in range(2):
        cli.ok("db", "backup", str(copy))
    assert copy.stat().st_size > 0


def test_without_a_database_there_is_no_copy(cli: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    said = cli.refused("db", "backup", str(copy))
    assert str(tmp_path / "state" / "hepmaild.db") in said
    assert "server.state_dir" in said
    assert "database.url" in said
    assert list(tmp_path.iterdir()) == [cli.config]


def test_an_empty_database_is_no_backup(cli: Any, tmp_path: Path) -> None:
    cli.refused("db", "check")  # opens it, and so makes it
    assert "the database is empty" in cli.refused("db", "backup", str(tmp_path / "copy.db"))
    assert not (tmp_path / "copy.db").exists()


def test_what_a_killed_backup_left_is_removed(cli: Any, tmp_path: Path) -> None:
    """It holds all that a copy does; and where every command is process 1, as in a container, it was in the way."""
    cli.ok("account", "add", ME)
    copy = tmp_path / "copy.db"
    left = [tmp_path / f".copy.db.{number}.part{end}" for number in (os.getpid(), 1) for end in ("", "-journal")]
    for path in left:
        path.write_bytes(b"half a copy")
    other = tmp_path / ".other.db.1.part"
    other.touch()
    at_work = tmp_path / ".copy.db.2.part"
    with at_work.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cli.ok("db", "backup", str(copy))
        assert at_work.exists()
    assert not [path for path in left if path.exists()]
    assert other.exists()
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("select email from account").fetchall() == [(ME,)]
    cli.ok("db", "backup", str(copy))
    assert not at_work.exists()


def test_a_link_stays_one(cli: Any, tmp_path: Path) -> None:
    """It leads to another disk, most likely."""
    cli.ok("account", "add", ME)
    (tmp_path / "disk").mkdir()
    link = tmp_path / "copy.db"
    link.symlink_to(tmp_path / "disk" / "far.db")
    for _ in range(2):
        cli.ok("db", "backup", str(link))
        assert link.is_symlink()
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["far.db"]
    assert link.stat().st_size > 0
