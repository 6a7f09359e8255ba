# SPDX-License-Identifier: Apache-2.0
"""SQLite: one writer thread with one connection, a few reader threads, WAL with a full sync at every commit.

The writer begins with BEGIN IMMEDIATE, so that a unit never fails halfway because somebody else writes; readers see a
snapshot and cannot write.  Checkpoints run beside the writer, not inside a commit.
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
from sqlalchemy import URL, Connection, Engine, Select, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from hepmaild.errors import StoreUnavailable
from hepmaild.threads import Worker

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

READERS = 4
CHECKPOINT_ROWS = 4_000  # changed rows after which the write-ahead log is copied back
WRITER_CACHE_KIB = 16_384
READER_CACHE_KIB = 4_096
PROGRESS_STEPS = 50_000  # of SQLite's machine, about a millisecond, between two looks at the clock

# The store is sick, not the statement (https://www.sqlite.org/rescode.html).
_STORE_FAILURES = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)


def store_failure(error: BaseException) -> StoreUnavailable | None:
    """`StoreUnavailable` with SQLite's words if the store failed; None if the statement or its values are to blame."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, sqlite3.Error):
        return None
    code = getattr(cause, "sqlite_errorcode", None)
    if code is None or code & 0xFF not in _STORE_FAILURES:
        return None
    return StoreUnavailable(f"SQLite: {cause} ({cause.sqlite_errorname})")


class _Guard:
    """Ends a statement that runs past its time, or whose caller is gone: SQLite asks it every PROGRESS_STEPS."""

    def __init__(self) -> None:
        self.deadline = 0.0  # of time.monotonic
        self.abandoned: Callable[[], bool] = bool

    def start(self, timeout_s: float | None, abandoned: Callable[[], bool] = bool) -> None:
        self.deadline = time.monotonic() + timeout_s if timeout_s else float("inf")
        self.abandoned = abandoned

    def __call__(self) -> int:
        return time.monotonic() > self.deadline or self.abandoned()


