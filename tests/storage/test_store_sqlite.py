# SPDX-License-Identifier: Apache-2.0
"""SQLite: its settings, a full disk, another process's lock, the write-ahead log, and the online copy."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
import threading
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from sqlalchemy import Connection, text

from hepmaild.errors import NothingCommitted, StoreUnavailable
from hepmaild.storage import sqlite, sqlite_file
from hepmaild.storage.kernel_sync import KernelSync
from hepmaild.storage.page_file import PageFile
from hepmaild.storage.store import LOCK_NAME, Store, StoreLocked
from hepmaild.storage.writer import Manner, Sync
from tests.conftest import LogEvents
from tests.crash.test_outage import fill as ballast_in
from tests.crash.test_outage import small_disk
from tests.peers.processes import no_file_beyond
from tests.storage.conftest import PATIENCE_S, Journal, Opener, debit, keep, make_opener, until_it_works, words
from tests.storage.test_kernel_sync import offered

DEADLINE_S = 120


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return make_opener("sqlite:///test.db", tmp_path)


def fill(conn: Connection, word: str, octets: int = 500_000) -> None:
    conn.execute(text("create table if not exists t_big (word text, data blob)"))
    conn.execute(text("insert into t_big values (:word, :data)"), {"word": word, "data": os.urandom(octets)})


async def test_settings(opener: Opener, tmp_path: Path) -> None:
    async with opener(tables=True) as store:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "auto_vacuum", "temp_store")

        def look(conn: Connection) -> list[object]:
            return [conn.exec_driver_sql(f"pragma {name}").scalar() for name in pragmas]

        # synchronous=NORMAL: the daemon syncs the log itself (see the next test), everybody else has FULL.
        assert await store.write(look) == ["wal", 1, 1, 2, 2]
        assert await store.read(look) == ["wal", 1, 1, 2, 2]
        async with opener(exclusive=False) as other:
            assert await other.write(look) == ["wal", 2, 1, 2, 2]
        for name in ("test.db", "test.db-wal", LOCK_NAME):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        assert (tmp_path / LOCK_NAME).read_text().strip() == str(os.getpid())


async def test_two_daemons_with_folders_of_their_own_never_serve_one_database(tmp_path: Path) -> None:
    """The second would take the first one's leases for those of the dead, and its mail would leave twice."""
    (tmp_path / "link.db").symlink_to(tmp_path / "shared.db")

    def daemon(folder: str, name: str) -> Opener:
        return make_opener(f"sqlite:///{tmp_path}/{name}.db", tmp_path / folder)

    async with daemon("a", "shared")(tables=True) as store:
        await store.write(keep, "here")
        for other in (daemon("b", "shared"), daemon("c", "link")):
            with pytest.raises(StoreLocked, match=r"another hepmaild \(process \d+\) serves .*\.db"):
                async with other():
                    pass
            async with other(exclusive=False) as command:
                assert await command.read(words) == {"here"}
        async with daemon("d", "another")():
            pass  # only the folder is the same
    async with daemon("b", "shared")() as store:
        assert await store.read(words) == {"here"}


def never(*_: Any) -> Any:
    raise OSError(errno.EPERM, "forbidden here")


