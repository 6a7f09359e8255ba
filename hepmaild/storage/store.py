# SPDX-License-Identifier: Apache-2.0
"""The store: the async face of the database, equal on both engines.

    read(fn)     a read-only snapshot, beside everything else
    submit(m)    group commit: decided together with what arrived at the same time
    write(fn)    a unit of its own
    announce(t)  tell the other processes

`fn` is a plain function `fn(conn, *args)`.  It never sees a half-open transaction, does no I/O but its statements, and
may run more than once (a unit that lost against another one is tried again), so it returns what it found out and
changes nothing outside the database.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import structlog
import trio
from sqlalchemy import URL, Connection, Select, make_url
from sqlalchemy.exc import ArgumentError

from hepmaild.config import DatabaseSettings
from hepmaild.errors import StoreUnavailable, leaves
from hepmaild.private_files import give_to_owner_of, named
from hepmaild.seldom import Seldom
from hepmaild.storage import announce, migrate
from hepmaild.storage.sqlite import SqliteBackend, first_value
from hepmaild.storage.sqlite_link import NotHere
from hepmaild.storage.trouble import Trouble
from hepmaild.storage.writer import GroupWriter, Haste, JudgeManner, RunUnit
from hepmaild.threads import share_interpreter

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

LOCK_NAME = "hepmaild.lock"
CHECKED_S = 1.0  # a commit that young proves that the store is writable


class StoreLocked(StoreUnavailable):
    """Another daemon serves this SQLite database."""


class _Backend(Protocol):
    is_sqlite: bool
    joins_writes: bool  # only one writer at a time: units of their own wait in the group writer's queue

    async def read(self, fn: Callable[..., T], *args: Any) -> T: ...
    async def unit(self, fn: Callable[..., T], *args: Any) -> T: ...
    async def soon_unit(self, fn: Callable[..., T], *args: Any) -> T: ...
    async def migrate(self, fn: Callable[[Connection], T]) -> T: ...
    def touch(self, conn: Connection) -> None: ...


class Store:
    """An open store; made by `open_store`."""

    def __init__(
        self,
        backend: _Backend,
        writer: GroupWriter,
        hub: announce.Hub,
        tell: Callable[[str], Any],
        *,
        timeout_s: float,
    ) -> None:
        self._backend = backend
        self._writer = writer
        self._hub = hub
        self._tell = tell
        self._timeout_s = timeout_s
        self._untold = Seldom()

    @property
    def is_sqlite(self) -> bool:
        """One process serves the database; else several may."""
        return self._backend.is_sqlite

    @property
    def waiting(self) -> int:
        """Members and calls that wait for their unit to begin."""
        return self._writer.waiting

    @property
    def units(self) -> int:
        """Units of group commit committed so far."""
        return self._writer.units

    @property
    def members(self) -> int:
        """Members committed in them so far."""
        return self._writer.members

    def watch_units(self, on_unit: Callable[[int, float], None]) -> None:
        """Have each unit of group commit told: its members, and the seconds from its begin until it was durable."""
        self._writer.on_unit = on_unit

    def watch_commits(self, on_commit: Callable[[], None]) -> None:
        """Have `on_commit` called behind every commit of this process.  It must be quick and must not raise."""
        self._writer.on_commit = on_commit

    async def read(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn(conn, *args)` on one read-only snapshot.

        Cancel-safe.  Raises `StoreUnavailable` when the store fails or takes longer than a unit may.
        """
        try:
            with trio.move_on_after(self._timeout_s):
                return await self._backend.read(_bound(fn, kwargs), *args)
        except StoreUnavailable as failure:
            self._writer.last_commit_at = -math.inf  # it proves nothing any more
            self._writer.trouble.tell(failure)
            raise
        raise self._too_slow()

    def changes(self) -> int | None:
        """A number that has moved when anything but a unit of group commit changed the database.

        Units of this process count, and what others announced up to now.  None: there is no such number, but for the
        daemon on SQLite.  Who changes the database without a word is not counted: do not rely on it for long.
        """
        look = self._hub.look
        return None if look is None else look() + self._writer.calls

    async def glance(self, statement: Select[Any]) -> Any:
        """The first column of the first row of a small statement without parameters; None when there is no row.

        As `read`, but on SQLite without a thread: for what every command asks.
        """
        if isinstance(self._backend, SqliteBackend):
            with contextlib.suppress(NotHere):
                return self._backend.glance(statement)
        return await self.read(first_value, statement)

    async def write(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn(conn, *args)` as a unit of its own, durable when this returns; what `fn` raises rolls it back.

        Cancelled before it has begun, nothing happens; from then on it is shielded, for `unit_timeout_s` at most.
        Raises `StoreUnavailable`: the store failed, or the time is over and the unit may or may not be committed.
        """
        return await self._write(self._backend.unit, _bound(fn, kwargs), args)

    async def write_soon(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `write`, for what a power cut may take when it returns, though not the end of this process.

        Whatever is durable later is so with this before it.
        """
        return await self._write(self._backend.soon_unit, _bound(fn, kwargs), args)

    async def write_idly(self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `write_soon`, once the store has had nothing to do for a moment, or after `writer.PATIENCE_S`."""
        return await self._write(self._backend.soon_unit, _bound(fn, kwargs), args, Haste.IDLE)

    async def _write(
        self, unit: Callable[..., Awaitable[T]], fn: Callable[..., T], args: tuple[Any, ...], haste: Haste = Haste.NOW
    ) -> T:
        if self._backend.joins_writes:
            result: T = await self._writer.call(unit, fn, *args, haste=haste)
            return result
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self._timeout_s):
                written = await unit(fn, *args)
                if self._writer.on_commit is not None:
                    self._writer.on_commit()
                return written
        except StoreUnavailable as failure:
            self._writer.trouble.tell(failure)
            raise
        raise self._too_slow()

    def _too_slow(self) -> StoreUnavailable:
        return self._writer.trouble.tell(StoreUnavailable(f"the store did not answer within {self._timeout_s:g} s"))

    async def submit(self, member: Any, *, haste: Haste = Haste.NOW) -> Any:
        """Have `member` decided in the next unit of group commit; its result, which is durable when this returns.

        haste: whether it may wait some milliseconds, for somebody else's unit or for an idle moment.
        Cancellation and errors as with `write`; also raises what `run_unit` raised for this member alone.
        """
        return await self._writer.submit(member, haste=haste)

    async def check(self) -> None:
        """Whether something can be committed now; raises `StoreUnavailable`.  Free while commits succeed anyway."""
        if trio.current_time() - self._writer.last_commit_at < CHECKED_S:
            return
        await self.write(self._backend.touch)

    async def announce(self, topic: str) -> None:
        """Tell every other process on this database that `topic` has changed (a word of `[A-Za-z0-9_.:/-]`).

        On PostgreSQL by NOTIFY; on SQLite the daemon of this state folder is told, if one runs, and the daemon itself
        has nobody to tell.  A hint, behind a change that is made: should it be lost, the log says so, and the change
        is seen all the same, when others look by themselves.
        """
        told = self._tell(announce.check_topic(topic))
        if told is None:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._timeout_s):
            try:
                await told
            except StoreUnavailable as error:
                if self._untold.is_due():
                    log.warning("change_not_announced", topic=topic, reason=str(error))

    def announcements(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """What other processes announce from now on, as an async iterator of topics; the daemon's side.

        `announce.RESYNC` ("*") says that some may have been missed.  Equal topics that wait are merged.
        """
        return self._hub.listen()

    async def schema_is_due(self) -> bool:
        """Whether the database needs `upgrade`.  Raises `migrate.SchemaUnfit`, `StoreUnavailable`."""
        return await self.read(migrate.is_due)

    async def upgrade(self) -> None:
        """Bring the schema up to date; safe when several processes do so at once.  Takes as long as it takes.

        Raises `migrate.SchemaUnfit`, `StoreUnavailable`.
        """
        await self._backend.migrate(migrate.upgrade)

    async def backup(self, target: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """An online copy of a SQLite database to `target`.  progress: called in a thread with (pages left, all).

        Raises OSError, `StoreUnavailable`, and ValueError on PostgreSQL, which has pg_dump.
        """
        if not isinstance(self._backend, SqliteBackend):
            raise ValueError("db backup is for SQLite; use pg_dump with PostgreSQL")
        await self._backend.backup(target, progress)


def _bound(fn: Callable[..., T], kwargs: dict[str, Any]) -> Callable[..., T]:
    return (lambda conn, *args: fn(conn, *args, **kwargs)) if kwargs else fn


@asynccontextmanager
async def open_store(
    settings: DatabaseSettings,
    state_dir: Path,
    run_unit: RunUnit,
    *,
    exclusive: bool,
    judge: JudgeManner | None = None,
) -> AsyncIterator[Store]:
    """Open the database that the settings name, for as long as the block lasts.  It must enclose all its users.

    run_unit: decides the members of a unit, one result each.  judge: what is to be known of a unit beforehand; without
    it each is light and has to outlive a power cut.  exclusive: this is the daemon: on SQLite it takes the
    locks of state folder and database, and on both engines it hears announcements.  The schema is left as it is
    (`upgrade`).

    Raises `StoreLocked`, `StoreUnavailable` (also when PostgreSQL cannot be reached now), ValueError for a bad URL.
    At the end a unit that runs is finished; what waits gets `StoreUnavailable`.
    """
    path = sqlite_file(settings.url, state_dir)
    if path is not None:
        opener = _open_sqlite(settings, state_dir, path, run_unit, exclusive=exclusive, judge=judge)
    else:
        opener = _open_postgres(settings, parse_url(settings.url), run_unit, exclusive=exclusive)
    try:
        async with opener as store:
            yield store
    except BaseExceptionGroup as group:
        # The nurseries in here are our own affair: what the block raised comes out as it was.
        errors = [error for error in leaves(group) if not isinstance(error, trio.Cancelled)]
        if len(errors) != 1:
            raise
        raise errors[0] from errors[0].__cause__


@asynccontextmanager
async def _open_sqlite(
    settings: DatabaseSettings,
    state_dir: Path,
    path: Path,
    run_unit: RunUnit,
    *,
    exclusive: bool,
    judge: JudgeManner | None,
) -> AsyncIterator[Store]:
    hub = announce.Hub()
    with _locks(state_dir, path, wanted=exclusive):
        if exclusive:
            share_interpreter()
        backend = SqliteBackend(path, timeout_s=settings.unit_timeout_s, own_checkpoints=exclusive, judge=judge)
        writer = GroupWriter(
            backend.group_unit, run_unit, timeout_s=settings.unit_timeout_s, trouble=Trouble(is_told=exclusive)
        )

        def tell(topic: str) -> None:
            if not exclusive:
                announce.send_datagram(state_dir, topic)

        async with backend.serve(), trio.open_nursery() as nursery:
            if exclusive:
                await nursery.start(announce.serve_datagrams, state_dir, hub)
            nursery.start_soon(writer.run)
            yield Store(backend, writer, hub, tell, timeout_s=settings.unit_timeout_s)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_postgres(
    settings: DatabaseSettings, url: URL, run_unit: RunUnit, *, exclusive: bool
) -> AsyncIterator[Store]:
    from hepmaild.storage.bridge import open_bridge
    from hepmaild.storage.postgres import PostgresBackend

    hub = announce.Hub()
    async with open_bridge() as bridge:
        backend = PostgresBackend(
            url, bridge, timeout_s=settings.unit_timeout_s, connections=settings.connections, hub=hub
        )
        writer = GroupWriter(
            backend.group_unit, run_unit, timeout_s=settings.unit_timeout_s, trouble=Trouble(is_told=exclusive)
        )
        async with backend.serve(), trio.open_nursery() as nursery:
            await backend.read(backend.check_encoding)
            if exclusive:
                nursery.start_soon(backend.run_listener)
            nursery.start_soon(writer.run)
            yield Store(backend, writer, hub, backend.announce, timeout_s=settings.unit_timeout_s)
            nursery.cancel_scope.cancel()


def parse_url(text: str) -> URL:
    """The database URL, checked; ValueError with a sentence that does not repeat it, since it may hold a password."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError("database.url is no URL: use sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME") from None
    name = url.get_backend_name()
    if name not in {"sqlite", "postgresql"}:
        raise ValueError(f"database.url: {name!r} is not supported; use sqlite:///FILE or postgresql://…")
    if name == "sqlite" and (not url.database or url.database == ":memory:"):
        raise ValueError("database.url names no file; use sqlite:///FILE (relative to state_dir)")
    return url


def sqlite_file(url: str, state_dir: Path) -> Path | None:
    """The database's file; None: it is PostgreSQL.  Raises ValueError as `parse_url`."""
    parsed = parse_url(url)
    return state_dir / str(parsed.database) if parsed.get_backend_name() == "sqlite" else None


@contextmanager
def _locks(state_dir: Path, database: Path, *, wanted: bool) -> Iterator[None]:
    """Hold the locks of the state folder, which is made if it is not there, and of the database.

    The database may lie elsewhere: a second daemon with a state folder of its own would take the first one's leases for
    those of the dead, and its mail would leave twice.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not wanted:
        yield
        return
    real = database.resolve()  # by whatever link it was named
    real.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _lock(state_dir / LOCK_NAME, state_dir), _lock(real.with_name(f"{real.name}.lock"), database):
        yield


@contextmanager
def _lock(path: Path, what: Path) -> Iterator[None]:
    """Hold a lock.  The file says who has it; it stays, only the lock counts.  what: is served under it."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            raise StoreLocked(f"another hepmaild (process {holder or '?'}) serves {what}") from None
        give_to_owner_of(path.parent, path)
        with named(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)