class _Link:
    """One connection for good: opened when it is first used, and again after the store failed."""

    def __init__(self, engine: Engine, timeout_s: float) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._guard = _Guard()

    def run(self, fn: Callable[..., T], args: tuple[Any, ...], abandoned: Callable[[], bool] = bool) -> T:
        """`fn(conn, *args)` in one transaction.  Raises `StoreUnavailable` or what `fn` raised; both rolled back."""
        try:
            connection = self._open()
            self._guard.start(self._timeout_s, abandoned)
            with connection.begin():
                return fn(connection, *args)
        except (DBAPIError, sqlite3.Error) as error:
            failure = store_failure(error)
            if failure is None:
                raise
            self.close()
            raise failure from error

    def checkpoint(self, mode: str) -> tuple[int, int, int]:
        """Copy the write-ahead log back; (busy, pages in the log, pages copied)."""
        self._guard.start(None)
        row = self.raw().execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        return row[0], row[1], row[2]

    def raw(self) -> sqlite3.Connection:
        driver = self._open().connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver

    def close(self) -> None:
        """Give the connection back to the system, whatever state it is in."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(DBAPIError, sqlite3.Error):
                connection.invalidate()
            with contextlib.suppress(DBAPIError, sqlite3.Error):
                connection.close()

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            self.raw().set_progress_handler(self._guard, PROGRESS_STEPS)
        return self._connection


def _engine(path: Path, *, writer: bool, busy_timeout_s: float, own_checkpoints: bool, foreign_keys: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        hide_parameters=True,
        # Transactions are begun by the listener below, never by the driver.
        connect_args={
            "isolation_level": None,
            "check_same_thread": False,
            "cached_statements": 512,
            "timeout": busy_timeout_s,
        },
    )
    pragmas = [
        "PRAGMA synchronous=FULL",
        f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}",
        "PRAGMA temp_store=MEMORY",
        # A mapped file that loses its disk ends the process by SIGBUS; an error can be answered with 451.
        "PRAGMA mmap_size=0",
        f"PRAGMA cache_size=-{WRITER_CACHE_KIB if writer else READER_CACHE_KIB}",
        "PRAGMA journal_size_limit=67108864",
        # With checkpoints of our own this is only the net below them.
        f"PRAGMA wal_autocheckpoint={50_000 if own_checkpoints else 1000}",
    ]
    pragmas = [*(("PRAGMA journal_mode=WAL",) if writer else ()), *pragmas]
    if not writer:
        pragmas.append("PRAGMA query_only=ON")

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        for pragma in pragmas:
            connection.execute(pragma).fetchall()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")

    return engine


def first_value(conn: Connection, statement: Select[Any]) -> Any:
    """The first column of the first row; None when there is no row."""
    return conn.execute(statement).scalar()


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


def give_to_owner_of(folder: Path, path: Path) -> None:
    """Let a file made by root belong to whom its folder belongs to; nothing for anybody else."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


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

    def __init__(self, path: Path, *, timeout_s: float, own_checkpoints: bool) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._own_checkpoints = own_checkpoints
        self._worker = Worker("store-writer")
        self._limiter = trio.CapacityLimiter(READERS)
        self._rows_at_checkpoint = 0
        self._checkpoint_due = trio.Event()
        wait_s = timeout_s * 0.8  # less than a unit may take, so that the writer is told before its callers give up
        self._writer = _Link(self._engine(writer=True, wait_s=wait_s), wait_s)
        self._reading = self._engine(writer=False, wait_s=wait_s)
        self._glancing: sqlite3.Connection | None = None
        self._glances: dict[Select[Any], str] = {}
        self._idle: queue.LifoQueue[_Link] = queue.LifoQueue()
        for _ in range(READERS):
            self._idle.put(_Link(self._reading, wait_s))

    def _engine(self, *, writer: bool, wait_s: float, foreign_keys: bool = True) -> Engine:
        return _engine(
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
        try:
            await self._worker.run(self._prepare)
            async with trio.open_nursery() as nursery:
                if self._own_checkpoints:
                    nursery.start_soon(self._run_checkpoints)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._stop_glancing()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self._timeout_s):
                await self._worker.run(self._close)
            self._worker.stop()

    def _prepare(self) -> None:
        try:
            create_file(self._path)
            self._writer.raw()
        except (OSError, sqlite3.Error, DBAPIError) as error:
            raise store_failure(error) or StoreUnavailable(f"cannot open {self._path}: {error}") from error

    def _close(self) -> None:
        # A reader whose caller gave up stops at its next look; its connection must not be closed under it.
        ends = time.monotonic() + self._timeout_s / 2
        for _ in range(READERS):
            try:
                self._idle.get(timeout=max(0.0, ends - time.monotonic())).close()
            except queue.Empty:
                log.warning("reader_left_behind")
        self._writer.close()  # the last one: it copies the log back

    async def unit(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn(conn, *args)` in the writer thread as one transaction, synced to disk when it returns."""
        result, rows = await self._worker.run(self._unit, fn, args)
        if rows - self._rows_at_checkpoint >= CHECKPOINT_ROWS:
            self._rows_at_checkpoint = rows
            self._checkpoint_due.set()
        return result

    def _unit(self, fn: Callable[..., T], args: tuple[Any, ...]) -> tuple[T, int]:
        result = self._writer.run(fn, args)
        return result, self._writer.raw().total_changes

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn(conn, *args)` in a reader thread on one snapshot.  Cancelled, its statement is stopped."""
        gone = False

        def in_thread() -> T:
            link = self._idle.get_nowait()
            try:
                return link.run(fn, args, lambda: gone)
            finally:
                self._idle.put(link)

        try:
            return await trio.to_thread.run_sync(in_thread, limiter=self._limiter, abandon_on_cancel=True)
        finally:
            gone = True

    async def glance(self, statement: Select[Any]) -> Any:
        """The first column of the first row, read here and now in the event loop's thread: a few microseconds.

        In WAL mode a reader waits for nobody.  Should anything be in its way after all, a reader thread is asked.
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
        except sqlite3.Error:
            self._stop_glancing()
            return await self.read(first_value, statement)
        return rows[0][0] if rows else None

    def _stop_glancing(self) -> None:
        if self._glancing is not None:
            self._glancing.close()
            self._glancing = None

    async def migrate(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` as a unit without the deadline and without foreign keys (which SQLite's way to alter a table
        needs); they are checked before the commit."""
        return await self._worker.run(self._migrate, fn)

    def _migrate(self, fn: Callable[[Connection], T]) -> T:
        link = _Link(self._engine(writer=True, wait_s=60, foreign_keys=False), 3600)

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
        # Two steps: the bulk beside the writer, then the few pages that came meanwhile in the writer's turn; only a
        # log that is copied to its end starts anew.
        link = _Link(self._engine(writer=True, wait_s=1), 1)
        try:
            while True:
                await self._checkpoint_due.wait()
                self._checkpoint_due = trio.Event()
                try:
                    await trio.to_thread.run_sync(link.checkpoint, "PASSIVE", limiter=trio.CapacityLimiter(1))
                    await self._worker.run(self._writer.checkpoint, "PASSIVE")
                except (DBAPIError, sqlite3.Error) as error:
                    log.warning("checkpoint_failed", error=str(error))
                    link.close()
        finally:
            link.close()

    async def backup(self, target: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Copy the database, as it is at one moment, to `target` (replaced at the end, mode 0600), while it is used.

        progress: called in a thread with (pages left, pages in all).  Cancelled, it leaves no file.  Raises OSError,
        `StoreUnavailable`.
        """
        gone = False

        def tick(_status: int, left: int, total: int) -> None:
            if gone:
                raise InterruptedError
            if progress is not None:
                progress(left, total)

        try:
            await trio.to_thread.run_sync(
                self._backup, target, tick, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True
            )
        finally:
            gone = True

    def _backup(self, target: Path, tick: Callable[[int, int, int], None]) -> None:
        link = _Link(self._reading, 3600)
        partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
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
            raise store_failure(error) or StoreUnavailable(f"backup failed: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
            link.close()