async def test_nothing_is_confirmed_before_the_log_is_synced(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members and units of their own alike; a sync that fails is an error, and afterwards the log is emptied first."""
    monkeypatch.setattr(sqlite, "KernelSync", never)
    may_sync = threading.Event()
    syncs: list[int] = []
    failing = False
    token = trio.lowlevel.current_trio_token()

    def sync(descriptor: int) -> None:
        syncs.append(os.fstat(descriptor).st_ino)
        token.run_sync_soon(begun.set)
        assert may_sync.wait(DEADLINE_S)
        if failing:
            raise OSError(errno.EIO, "the disk is sick")
        os.fsync(descriptor)

    async def put(word: str) -> None:
        await (store.submit(word) if word.startswith("member") else store.write(keep, word))
        confirmed.append(word)

    confirmed: list[str] = []
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            monkeypatch.setattr(os, "fdatasync", sync)
            for word in ("member 1", "unit 1"):
                may_sync.clear()
                syncs.clear()
                begun = trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(put, word)
                    await begun.wait()
                    assert word in await store.read(words)  # committed, and seen by readers
                    assert word not in confirmed
                    may_sync.set()
                assert confirmed[-1] == word
                assert set(syncs) == {(tmp_path / "test.db-wal").stat().st_ino}
            failing = True
            for word in ("member 2", "unit 2"):
                with pytest.raises(StoreUnavailable, match="cannot be synced") as caught:
                    await put(word)
                assert not isinstance(caught.value, NothingCommitted)
            failing = False
            await put("member 3")
            await put("unit 3")
            assert await store.read(words) >= {"member 1", "unit 1", "member 3", "unit 3"}


async def test_nothing_is_confirmed_before_the_kernel_has_synced_the_log(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel can be asked; when it does not take the sync, the thread does."""
    begun, may_end = trio.Event(), trio.Event()
    failing = taken = False
    asked: list[int] = []

    class Held(KernelSync):
        async def fdatasync(self, descriptor: int) -> bool:
            nonlocal taken
            asked.append(os.fstat(descriptor).st_ino)
            begun.set()
            await may_end.wait()
            if failing:
                raise OSError(errno.EIO, "the disk is sick")
            taken = await super().fdatasync(-1 if len(asked) == 2 else descriptor)
            return taken

    async def put(word: str) -> None:
        await store.submit(word)
        confirmed.append(word)

    offered().close()
    confirmed: list[str] = []
    monkeypatch.setattr(sqlite, "KernelSync", Held)
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put, "member 1")
                await begun.wait()
                assert "member 1" in await store.read(words)  # committed, and seen by readers
                assert not confirmed
                may_end.set()
            assert (confirmed, taken) == (["member 1"], True)
            await put("member 2")
            assert not taken
            failing = True
            with pytest.raises(StoreUnavailable, match="cannot be synced: the disk is sick"):
                await put("member 3")
            failing = False
            await put("member 4")  # by the thread, which empties the log first
            await put("member 5")
            assert taken
            assert len(asked) == 4
            assert set(asked) == {(tmp_path / "test.db-wal").stat().st_ino}
            assert await store.read(words) >= {"member 1", "member 2", "member 4", "member 5"}


async def test_what_nobody_waits_for_is_synced_a_moment_later(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer waits for that sync; when it fails, the next unit mends what it left."""
    may_sync = threading.Event()
    failures = 0
    token = trio.lowlevel.current_trio_token()
    synced = trio.Event()

    def sync(descriptor: int) -> None:
        nonlocal failures
        assert may_sync.wait(DEADLINE_S)
        token.run_sync_soon(lambda: synced.set())
        if failures:
            failures -= 1
            raise OSError(errno.EIO, "the disk is sick")
        os.fsync(descriptor)

    def judge(members: list[str]) -> Manner:
        return Manner(sync=Sync.NOW if any("now" in word for word in members) else Sync.SOON)

    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True, judge=judge) as store:
            monkeypatch.setattr(os, "fdatasync", sync)
            for word in ("soon 1", "soon 2", "soon 3"):
                await store.submit(word)
            assert not synced.is_set()
            may_sync.set()
            await synced.wait()
            await store.submit("now 1")
            synced, failures = trio.Event(), 1
            await store.submit("soon 4")
            await synced.wait()
            await store.submit("now 2")
            synced = trio.Event()
            may_sync.clear()
            await store.write_soon(keep, "soon 5")
            assert not synced.is_set()
            may_sync.set()
            await synced.wait()
            every = {"soon 1", "soon 2", "soon 3", "soon 4", "soon 5", "now 1", "now 2"}
            assert await store.read(words) == every


async def test_a_unit_that_would_wait_goes_to_the_thread(opener: Opener, tmp_path: Path) -> None:
    """Somebody else's lock, many members, a slow statement: the loop goes on meanwhile."""
    slow = "with recursive n(x) as (select 1 union all select x + 1 from n where x < 50000000) select max(x) from n"

    def count_slowly(conn: Connection, members: list[object]) -> list[object]:
        are_here.append(threading.current_thread() is threading.main_thread())
        conn.exec_driver_sql(slow if are_here[-1] else "select 1").fetchall()
        return members

    def release() -> None:
        went_on.append(looked.wait(PATIENCE_S / 2))  # shorter than the lock is waited for
        other.execute("commit")

    are_here: list[bool] = []
    went_on: list[bool] = []
    looked = threading.Event()
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None, check_same_thread=False)) as other:
                other.execute("begin immediate")
                releasing = threading.Thread(target=release)
                releasing.start()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.submit, "word")
                    for _ in range(20):
                        await trio.sleep(0.005)
                    assert store.members == 0
                    looked.set()
                releasing.join()
            assert went_on == [True]
            assert "word" in await store.read(words)
        async with opener(count_slowly) as store:
            assert await store.submit("slow") == "slow"
    assert are_here == [True, False]


