# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL: asyncpg under SQLAlchemy's AsyncEngine; the same plain functions run by `conn.run_sync`.

Every wait ends by itself, the inner before the outer: lock, statement, the connection cut by a timer, the caller's
deadline.  While the server is away calls fail at once, and a connection is tried again after a short, growing pause.
Where it only gives no more connections than there are, these serve all.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import structlog
import trio
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

from hepmaild.errors import NothingCommitted, StoreUnavailable
from hepmaild.storage.announce import RESYNC, Hub
from hepmaild.storage.bridge import Bridge

T = TypeVar("T")

log = structlog.get_logger()

CHANNEL = "hepmaild"
TRIES = 5  # of a unit that lost against another one
MIN_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0
GROW_AGAIN_S = 10.0  # after the server had no more connections
LISTEN_PING_S = 30.0
MIGRATION_LOCK_S = 2.0

_NO_MORE_CONNECTIONS = "53300"
_READ_ONLY = "25006"
_LOCKED = "55P03"  # a lock was waited for too long
_LIMIT = "54000"  # of many things, but of a NOTIFY: no room for one more
_LOST_AGAINST_ANOTHER = frozenset({"40001", "40P01", "0A000"})  # serialization, deadlock, plan of an older schema
_SICK_CLASSES = frozenset({"08", "28", "3D", "53", "57", "58", "XX"})
# 25P04: PostgreSQL 17's `transaction_timeout`, which is the administrator's to set.
_SICK_STATES = frozenset({_LOCKED, _READ_ONLY, "25P02", "25P03", "25P04", *_LOST_AGAINST_ANOTHER})

# A transaction id is had in a read-only session, too.  An error of the server's, so that such a session is given up.
_TOUCH = f"""DO $$BEGIN
IF current_setting('transaction_read_only')::boolean THEN
    RAISE 'the database is read-only' USING ERRCODE = '{_READ_ONLY}';
END IF;
PERFORM pg_current_xact_id();
END$$"""


def sqlstate(error: BaseException) -> str | None:
    """The five characters with which PostgreSQL names an error."""
    state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return state if isinstance(state, str) else None


def store_failure(error: BaseException, *, is_connected: bool = True) -> NothingCommitted | None:
    """`NothingCommitted` if the server, the way to it or its disk failed; None if the statement is to blame.

    is_connected: without a connection there was no statement.  Whether COMMIT had an answer is the caller's to see.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    state = sqlstate(error)
    if state is not None:
        sick = state[:2] in _SICK_CLASSES or state in _SICK_STATES
    elif isinstance(error, DBAPIError):
        sick = error.connection_invalidated or (isinstance(error, InterfaceError) and "clos" in str(cause))
    else:
        sick = isinstance(error, OSError | TimeoutError | PoolTimeoutError)
    if not sick and is_connected:
        return None
    words = str(cause).splitlines() or [type(cause).__name__]
    return NothingCommitted(f"PostgreSQL: {words[0]}" + (f" ({state})" if state else ""))


@dataclass(slots=True)
class _Progress:
    """How far a unit came, which decides what its failure means."""

    connected: bool = False
    committing: bool = False

    def is_in_the_dark(self, error: BaseException) -> bool:
        """Whether the connection went while COMMIT was to be answered: the server may have done it."""
        return self.committing and (sqlstate(error) is None or bool(getattr(error, "connection_invalidated", False)))


class _Lane:
    """The connections of one pool, and how it stands with them.

    holding: units that have one just now.  most: more units than that do not begin, since the server gave no more
    connections than these; tried again at `grow_at`.  waiting: those that wait for one of them.

    down_until: calls fail at once, `because`; by itself, since another pool's connections may be good.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.busy = 0
        self.holding = 0
        self.most = math.inf
        self.grow_at = 0.0
        self.waiting = trio.lowlevel.ParkingLot()
        self.down_until = 0.0
        self.because = ""
        self._pause_s = 0.0
        self._renew_at = 0.0
        event.listen(engine.sync_engine, "handle_error", self._distrust)

    def _distrust(self, context: ExceptionContext) -> None:
        """A session that may only read, since the database was so when it began, stays so: others may be good.

        Now and then: as long as the whole server is so, new ones are no better.
        """
        now = trio.current_time()
        if sqlstate(context.original_exception) == _READ_ONLY and now >= self._renew_at:
            self._renew_at = now + MAX_PAUSE_S
            context.is_disconnect = True  # all connections that there are now are replaced when they are next wanted

    async def begin(self, until: float) -> None:
        """A unit wants a connection.  Raises `StoreUnavailable` when there is none in time; then it has not begun."""
        while self.busy >= self.most:
            now = trio.current_time()
            if now >= self.grow_at:
                self.most = math.inf
                break
            if now >= until:
                raise NothingCommitted("PostgreSQL: every connection is in use, and it gives no more (53300)")
            with trio.move_on_at(min(until, self.grow_at)):
                await self.waiting.park()
        self.busy += 1

    def end(self) -> None:
        """A unit is over; the connection that it had is another's."""
        self.busy -= 1
        self.waiting.unpark()

    def is_full(self, error: Exception) -> bool:
        """Whether the server refused only one more connection than there are; then nobody asks for more for a while."""
        if sqlstate(error) != _NO_MORE_CONNECTIONS or not self.holding:
            return False
        self.most = min(self.most, self.holding)
        self.grow_at = trio.current_time() + GROW_AGAIN_S
        return True

    def went_down(self, failure: StoreUnavailable) -> None:
        """No connection can be made, and none is known to be good."""
        self._pause_s = min(MAX_PAUSE_S, max(MIN_PAUSE_S, self._pause_s * 2))
        self.because = str(failure)
        self.down_until = trio.current_time() + self._pause_s * random.uniform(0.5, 1)

    def works(self) -> None:
        """A unit was done."""
        self._pause_s = 0.0


