# SPDX-License-Identifier: Apache-2.0
"""SQLite: one writing connection, a few reader threads, WAL, nothing confirmed before it is synced to disk.

The writer begins with BEGIN IMMEDIATE, so that a unit never fails halfway because somebody else writes; readers see a
snapshot and cannot write.  Checkpoints run beside the writer, not inside a commit.

A unit of group commit runs its statements and its commit in the event loop's thread, where they take a millisecond or
two and no hand-over of the interpreter; where somebody waits for its sync, the kernel is asked for it (`kernel_sync`).
Whatever could take longer (a lock that somebody else holds, a large unit, a unit of its own) runs in the writer's
thread, on the same connection; so do commit and sync where the kernel cannot be asked.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import structlog
import trio
from sqlalchemy import Connection, Engine, Select
from sqlalchemy.exc import DBAPIError

from hepmaild.errors import NothingCommitted, StoreUnavailable
from hepmaild.storage.kernel_sync import KernelSync
from hepmaild.storage.page_file import PageFile
from hepmaild.storage.sqlite_file import LogFile, Place, create_file, unfinished
from hepmaild.storage.sqlite_link import Link, NotHere, make_engine, store_failure
from hepmaild.storage.writer import JudgeManner, Manner, Sync
from hepmaild.threads import NoThread, Worker, in_thread

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

READERS = 4
_HEADER = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html
LATE_SYNC_S = 0.2
CHECKPOINT_ROWS = 4_000  # changed rows after which the write-ahead log is copied back
LONG_LOG_PAGES = 16_000  # of 4 KiB; a log of so many starts anew at its beginning
PARTS = 64  # in which the copies reach the disk,
LAST_PARTS = 16  # and those of what was written meanwhile


def _kernel_sync() -> KernelSync | None:
    try:
        return KernelSync()
    except OSError as error:
        log.info("syncs_by_thread", reason=str(error))
        return None


def first_value(conn: Connection, statement: Select[Any]) -> Any:
    """The first column of the first row; None when there is no row."""
    return conn.execute(statement).scalar()


def shrink(conn: Connection, pages: int = 256) -> int:
    """Give up to `pages` free pages (4 KiB each) back to the file system; how many are still free.

    For `Store.write`, in small steps.  Does nothing on PostgreSQL, whose autovacuum does it.
    """
    if conn.dialect.name != "sqlite":
        return 0
    driver: Any = conn.connection.driver_connection
    for _ in range(pages):  # sqlite3 makes one step of this statement, and a step frees one page
        driver.execute("PRAGMA incremental_vacuum(1)")
    return int(conn.exec_driver_sql("PRAGMA freelist_count").scalar_one())


class SqliteBackend:
    """What the store needs of an engine, on SQLite.

    path: the database file.  timeout_s: of a unit and of a read.  own_checkpoints: this process is the daemon.
    """

    is_sqlite = True
    joins_writes = True

    def __init__(
        self, path: Path, *, timeout_s: float, own_checkpoints: bool, judge: JudgeManner | None = None
    ) -> None:
        self._path = path
        self._log = LogFile(path.with_name(path.name + "-wal"))  # only who has the writer's connection looks at it
        self._place = Place(path)
        self._pages = PageFile(path)
        self._judge = judge or (lambda _members: Manner())
        self._timeout_s = timeout_s
        self._own_checkpoints = own_checkpoints
        self._worker = Worker("store-writer")
        self._syncer = Worker("store-sync")
        self._given = 0  # how many things the writer's thread was given (counted here)
        self._ended = 0  # and has ended (counted there)
        self._kernel = _kernel_sync() if own_checkpoints else None
        self._sync_failed = False
        self._is_unsynced = False  # something was committed that is to be synced soon
        self._late_sync = trio.Event()
        self._limiter = trio.CapacityLimiter(READERS)
        self._rows_at_checkpoint = 0
        self._checkpoint_due = trio.Event()
        wait_s = timeout_s * 0.8  # less than a unit may take, so that the writer is told before its callers give up
        self._writer = Link(self._engine(writer=True, wait_s=wait_s), wait_s, writes=True)
        self._reading = self._engine(writer=False, wait_s=wait_s)
        self._glancing: sqlite3.Connection | None = None
        self._glances: dict[Select[Any], str] = {}
        self._idle: queue.LifoQueue[Link] = queue.LifoQueue()
        for _ in range(READERS):
            self._idle.put(Link(self._reading, wait_s, writes=False))

    def _engine(self, *, writer: bool, wait_s: float, foreign_keys: bool = True) -> Engine:
        return make_engine(
            self._path,
            writer=writer,
            busy_timeout_s=wait_s,
            own_checkpoints=self._own_checkpoints,
            foreign_keys=foreign_keys,
        )

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Open the file (made if it is not there) and keep its threads and checkpoints running.

        Raises `StoreUnavailable` if it cannot be opened.
        """
        self._worker.start()
        self._syncer.start()
        try:
            await self._run_in_thread(self._prepare)
            async with trio.open_nursery() as nursery:
                if self._own_checkpoints:
                    nursery.start_soon(self._run_checkpoints)
                    nursery.start_soon(self._run_late_syncs)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._stop_glancing()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self._timeout_s):
                await self._run_in_thread(self._close)
            self._syncer.stop()
            self._worker.stop()
            if self._kernel is not None:
                self._kernel.close()

    def _prepare(self) -> None:
        try:
            create_file(self._path)
            self._writer.raw()
            self._place.remember()
        except (OSError, sqlite3.Error, DBAPIError) as error:
            said = getattr(error, "strerror", None) or error
            raise store_failure(error, self._path) or StoreUnavailable(f"cannot open {self._path}: {said}") from error

    def _close(self) -> None:
        # A reader whose caller gave up stops at its next look; its connection must not be closed under it.
        ends = time.monotonic() + self._timeout_s / 2
        are_closed = True
        for _ in range(READERS):
            try:
                self._idle.get(timeout=max(0.0, ends - time.monotonic())).close()
            except queue.Empty:
                log.warning("reader_left_behind")
                are_closed = False
        self._log.close()
        self._writer.close()  # the last one: it copies the log back
        if are_closed:
            self._pages.close()

    async def unit(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn(conn, *args)` in the writer's thread as one transaction, synced to disk when it returns."""
        return await self._alone(fn, args, Sync.NOW)

    async def soon_unit(self, fn: Callable[..., T], *args: Any) -> T:
        """As `unit`, synced within a moment."""
        result = await self._alone(fn, args, Sync.SOON)
        self._sync_soon()
        return result

    async def _alone(self, fn: Callable[..., T], args: tuple[Any, ...], sync: Sync) -> T:
        self._place.check()
        result, rows = await self._run_in_thread(self._unit, fn, args, sync)
        self._note_rows(rows)
        return result

    async def group_unit(self, fn: Callable[..., T], *args: Any) -> T:
        """The same for a unit of members (the last of `args`): here and now if that is possible and right."""
        self._place.check()
        manner = self._judge(args[-1])
        if not manner.is_light or self._given != self._ended or self._sync_failed or not self._own_checkpoints:
            return await self.unit(fn, *args)
        is_awaited = manner.sync is Sync.NOW
        try:
            result = self._writer.run_quickly(fn, args, commit=not is_awaited)
            if is_awaited:
                await self._commit_awaited()
                self._is_unsynced = False
        except NotHere:
            return await self.unit(fn, *args)
        self._note_rows(self._writer.raw().total_changes)
        if manner.sync is Sync.SOON:
            self._sync_soon()
        return result

    async def _commit_awaited(self) -> None:
        """Raises `StoreUnavailable` when the log cannot be synced, and `NotHere` when there was no commit."""
        kernel = self._kernel
        if kernel is None or not kernel.is_free:
            # The commit writes a page or two for each table, and a thread has to wait for the disk anyway.
            await self._run_in_thread(self._commit_and_sync)
            return
        self._writer.commit_quickly()
        try:
            if await kernel.fdatasync(self._log.open(self._writer.opened)):
                return
        except OSError as error:
            raise self._sync_has_failed(self._log, error) from error
        await self._run_in_thread(self._sync, self._log)

    def _commit_and_sync(self) -> None:
        self._writer.commit_quickly()
        self._sync(self._log)

    def _sync_soon(self) -> None:
        self._is_unsynced = True
        self._late_sync.set()

    async def _run_late_syncs(self) -> None:
        """Sync what nobody waits for, unless somebody who does came first."""
        while True:
            await self._late_sync.wait()
            self._late_sync = trio.Event()
            await trio.sleep(LATE_SYNC_S)
            if not self._is_unsynced:
                continue
            self._is_unsynced = False
            try:
                await self._syncer.run(self._sync_by_the_way)
            except StoreUnavailable as error:  # the next unit copies the log back first
                log.warning("late_sync_failed", error=str(error))

    async def _run_in_thread(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn` in the writer's thread; meanwhile nobody else touches its connection, also when we are cancelled."""

        def work() -> T:
            try:
                return fn(*args, **kwargs)
            finally:
                self._ended += 1

        self._given += 1
        return await self._worker.run(work)

    def _unit(self, fn: Callable[..., T], args: tuple[Any, ...], sync: Sync) -> tuple[T, int]:
        if self._sync_failed:
            self._copy_back()
        result = self._writer.run(fn, args)
        if self._own_checkpoints and sync is Sync.NOW:
            self._sync(self._log)
        return result, self._writer.raw().total_changes

    def _sync(self, file: LogFile) -> None:
        """Make what was committed outlive a power cut, as `synchronous=FULL` would."""
        try:
            file.sync(self._writer.opened)
        except OSError as error:
            raise self._sync_has_failed(file, error) from error

    def _sync_has_failed(self, file: LogFile, error: OSError) -> StoreUnavailable:
        self._sync_failed = True
        return StoreUnavailable(f"{file.path} cannot be synced: {error.strerror}")

    def _sync_by_the_way(self) -> None:
        """In the other thread, a few times a second."""
        file = LogFile(self._log.path)
        try:
            self._sync(file)
        finally:
            file.close()

    def _copy_back(self) -> None:
        """After a failed sync the log may have holes that a later sync does not mend: get everything out of it."""
        busy = self._writer.checkpoint("TRUNCATE")[0]
        if busy:
            raise NothingCommitted("the log could not be synced, and cannot be copied back yet")
        self._sync_failed = False

    def _note_rows(self, rows: int) -> None:
        """rows: that the writer's connection has changed; it begins anew when that is opened anew."""
        if rows < self._rows_at_checkpoint:
            self._rows_at_checkpoint = 0
        if rows - self._rows_at_checkpoint >= CHECKPOINT_ROWS:
            self._rows_at_checkpoint = rows
            self._checkpoint_due.set()

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn(conn, *args)` in a reader thread on one snapshot.  Cancelled, its statement is stopped."""
        gone = False

        def work() -> T:
            link = self._idle.get_nowait()
            try:
                return link.run(fn, args, lambda: gone)
            finally:
                self._idle.put(link)

        try:
            return await in_thread(work, limiter=self._limiter, abandon_on_cancel=True)
        except NoThread as error:
            raise StoreUnavailable(f"SQLite cannot be read: {error.strerror}") from error
        finally:
            gone = True

    def glance(self, statement: Select[Any]) -> Any:
        """The first column of the first row, read here and now in the event loop's thread: a few microseconds.

        In WAL mode a reader waits for nobody.  Raises `NotHere` should anything be in its way after all.
        """
        sql = self._glances.get(statement)
        if sql is None:
            compiled = statement.compile(dialect=self._reading.dialect, compile_kwargs={"literal_binds": True})
            sql = self._glances[statement] = str(compiled)
        try:
            if self._glancing is None:
                uri = f"{self._path.absolute().as_uri()}?mode=ro"
                self._glancing = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)
            rows = self._glancing.execute(sql).fetchall()
        except sqlite3.Error as error:
            self._stop_glancing()
            raise NotHere from error
        return rows[0][0] if rows else None

    def _stop_glancing(self) -> None:
        if self._glancing is not None:
            self._glancing.close()
            self._glancing = None

    async def migrate(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` as a unit without the deadline and without foreign keys (which SQLite's way to alter a table
        needs); they are checked before the commit."""
        return await self._run_in_thread(self._migrate, fn)

    def _migrate(self, fn: Callable[[Connection], T]) -> T:
        link = Link(self._engine(writer=True, wait_s=60, foreign_keys=False), 3600, writes=True)

        def checked(conn: Connection) -> T:
            result = fn(conn)
            if broken := conn.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(5):
                raise RuntimeError(f"rows that point nowhere after the migration: {broken}")
            return result

        try:
            return link.run(checked, ())
        finally:
            link.close()

    @staticmethod
    def touch(conn: Connection) -> None:
        """Write one page."""
        version = conn.exec_driver_sql("PRAGMA user_version").scalar_one()
        conn.exec_driver_sql(f"PRAGMA user_version={int(version)}")

    async def _run_checkpoints(self) -> None:
        link = Link(self._engine(writer=True, wait_s=1), 1, writes=True)
        limiter = trio.CapacityLimiter(1)
        try:
            while True:
                await self._checkpoint_due.wait()
                self._checkpoint_due = trio.Event()
                try:
                    await self._checkpoint(link, limiter)
                except (DBAPIError, sqlite3.Error, OSError) as error:
                    log.warning("checkpoint_failed", error=str(error))
                    link.close()
        finally:
            link.close()

    async def _checkpoint(self, link: Link, limiter: trio.CapacityLimiter) -> None:
        """Copy the log back, beside the writer.

        Only a log that is copied to its end, with the copies on the disk, starts anew.  Once it is long the disk is
        given the copies without haste, then what was written meanwhile; the last few pages are copied in the writer's
        turn, for which every unit waits, and whose sync finds next to nothing left.
        """
        _, pages, _ = await in_thread(link.checkpoint, "PASSIVE", limiter=limiter)
        if pages < LONG_LOG_PAGES:
            return
        await in_thread(self._pages.sync, PARTS, limiter=limiter)
        await in_thread(link.checkpoint, "PASSIVE", limiter=limiter)
        await in_thread(self._pages.sync, LAST_PARTS, limiter=limiter)
        await self._run_in_thread(self._writer.checkpoint, "PASSIVE")

    async def backup(self, target: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Copy the database, as it is at one moment, to `target` (replaced at the end, mode 0600), while it is used.

        progress: called in a thread with (pages left, pages in all).  Cancelled, it leaves no file.  Raises OSError,
        `StoreUnavailable`, ValueError when `target` is the database itself, or there and no copy of one.
        """
        gone = False

        def tick(_status: int, left: int, total: int) -> None:
            if gone:
                raise InterruptedError
            if progress is not None:
                progress(left, total)

        try:
            await in_thread(self._backup, target, tick, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True)
        finally:
            gone = True

    def _check_target(self, target: Path) -> None:
        """ValueError for a file that is in use: whoever has it open would go on writing into one without a name."""
        for end in ("", "-wal", "-shm", "-journal"):
            own = self._path.with_name(self._path.name + end)
            is_own = os.path.realpath(target) == os.path.realpath(own)
            if is_own or (target.exists() and own.exists() and target.samefile(own)):
                raise ValueError(f"{target} is the database itself ({own}): name another file for the copy")
        if not target.exists():
            return
        with target.open("rb") as file:
            begin = file.read(len(_HEADER))
        if begin and begin != _HEADER:  # a slip of the fingers, onto secrets.key
            raise ValueError(f"{target} is no copy of a database: name another file, or take it away first")

    def _backup(self, target: Path, tick: Callable[[int, int, int], None]) -> None:
        self._check_target(target)
        target = Path(os.path.realpath(target))  # a link stays one: the copy belongs on the disk that it leads to
        link = Link(self._reading, 3600, writes=False)
        try:
            with unfinished(target) as partial:
                source = link.raw()
                # An open snapshot keeps the copy from starting anew whenever somebody writes.
                source.execute("BEGIN")
                source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                with contextlib.closing(sqlite3.connect(partial)) as copy:
                    source.backup(copy, pages=1024, progress=tick)
                    copy.execute("PRAGMA journal_mode=DELETE").fetchall()
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(target)
        except sqlite3.Error as error:
            raise store_failure(error, target, self._path) or StoreUnavailable(f"backup failed: {error}") from error
        finally:
            link.close()