async def test_a_full_disk_is_a_temporary_error(opener: Opener, tmp_path: Path) -> None:
    acknowledged: set[str] = set()
    refused = 0
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            await store.write(fill, "before")
            with no_file_beyond((tmp_path / "test.db-wal").stat().st_size + 20_000):
                for n in range(40):
                    try:
                        await store.submit(f"word {n}")
                    except NothingCommitted:
                        refused += 1
                    else:
                        acknowledged.add(f"word {n}")
                with pytest.raises(StoreUnavailable, match="SQLite"):
                    await store.write(fill, "no", 2_000_000)
                with pytest.raises(StoreUnavailable):
                    await store.write(fill, "no", 2_000_000)
                assert await store.read(words) == acknowledged
            assert await store.submit("after") == ("kept", "after")
            await store.write(fill, "after")
            await store.check()
    assert refused
    with closing(sqlite3.connect(tmp_path / "test.db")) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert {row[0] for row in connection.execute("select word from t_note")} == acknowledged | {"after"}
        assert [row[0] for row in connection.execute("select word from t_big")] == ["before", "after"]


async def test_anothers_lock_is_a_temporary_error(opener: Opener, tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True):
            pass
        async with opener(unit_timeout_s=1) as store:
            with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None)) as other:
                other.execute("begin immediate")
                async with trio.open_nursery() as nursery:
                    for call in (store.submit, store.write):
                        nursery.start_soon(expect_unavailable, call)
                with pytest.raises(StoreUnavailable):
                    await store.check()
                assert await until_it_works(partial(store.read, words)) == set()
                other.execute("commit")
            assert await until_it_works(partial(store.submit, "refuse")) == ("refused", "refuse")
            assert await until_it_works(partial(store.write, debit, 0)) == 100
            assert await until_it_works(partial(store.read, words)) == set()


async def expect_unavailable(call: object) -> None:
    arguments = {"submit": ("x",), "write": (keep, "y")}
    with pytest.raises(StoreUnavailable):
        await call(*arguments[call.__name__])  # type: ignore[operator, attr-defined]


async def test_a_short_lock_is_waited_for(opener: Opener, tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            # Opened here and committed there: any thread may.
            with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None, check_same_thread=False)) as other:
                other.execute("begin immediate")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.submit, "patient")
                    await trio.sleep(0.05)
                    other.execute("commit")
            assert await store.read(words) == {"patient"}