class PostgresBackend:
    """What the store needs of an engine, on PostgreSQL.

    url: `postgresql://…`, never logged.  connections: of the pool; the group writer and the listener have one each
    beside it.
    """

    is_sqlite = False
    joins_writes = False

    def __init__(self, url: URL, bridge: Bridge, *, timeout_s: float, connections: int, hub: Hub) -> None:
        self._bridge = bridge
        self._timeout_s = timeout_s
        self._hub = hub
        self._name = secrets.token_hex(6)  # of this process, to know its own announcements
        self._url, self._connect_args = connect_arguments(url, timeout_s)
        pool = {"pool_timeout": timeout_s * 0.4, "max_overflow": 0}
        self._writer = _Lane(self._engine(poolclass=AsyncAdaptedQueuePool, pool_size=1, **pool))
        self._pool = _Lane(self._engine(poolclass=AsyncAdaptedQueuePool, pool_size=connections, **pool))
        # One snapshot for all statements of a read, as on SQLite.
        as_reader = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reader = self._pool.engine.execution_options(**as_reader)

    def _engine(self, **options: Any) -> AsyncEngine:
        engine = create_async_engine(self._url, connect_args=self._connect_args, hide_parameters=True, **options)
        event.listen(engine.sync_engine, "connect", _keep_alive)
        event.listen(engine.sync_engine, "checkout", _refuse_closed)
        return engine

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Hold the connections; closed at the end, by force after a few seconds."""
        try:
            yield
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await self._bridge.run(self._writer.engine.dispose)
                await self._bridge.run(self._pool.engine.dispose)

    async def unit(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn(conn, *args)` as one transaction in the pool, committed when it returns.

        Raises `StoreUnavailable` when the server failed, else what `fn` raised.  Ends within the unit's time.
        """
        return await self._run(self._pool, self._pool.engine, fn, args)

    soon_unit = unit

    async def group_unit(self, fn: Callable[..., T], *args: Any) -> T:
        """As `unit`, on the group writer's own connection."""
        return await self._run(self._writer, self._writer.engine, fn, args)

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn(conn, *args)` in a read-only transaction on one snapshot.  May be cancelled at any time."""
        return await self._run(self._pool, self._reader, fn, args)

    async def _run(self, lane: _Lane, engine: AsyncEngine, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        deadline = trio.current_time() + self._timeout_s
        wait_until = deadline - self._timeout_s * 0.6  # as for the pool
        tries = 0
        while True:
            if trio.current_time() < lane.down_until:
                raise NothingCommitted(lane.because)
            await lane.begin(wait_until)
            tries += 1
            progress = _Progress()
            left_s = deadline - trio.current_time()
            try:
                result = await self._bridge.run(self._in_loop, lane, engine, fn, args, progress, left_s * 0.9)
            except (DBAPIError, OSError, PoolTimeoutError) as error:
                failure = store_failure(error, is_connected=progress.connected)
                if failure is None:
                    raise
                is_full = not progress.connected and lane.is_full(error)
                if not progress.connected and not is_full and not isinstance(error, PoolTimeoutError):
                    lane.went_down(failure)
                waits = is_full and trio.current_time() < wait_until  # for one of those that there are
                if not waits and not self._worth_retrying(error, progress, tries, deadline):
                    if progress.is_in_the_dark(error) and engine is not self._reader:
                        text = f"{failure}; it may have been committed all the same: look before you do it again"
                        raise StoreUnavailable(text) from error
                    raise failure from error
            else:
                lane.works()
                return result
            finally:
                lane.end()
            await trio.sleep(random.uniform(0, 0.01 * 2**tries))

    @staticmethod
    def _worth_retrying(error: Exception, progress: _Progress, tries: int, deadline: float) -> bool:
        if tries >= TRIES or trio.current_time() > deadline - 0.5:
            return False
        if sqlstate(error) in _LOST_AGAINST_ANOTHER:
            return True
        # A connection that died while it was idle: nothing was committed, another one may be good.
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        return lost and tries == 1 and not progress.committing

    @staticmethod
    async def _in_loop(
        lane: _Lane,
        engine: AsyncEngine,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        progress: _Progress,
        timeout_s: float,
    ) -> T:
        """The asyncio side.  A server that is silent (frozen, or behind a dead line) is cut off by the timer."""
        cut_at = asyncio.get_running_loop().time() + timeout_s
        async with engine.connect() as conn:
            progress.connected = True
            raw = (await conn.get_raw_connection()).driver_connection
            timer = asyncio.get_running_loop().call_at(cut_at, raw.terminate)  # type: ignore[union-attr]
            lane.holding += 1
            try:
                async with conn.begin():
                    result = await conn.run_sync(fn, *args)
                    progress.committing = True
                return result
            finally:
                timer.cancel()
                lane.holding -= 1

    async def migrate(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` as a unit without the time limits of statements; other processes wait at an advisory lock.

        Who waits for a table's lock has everybody wait who comes later, the daemons that serve among them: it is given
        up and tried again, until whoever uses the table (pg_dump, for hours) is done.
        """
        engine = self._engine(poolclass=NullPool)

        def unhurried(conn: Connection) -> T:
            conn.execute(text("SET LOCAL statement_timeout = 0"))
            conn.execute(text(f"SET LOCAL lock_timeout = {int(min(self._timeout_s / 4, MIGRATION_LOCK_S) * 1000)}"))
            conn.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            return fn(conn)

        has_waited = False
        try:
            while True:
                progress = _Progress()
                try:
                    return await self._bridge.run(
                        self._in_loop, _Lane(engine), engine, unhurried, (), progress, 24 * 3600
                    )
                except (DBAPIError, OSError) as error:
                    failure = store_failure(error, is_connected=progress.connected)
                    if failure is None:
                        raise
                    if sqlstate(error) not in {_LOCKED, *_LOST_AGAINST_ANOTHER}:
                        raise failure from error
                if not has_waited:
                    log.warning("migration_waits", reason=str(failure))
                has_waited = True
                await trio.sleep(random.uniform(1, 2) * MIGRATION_LOCK_S)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await self._bridge.run(engine.dispose)

    @staticmethod
    def check_encoding(conn: Connection) -> None:
        """Raises `StoreUnavailable` when the database cannot hold every text: subjects and next hops' replies have any.

        SQL_ASCII, of a cluster made without a locale, keeps octets as they come.
        """
        encoding = conn.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding not in {"UTF8", "SQL_ASCII"}:
            raise StoreUnavailable(
                f"PostgreSQL: the database has the encoding {encoding}, in which not every text can be written: "
                "make another one (CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0) and move what is in this one"
            )

    @staticmethod
    def touch(conn: Connection) -> None:
        """Take a transaction id, where that may be followed by writing."""
        conn.exec_driver_sql(_TOUCH)

    async def announce(self, topic: str) -> None:
        """NOTIFY every process on this database.  Raises `StoreUnavailable`.

        What is not fetched is kept for all databases together, in 8 GB: a session of anybody who listens, and leaves a
        transaction open, fills it.
        """
        try:
            await self.unit(_notify, f"{self._name} {topic}")
        except DBAPIError as error:
            if sqlstate(error) != _LIMIT:
                raise
            text = "PostgreSQL keeps no more notifications: a session that listens does not end its transaction"
            raise NothingCommitted(f"{text} ({_LIMIT})") from error

    async def run_listener(self) -> None:
        """LISTEN until cancelled, over lost connections; after each new one `RESYNC` says that some may be missed."""
        # What the listener asks goes past SQLAlchemy, so the driver's errors come as they are.
        while True:
            try:
                await self._bridge.run(self._listen)
            except (DBAPIError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.info("listen_interrupted", reason=type(error).__name__)
            await trio.sleep(random.uniform(0.5, 1) * MAX_PAUSE_S)

    async def _listen(self) -> None:
        """The asyncio side of the listener; returns or raises when the connection is lost."""
        engine = self._engine(poolclass=NullPool)
        async with engine.connect() as conn:
            raw: Any = (await conn.get_raw_connection()).driver_connection
            lost = asyncio.Event()
            raw.add_termination_listener(lambda _raw: lost.set())
            await raw.add_listener(CHANNEL, self._heard)
            self._hub.tell(RESYNC)
            try:
                while not lost.is_set():
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(lost.wait(), LISTEN_PING_S)
                    if not lost.is_set():
                        await raw.execute("SELECT 1", timeout=self._timeout_s)
            finally:
                raw.terminate()

    def _heard(self, _raw: Any, _pid: int, _channel: str, payload: str) -> None:
        name, _, topic = payload.partition(" ")
        if name != self._name:
            self._hub.hear(topic)


def connect_arguments(url: URL, timeout_s: float) -> tuple[URL, dict[str, Any]]:
    """The URL for SQLAlchemy and what asyncpg is told: `sslmode` as libpq spells it, all time limits, UTC."""
    query = dict(url.query)
    arguments: dict[str, Any] = {"timeout": max(1.0, min(5.0, timeout_s * 0.4))}
    if "sslmode" in query:
        arguments["ssl"] = query.pop("sslmode")
    query.pop("application_name", None)
    arguments["server_settings"] = {
        "application_name": "hepmaild",
        "timezone": "UTC",
        "synchronous_commit": "on",
        "statement_timeout": str(int(timeout_s * 800)),
        "lock_timeout": str(int(timeout_s * 700)),
        "idle_in_transaction_session_timeout": str(int(timeout_s * 1000)),
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        "jit": "off",  # short statements only: compiling them costs more than running them
    }
    return url.set(drivername="postgresql+asyncpg", query=query), arguments


def _keep_alive(connection: Any, _record: Any) -> None:
    transport = getattr(connection.driver_connection, "_transport", None)
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _refuse_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """A connection that the server closed meanwhile is replaced at once, without a question to the server."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError("closed by the server")


def _notify(conn: Connection, payload: str) -> None:
    conn.execute(text("SELECT pg_notify(:channel, :payload)"), {"channel": CHANNEL, "payload": payload})
