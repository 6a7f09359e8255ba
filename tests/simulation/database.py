# SPDX-License-Identifier: Apache-2.0
"""The store of a run: the real `Store`, `GroupWriter` and statements on one SQLite database in memory, without threads.

A backend is one process's way to the database.  It takes simulated time, fails when the plan says so, and is nothing
more once its process is dead.  What a caller gave up may be committed all the same: alone (SQLite) in the order of the
calls, as the writer's thread does it; else (PostgreSQL) later, as a server does that was slow to commit.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

import trio
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.pool import StaticPool

from hepmaild.config import DAY_US
from hepmaild.errors import StoreUnavailable
from hepmaild.storage import credits as money
from hepmaild.storage import keys
from hepmaild.storage.announce import Hub
from hepmaild.storage.claim import Look
from hepmaild.storage.schema import metadata
from hepmaild.storage.store import Store
from hepmaild.storage.unit import UnitRunner
from hepmaild.storage.writer import GroupWriter
from tests.simulation.plan import StorePlan, dice
from tests.simulation.trace import EPOCH_US, Trace, Violation, now_us
from tests.storage.books import add_account

T = TypeVar("T")

_PLACE = re.compile(r" at 0x[0-9a-f]+")
UNIT_TIMEOUT_S = 10.0
LIMBO_S = 25.0  # a commit may come that long after its caller gave up (PostgreSQL)
MOST_UNITS = 30_000  # of one run: more is a busy loop
GRANTED = (1000, 1000)
SCARCE = 7


class ProcessDied(BaseException):
    """The process ended here, between two machine instructions: nothing handles this."""


class Database:
    """One database in memory, made anew for each run from a template."""

    def __init__(self) -> None:
        engine = create_engine(
            "sqlite://",
            poolclass=StaticPool,
            connect_args={"isolation_level": None, "cached_statements": 512, "check_same_thread": False},
        )
        event.listen(engine, "begin", lambda conn: conn.exec_driver_sql("BEGIN"))
        self._conn = engine.connect()
        driver = self._conn.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        self.raw = driver
        self.raw.execute("PRAGMA foreign_keys=ON")
        with self._conn.begin():
            metadata.create_all(self._conn)
            for n, granted in enumerate(GRANTED):
                _make_account(self._conn, n, granted)
        self._template = self.raw.serialize()

    def reset(self) -> None:
        """As it was when it was made."""
        self.raw.deserialize(self._template)

    def close(self) -> None:
        """For good.  From Python 3.13 on SQLite's connections warn who forgets them."""
        self._conn.close()
        self._conn.engine.dispose()

    def limit_credits(self, n: int, left: int) -> None:
        """Take back what account n has beyond `left`."""
        with self._conn.begin():
            money.grant(
                self._conn,
                f"account-{n}",
                left - GRANTED[n],
                granted_by="the simulator",
                note=None,
                now_us=EPOCH_US - 1,
            )

    def unit(self, fn: Callable[..., T], args: tuple[Any, ...], *, twice: bool = False) -> T:
        """One transaction.  twice: run it, roll it back, and run it again, as after a serialization failure."""
        if twice:
            with self._conn.begin() as first:
                fn(self._conn, *args)
                first.rollback()
        with self._conn.begin():
            return fn(self._conn, *args)

    def read(self, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        """One snapshot; a read that writes is a fault."""
        before = self.raw.total_changes
        with self._conn.begin():
            result = fn(self._conn, *args)
        if self.raw.total_changes != before:
            raise Violation(f"{fn} wrote inside a read")
        return result


def _make_account(conn: Connection, n: int, granted: int) -> None:
    add_account(conn, n, granted, EPOCH_US - DAY_US)
    keys.mint(
        conn,
        account_id=f"account-{n}",
        key_id=f"key-{n}",
        name="app",
        secret=f"hyd-mail-{n:040d}",
        limit=15,
        permissions=None,
        senders=None,
        addresses=None,
        expires_at_us=None,
        now_us=EPOCH_US - DAY_US,
    )


class Weather:
    """What the store does to calls, by the plan; one for all processes of a run."""

    def __init__(self, seed: int, plan: StorePlan, until_s: float) -> None:
        self.plan = plan
        self.mishaps = 0
        self._dice = dice(seed, "store")
        self._until_s = until_s

    def latency_s(self) -> float:
        """How long a call takes, apart from what is wrong with it."""
        plan = self.plan
        return self._dice.random() * plan.latency_s if plan.latency_s else 0.0

    def outage(self, slot: int) -> tuple[str, float]:
        """What is wrong with the store now ("" if nothing), as this process sees it, and until when."""
        now = trio.current_time()
        for outage in self.plan.outages:
            if outage.start_s <= now < outage.end_s and outage.slot in {None, slot}:
                return outage.kind, outage.end_s
        return "", 0.0

    def mishap(self) -> str:
        """What befalls one unit: "", fail, lose, late, twice."""
        plan = self.plan
        if trio.current_time() > self._until_s:
            return "twice" if plan.twice and self._dice.random() < plan.twice else ""
        x = self._dice.random()
        for name, share in (("fail", plan.fail), ("lose", plan.lose), ("late", plan.late), ("twice", plan.twice)):
            if x < share:
                self.mishaps += 1
                return name
            x -= share
        return ""

    def random(self) -> float:
        """A number in [0, 1)."""
        return self._dice.random()


class Backend:
    """See the module.  on_commit: told before and after each commit of a living process; may end it.

    later: runs an async function that outlives the process.
    """

    is_sqlite: bool
    joins_writes: bool

    def __init__(
        self,
        database: Database,
        weather: Weather,
        trace: Trace,
        name: str,
        *,
        slot: int,
        alone: bool,
        later: Callable[..., None],
        on_commit: Callable[[str], None],
    ) -> None:
        self.is_sqlite = self.joins_writes = alone
        self.alive = True
        self.units = 0
        self.reads = 0
        self._database = database
        self._weather = weather
        self._trace = trace
        self._name = name
        self._slot = slot
        self._alone = alone
        self._later = later
        self._on_commit = on_commit
        self._busy_until = -math.inf

    def check(self) -> None:
        """Nothing of a dead process goes on."""
        if not self.alive:
            raise ProcessDied

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        self.check()
        self.reads += 1
        kind, until = self._weather.outage(self._slot)
        if kind == "hang":
            await trio.sleep_until(until)
        elif kind == "slow":
            await trio.sleep(self._weather.random() * UNIT_TIMEOUT_S * 1.5)
        else:
            await trio.sleep(self._weather.latency_s())
        self.check()
        if kind == "refuse":
            raise StoreUnavailable("simulated: the store cannot be reached")
        return self._database.read(fn, args)

    async def unit(self, fn: Callable[..., T], *args: Any) -> T:
        self.check()
        self.units += 1
        if self.units > MOST_UNITS:
            raise Violation(f"more than {MOST_UNITS} units in one run: a busy loop")
        kind, until = self._weather.outage(self._slot)
        mishap = self._weather.mishap()
        label = _label(fn, args)
        if kind == "refuse" or mishap == "fail":
            await trio.sleep(self._weather.latency_s())
            self._say(f"{label} FAILS ({kind or mishap})")
            self.check()
            raise StoreUnavailable("simulated: the store failed")
        starts = max(trio.current_time(), self._busy_until) if self._alone else trio.current_time()
        ends = starts + self._weather.latency_s()
        if kind == "hang":
            ends = max(ends, until)
        elif kind == "slow":
            ends += self._weather.random() * UNIT_TIMEOUT_S * 1.5
        if mishap == "late":
            ends = trio.current_time() + UNIT_TIMEOUT_S * 2 + self._weather.random() * (LIMBO_S - 20 + 5)
        self._busy_until = ends
        try:
            await trio.sleep_until(ends)
        except trio.Cancelled:
            self._say(f"{label} GIVEN UP")
            self._later(self._commit_late, ends, label, fn, args)
            raise
        return await self._commit(label, mishap, fn, args)

    async def _commit(self, label: str, mishap: str, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        self.check()
        self._on_commit("before")
        result = self._database.unit(fn, args, twice=mishap == "twice")
        self._say(f"{label} = {_shown(result)}")
        self._on_commit("after")
        if mishap == "lose":
            self._say(f"{label} LOSES ITS ANSWER")
            raise StoreUnavailable("simulated: the answer to the commit was lost")
        await trio.lowlevel.checkpoint()
        self.check()
        return result

    async def _commit_late(self, at: float, label: str, fn: Callable[..., T], args: tuple[Any, ...]) -> None:
        await trio.sleep_until(at)
        if self._alone and not self.alive:
            return  # the thread died with its process
        try:
            result = self._database.unit(fn, args)
        except ValueError as refused:
            result = refused  # type: ignore[assignment]
        self._trace.add(self._name, f"{label} COMMITTED LATE = {_shown(result)}")

    soon_unit = unit  # processes die here, the power stays

    async def migrate(self, fn: Callable[[Connection], T]) -> T:
        raise NotImplementedError

    def touch(self, conn: Connection) -> None:
        raise NotImplementedError

    def _say(self, text: str) -> None:
        if self.alive:
            self._trace.add(self._name, text)


def _label(fn: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """Which unit this is, for the trace."""
    if fn.__name__ == "_checked":
        return "unit[" + ", ".join(type(m).__name__ for m in args[1]) + "]"
    if fn.__name__ == "<lambda>":
        return "unit(…)"
    return f"{fn.__name__}({', '.join(str(a)[:40] for a in args)})"


def _shown(result: Any) -> str:
    """A result for the trace: no addresses of objects, no contents."""
    if isinstance(result, Look):
        jobs = result.claimed.jobs
        leased = ", ".join(f"{job.message_id}:{job.destination}:{job.token}" for job in jobs)
        return f"[{leased}] expired={result.claimed.expired} again={result.due_at_us}"
    return _PLACE.sub("", str(result))[:300]


class SimStore(Store):
    """The real store; but a dead process hears nothing from it any more."""

    def __init__(self, backend: Backend, *, run_unit: Any = None) -> None:
        self.backend = backend
        self.writer = GroupWriter(backend.unit, run_unit or UnitRunner(now_us), timeout_s=UNIT_TIMEOUT_S)
        super().__init__(backend, self.writer, Hub(), lambda _topic: None, timeout_s=UNIT_TIMEOUT_S)

    async def read(self, *args: Any, **kwargs: Any) -> Any:
        return await self._living(super().read(*args, **kwargs))

    async def write(self, *args: Any, **kwargs: Any) -> Any:
        return await self._living(super().write(*args, **kwargs))

    async def write_soon(self, *args: Any, **kwargs: Any) -> Any:
        return await self._living(super().write_soon(*args, **kwargs))

    async def write_idly(self, *args: Any, **kwargs: Any) -> Any:
        return await self._living(super().write_idly(*args, **kwargs))

    async def submit(self, *args: Any, **kwargs: Any) -> Any:
        return await self._living(super().submit(*args, **kwargs))

    async def _living(self, call: Any) -> Any:
        try:
            self.backend.check()
            return await call
        finally:
            call.close()
            self.backend.check()
