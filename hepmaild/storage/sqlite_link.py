# SPDX-License-Identifier: Apache-2.0
"""One connection to SQLite: its settings, its transactions, and how it is kept from taking too long."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from hepmaild.errors import NothingCommitted
from hepmaild.storage.sqlite_file import trouble_of

T = TypeVar("T")

WRITER_CACHE_KIB = 16_384
READER_CACHE_KIB = 4_096
HERE_S = 0.2  # a unit that takes longer in the loop's thread is stopped there and begun anew in the writer's
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


# Of these SQLite says neither the file nor what is wrong with it: the system may show it.
_PLACE_FAILURES = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)


def store_failure(error: BaseException, *files: Path) -> NothingCommitted | None:
    """With SQLite's words if the store failed, which takes the transaction with it, also at its COMMIT; None if the
    statement or its values are to blame.

    files: that it may be about, the first one the likeliest; looked at for what SQLite does not say, blocking.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, sqlite3.Error):
        return None
    code = getattr(cause, "sqlite_errorcode", None)
    if code is None or code & 0xFF not in _STORE_FAILURES:
        return None
    said = f"SQLite: {cause} ({cause.sqlite_errorname})"
    seen = next(filter(None, map(trouble_of, files)), "") if code & 0xFF in _PLACE_FAILURES else ""
    if seen:
        return NothingCommitted(f"{seen}; {said}")
    return NothingCommitted(f"{files[0]}: {said}" if files else said)


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


class NotHere(Exception):
    """The unit has to run in the writer's thread."""


class Link:
    """One connection for good: opened when it is first used, and again after the store failed."""

    def __init__(self, engine: Engine, timeout_s: float, *, writes: bool) -> None:
        self._engine = engine
        self._begin = "BEGIN IMMEDIATE" if writes else "BEGIN"
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._driver: sqlite3.Connection | None = None
        self._guard = _Guard()
        self._patience_s = timeout_s
        self.opened = 0  # how often

    def run(self, fn: Callable[..., T], args: tuple[Any, ...], abandoned: Callable[[], bool] = bool) -> T:
        """`fn(conn, *args)` in one transaction.  Raises `StoreUnavailable` or what `fn` raised; both rolled back."""
        try:
            connection = self._open()
            self._set_patience(self._timeout_s)
            self._guard.start(self._timeout_s, abandoned)
            return self._transact(connection, fn, args)
        except (DBAPIError, sqlite3.Error) as error:
            failure = store_failure(error, Path(str(self._engine.url.database)))
            if failure is None:
                raise
            self.close()
            raise failure from error

    def run_quickly(self, fn: Callable[..., T], args: tuple[Any, ...], *, commit: bool) -> T:
        """As `run`, without waiting for anybody's lock, and stopped after HERE_S: then `NotHere`, rolled back.

        Without `commit` the transaction is left open, for `commit_quickly`.
        """
        if self._connection is None:
            raise NotHere
        try:
            self._set_patience(0)
            self._guard.start(HERE_S)
            return self._transact(self._connection, fn, args, commit=commit)
        except (DBAPIError, sqlite3.Error) as error:
            if store_failure(error) is None:
                raise
            # The thread will wait, open the connection anew, and say what is wrong.
            raise NotHere from error

    def commit_quickly(self) -> None:
        """End what `run_quickly` left open, in any thread.  Raises `NotHere`: rolled back, to be run anew."""
        try:
            self._guard.start(self._timeout_s)
            connection = self._open()
            try:
                self._commit(connection)
            except BaseException:
                self._roll_back(connection)
                raise
        except (DBAPIError, sqlite3.Error) as error:
            raise NotHere from error

    def _transact(
        self, connection: Connection, fn: Callable[..., T], args: tuple[Any, ...], *, commit: bool = True
    ) -> T:
        """BEGIN and COMMIT by the driver; SQLAlchemy takes part when `fn` has it execute something."""
        self.raw().execute(self._begin)
        try:
            result = fn(connection, *args)
            if commit:
                self._commit(connection)
        except BaseException:
            self._roll_back(connection)
            raise
        return result

    def _commit(self, connection: Connection) -> None:
        if connection.in_transaction():
            connection.commit()
        else:
            self.raw().execute("COMMIT")

    def _roll_back(self, connection: Connection) -> None:
        """Whatever was raised takes the transaction with it."""
        with contextlib.suppress(DBAPIError, sqlite3.Error):
            connection.rollback()
        raw = self.raw()
        if raw.in_transaction:
            raw.execute("ROLLBACK")

    def _set_patience(self, seconds: float) -> None:
        """How long a lock of somebody else is waited for."""
        if seconds != self._patience_s:
            self.raw().execute(f"PRAGMA busy_timeout={int(seconds * 1000)}").fetchall()
            self._patience_s = seconds

    def checkpoint(self, mode: str) -> tuple[int, int, int]:
        """Copy the write-ahead log back; (busy, pages in the log, pages copied)."""
        self._guard.start(None)
        row = self.raw().execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        return row[0], row[1], row[2]

    def raw(self) -> sqlite3.Connection:
        if self._driver is None:
            driver = self._open().connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            self._driver = driver
        return self._driver

    def close(self) -> None:
        """Give the connection back to the system, whatever state it is in."""
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(DBAPIError, sqlite3.Error):
                connection.invalidate()
            with contextlib.suppress(DBAPIError, sqlite3.Error):
                connection.close()

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            self.opened += 1
            self._patience_s = self._timeout_s
            self.raw().set_progress_handler(self._guard, PROGRESS_STEPS)
        return self._connection


def make_engine(
    path: Path, *, writer: bool, busy_timeout_s: float, own_checkpoints: bool, foreign_keys: bool
) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        hide_parameters=True,
        # Transactions are begun by `Link`, never by the driver.
        connect_args={
            "isolation_level": None,
            "check_same_thread": False,
            "cached_statements": 512,
            "timeout": busy_timeout_s,
        },
    )
    pragmas = [
        # The daemon syncs the log itself, beside the loop (`SqliteBackend`).
        f"PRAGMA synchronous={'NORMAL' if own_checkpoints else 'FULL'}",
        f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}",
        "PRAGMA temp_store=MEMORY",
        # A mapped file that loses its disk ends the process by SIGBUS; an error can be answered with 451.
        "PRAGMA mmap_size=0",
        f"PRAGMA cache_size=-{WRITER_CACHE_KIB if writer else READER_CACHE_KIB}",
        # Room for LONG_LOG_PAGES and what comes until they are noticed: a log that has to grow costs each sync more.
        "PRAGMA journal_size_limit=134217728",
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

    return engine