async def test_a_broken_file_is_unavailable(opener: Opener, tmp_path: Path) -> None:
    (tmp_path / "test.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreUnavailable, match=r"test\.db: SQLite: file is not a database"):
        async with opener():
            pass


async def test_what_is_wrong_with_the_place_of_a_file_is_said(opener: Opener, tmp_path: Path) -> None:
    (tmp_path / "test.db").mkdir()
    with pytest.raises(StoreUnavailable, match=r"test\.db is a folder; SQLite: unable to open database file"):
        async with opener():
            pass


async def test_a_file_of_somebody_else_is_named() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        opener, file = make_opener("sqlite:///test.db", Path(name)), Path(name) / "test.db"
        async with opener():
            pass
        file.chmod(0o400)
        try:
            if user == 0:  # who may write everything
                os.chown(name, 65_534, 65_534)
                os.seteuid(65_534)
            with pytest.raises(StoreUnavailable, match=f"user cannot write {file}: make it the owner"):
                async with opener(exclusive=False):
                    pass
        finally:
            os.seteuid(user)


async def test_a_full_disk_and_one_for_reading_are_named() -> None:
    with small_disk(8) as disk:
        opener = make_opener("sqlite:///test.db", disk)
        async with opener(exclusive=False, tables=True) as store:
            ballast = ballast_in(disk)
            with pytest.raises(StoreUnavailable, match=f"the disk of {disk} is full; SQLite: "):
                await store.write(fill, "no", 2_000_000)
        ballast.unlink()
        await trio.run_process(["mount", "-o", "remount,ro", str(disk)])
        async with opener(exclusive=False) as store:
            with pytest.raises(StoreUnavailable, match=f"the file system of {disk} is mounted read-only; SQLite: "):
                await store.write(fill, "no")


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
async def test_a_file_that_lost_its_place_takes_nothing_more(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_events: LogEvents, how: str
) -> None:
    """What is acknowledged is there when the file is opened again, where it can be put back."""
    monkeypatch.setattr(sqlite_file, "LOOK_S", 0)
    log_events.expect_error("database_moved")
    path, aside = tmp_path / "test.db", tmp_path / "aside.db"
    async with opener(tables=True) as store:
        await store.submit("before")
        if how == "deleted":
            aside.hardlink_to(path)
            path.unlink()
        else:
            path.rename(aside)
        if how == "replaced":
            path.write_bytes(b"")
        for call in (store.submit("lost"), store.write(keep, "lost"), store.check()):
            with pytest.raises(StoreUnavailable, match="put it back"):
                await call
        aside.rename(path)
        assert await store.submit("after") == ("kept", "after")
    async with opener() as store:
        assert await store.read(words) == {"before", "after"}


async def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    async with make_opener("sqlite:///test.db", tmp_path / "new" / "state")(tables=True) as store:
        assert await store.write(debit, 1) == 99
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700


async def test_the_write_ahead_log_does_not_grow_for_ever(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts anew once it is long, and is only helped to then: until that nothing stands before a unit."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_ROWS", 100)
    monkeypatch.setattr(sqlite, "LONG_LOG_PAGES", 600)
    wal = tmp_path / "test.db-wal"
    helped: list[int] = []  # how long it was then, at most
    real = PageFile.sync

    def sync(pages: PageFile, parts: int) -> None:
        helped.append(wal.stat().st_size)
        real(pages, parts)

    monkeypatch.setattr(PageFile, "sync", sync)
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:

            async def write_many(name: int) -> None:
                for n in range(400):
                    await store.submit(f"{name} {n}")

            names, begun = 0, {salt(wal)}
            while len(begun) < 4 or wal.stat().st_size >= store.units * 3 * 4096 / 2:
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(write_many, names)
                        names += 1
                begun.add(salt(wal))
            # Where a sync takes no time (tmpfs) it starts anew by itself whenever it was copied, and is never long.
            assert min(helped, default=wal.stat().st_size + 600 * 4096) > 600 * 4096
            assert helped or wal.stat().st_size < 1200 * 4096
            assert len(await store.read(words)) == names * 400


def salt(wal: Path) -> bytes:
    """Of the log: another one each time it starts anew (https://www.sqlite.org/fileformat.html#walformat)."""
    with wal.open("rb") as file:
        return file.read(24)[16:]


async def test_a_log_whose_copies_cannot_be_synced_goes_on(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is refused for it, and a later checkpoint tries again."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_ROWS", 100)
    monkeypatch.setattr(sqlite, "LONG_LOG_PAGES", 100)
    real, database = os.fdatasync, tmp_path / "test.db"
    failures = number = 0
    is_sick = True

    def sync(descriptor: int) -> None:
        nonlocal failures
        if is_sick and os.fstat(descriptor).st_ino == database.stat().st_ino:
            failures += 1
            raise OSError(errno.EIO, "the disk is sick")
        real(descriptor)

    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            monkeypatch.setattr(os, "fdatasync", sync)
            with structlog.testing.capture_logs() as entries:
                while failures < 3:
                    await store.submit(str(number))
                    number += 1
            assert {entry["event"] for entry in entries} == {"checkpoint_failed"}
            is_sick = False
            wal = tmp_path / "test.db-wal"
            begun = salt(wal)
            while salt(wal) == begun:
                await store.submit(str(number))
                number += 1
            assert len(await store.read(words)) == number


async def test_deleted_content_gives_its_disk_back(opener: Opener, tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            for n in range(10):
                await store.write(fill, str(n))
            await store.write(lambda conn: conn.execute(text("delete from t_big")))
            while await store.write(sqlite.shrink, 500):
                pass
    assert (tmp_path / "test.db").stat().st_size < 200_000


async def test_an_online_copy(opener: Opener, tmp_path: Path) -> None:
    target = tmp_path / "copies" / "copy.db"
    target.parent.mkdir()
    target.write_bytes(b"SQLite format 3\0 of an older copy")
    ticks: list[tuple[int, int]] = []
    stop = False
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            for n in range(40):
                await store.write(fill, str(n))

            async def load() -> None:
                n = 0
                while not stop:
                    n += 1
                    await store.submit(f"word {n}")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(load)
                await store.backup(target, lambda left, total: ticks.append((left, total)))
                stop = True
    assert len(ticks) > 2
    assert ticks[-1][0] == 0
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in target.parent.iterdir()] == ["copy.db"]
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert copy.execute("select count(*) from t_big").fetchone() == (40,)


async def test_no_thread_is_left(opener: Opener) -> None:
    async with opener(tables=True) as store:
        assert await store.read(lambda _conn: 1) == 1
        names = {thread.name for thread in threading.enumerate()}
        assert "store-writer" in names
    with trio.fail_after(DEADLINE_S):
        while any(thread.name == "store-writer" for thread in threading.enumerate()):  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_cancelling_the_daemon_finishes_the_unit_that_runs(opener: Opener, journal: Journal) -> None:
    results: list[object] = []

    async def one(store: Store, word: str) -> None:
        results.append(await store.submit(word))

    with trio.fail_after(DEADLINE_S):
        with trio.CancelScope() as scope:
            async with opener(journal, tables=True) as store, trio.open_nursery() as nursery:
                for n in range(50):
                    nursery.start_soon(one, store, f"word {n}")
                await trio.lowlevel.checkpoint()
                scope.cancel()
        async with opener() as store:
            kept = await store.read(words)
    assert {word for _, word in results} == kept  # type: ignore[misc]
