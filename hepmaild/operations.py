# SPDX-License-Identifier: Apache-2.0
"""What operators look at and do in a running daemon: queue figures, routes, the doctor, changes of many messages.

The figures of a long queue take seconds to count.  They are counted beside the pages, when somebody looks, and bounded
in what they cost; a page shows the last ones and says how old they are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import trio

from hepmaild import __version__
from hepmaild.census import Figure
from hepmaild.config import Settings
from hepmaild.delivery.client import Credentials
from hepmaild.delivery.lookups import Lookups
from hepmaild.delivery.route import Route
from hepmaild.doctor.checks import Report
from hepmaild.doctor.examination import Patient, examine
from hepmaild.doctor.ports import Port
from hepmaild.errors import StoreUnavailable
from hepmaild.metrics import LAG, Metrics
from hepmaild.route_test import try_route, try_server
from hepmaild.storage import health, queue_page, stats
from hepmaild.storage import queue as rows
from hepmaild.storage.audit import Actor
from hepmaild.storage.queue import Where
from hepmaild.storage.store import Store

if TYPE_CHECKING:
    from hepmaild.delivery.pool import DeliveryPool

log = structlog.get_logger()

STATS_EVERY_S, STATS_SHARE = 3.0, 0.1
STATS_PATIENCE_S = 0.05  # a page does not wait for figures
FIRST_PATIENCE_S = 0.5  # unless there were none yet
REPORT_EVERY_S = 2.0
REPORT_PATIENCE_S = 45.0
ROUTE_TEST_S = 30.0
ROUTE_TESTS_AT_ONCE = 4
CHANGE_PATIENCE_S = 2.0
CHANGES_KEPT = 10
TELL_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Insides:
    """Where the live figures are.  All are cheap, and called in the event loop."""

    pool: DeliveryPool
    sessions: Callable[[], int]
    connections: Callable[[], int]
    backlog: Callable[[], int]
    readers: Callable[[], int]
    is_draining: Callable[[], bool]
    recount: Callable[[], Any]  # async
    metrics: Metrics | None = None


@dataclass(slots=True, eq=False)
class Change:
    """Many messages that are being changed.  deed: retry or release.  began_at_us: Unix µs.  error: why it ended."""

    deed: str
    where: Where
    actor: Actor
    began_at_us: int
    messages: int = 0
    recipients: int = 0
    is_done: bool = False
    error: str = ""
    done: trio.Event = field(default_factory=trio.Event)


class Operations:
    """`run` must be running.  bound: what the doors listen on, once they do."""

    def __init__(
        self,
        store: Store,
        settings: Callable[[], Settings],
        lookups: Lookups,
        now_us: Callable[[], int],
        insides: Insides,
    ) -> None:
        self._store = store
        self._settings = settings
        self._lookups = lookups
        self._now_us = now_us
        self._insides = insides
        self._began_at_us = now_us()
        self._stats: Figure[dict[str, Any]] = Figure(self._read_stats, every_s=STATS_EVERY_S, share=STATS_SHARE)
        self._report: Figure[Report] = Figure(self._examine, every_s=REPORT_EVERY_S, share=1)
        self._tests = trio.CapacityLimiter(ROUTE_TESTS_AT_ONCE)
        self._server_tests = trio.CapacityLimiter(ROUTE_TESTS_AT_ONCE)  # strangers' do not keep the operator's waiting
        self._wanted: deque[Change] = deque()
        self._arrived = trio.Event()
        self.changes: deque[Change] = deque(maxlen=CHANGES_KEPT)
        self.bound: tuple[Port, ...] = ()

    async def run(self) -> None:
        """Until cancelled; idle unless somebody asks for something."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stats.run)
            nursery.start_soon(self._report.run)
            nursery.start_soon(self._change_all)

    # The queue

    async def _read_stats(self) -> dict[str, Any]:
        at_us = self._now_us()
        return {**await self._store.read(stats.stats, at_us), "at_us": at_us}

    async def stats(self) -> dict[str, Any] | None:
        """`storage.stats.stats` with `at_us`, when that was; None: it is being counted.  Does not wait for it."""
        patience_s = STATS_PATIENCE_S if self._stats.value is not None else FIRST_PATIENCE_S
        await self._stats.ask(trio.current_time() + patience_s)
        return self._stats.value

    async def changed(self) -> None:
        """The queue was changed by a person: everybody is to know at once, and the figures are out of date."""
        self._stats.expire()
        await self._tell()

    async def _tell(self) -> None:
        self._insides.pool.wake()
        with suppress(StoreUnavailable):  # the next claim will learn it
            await self._insides.recount()
        await self._store.announce("queue")

    async def change_many(self, deed: str, where: Where, actor: Actor) -> Change:
        """Begin to change all messages of a route or destination; returns when that is done, or after a moment.

        deed: retry or release.  It goes on beside the pages (`changes`); the daemon's end ends it.
        """
        change = Change(deed, where, actor, self._now_us())
        self.changes.appendleft(change)
        self._wanted.append(change)
        self._arrived.set()
        with trio.move_on_after(CHANGE_PATIENCE_S):
            await change.done.wait()
        return change

    async def _change_all(self) -> None:
        while True:
            while self._wanted:
                change = self._wanted.popleft()
                try:
                    await self._change(change)
                except StoreUnavailable as error:
                    change.error = str(error)
                change.is_done = True
                change.done.set()
            self._arrived = trio.Event()
            await self._arrived.wait()

    async def _change(self, change: Change) -> None:
        """In steps, each a unit of its own, so that no sender waits long behind it."""
        after: str | None = ""
        told_at = 0.0
        while after is not None:
            made = await self._store.write(rows.STEPS[change.deed], change.where, self._now_us(), after)
            change.messages += made.messages
            change.recipients += made.recipients
            after = made.after
            if made.messages and trio.current_time() > told_at + TELL_EVERY_S:
                await self._tell()
                told_at = trio.current_time()
        await self.changed()
        counts = {"messages": change.messages, "recipients": change.recipients}
        where = change.where
        await self._store.write(
            queue_page.note_bulk,
            change.actor,
            change.deed,
            where.route or "",
            where.destination or "",
            counts,
            self._now_us(),
        )

    # Routes

    async def test_route(self, name: str) -> dict[str, Any] | None:
        """What `route_test.try_route` finds; None: there is no such route.  Takes half a minute at most."""
        settings = self._settings()
        chosen = next((route for route in settings.route if route.name == name), None)
        if chosen is None:
            return None
        async with self._tests:
            return await try_route(settings, chosen, self._now_us, ROUTE_TEST_S)

    async def test_server(self, server: Route, credentials: Credentials | None) -> dict[str, Any]:
        """What `route_test.try_server` finds of an account's own server.  Takes half a minute at most, and its turn."""
        async with self._server_tests:
            return await try_server(self._settings(), server, credentials, self._now_us, ROUTE_TEST_S)

    def lanes(self) -> dict[str, tuple[int, int, int, int]]:
        """See `DeliveryPool.figures`."""
        return self._insides.pool.figures()

    # Health

    async def _examine(self) -> Report:
        bound = self.bound or None
        return await examine(Patient(self._settings(), self._lookups, self._now_us, self._store, bound=bound))

    @property
    def report(self) -> Report | None:
        """The last one; None: nobody has asked yet."""
        return self._report.value

    async def examine(self) -> Report | None:
        """Run the checks, or wait for a run under way; None: it takes longer than anybody waits."""
        await self._report.ask(trio.current_time() + REPORT_PATIENCE_S)
        return self._report.value

    async def vitals(self) -> dict[str, Any]:
        """Live figures of this process, and which processes there are (None: the store does not answer)."""
        insides = self._insides
        try:
            processes: Sequence[dict[str, Any]] | None = await self._store.read(health.processes, self._now_us())
        except StoreUnavailable:
            processes = None
        return {
            "version": __version__,
            "pid": os.getpid(),
            "up_s": (self._now_us() - self._began_at_us) / 1e6,
            "resident_octets": _resident_octets(),
            "processes": processes,
            "is_alone": self._store.is_sqlite,
            "sessions": insides.sessions(),
            "connections": insides.connections(),
            "backlog": insides.backlog(),
            "backlog_most": self._settings().limits.backlog,
            "active": insides.pool.active,
            "stalled": insides.pool.stalled,
            "workers": self._settings().delivery.workers,
            "readers": insides.readers(),
            "store_waiting": self._store.waiting,
            "is_draining": insides.is_draining(),
            "lag": None if insides.metrics is None else lag_of(insides.metrics),
        }


def lag_of(metrics: Metrics) -> dict[str, float] | None:
    """How late the event loop was: mean, and the bound below which 99 of 100 looks were (s); None: not measured."""
    histogram = next((h for h in metrics.histograms if h.family is LAG), None)
    spread = None if histogram is None else histogram.cells.get(())
    count = 0 if spread is None else sum(spread.counts)
    if spread is None or not count:
        return None
    bounds = (*LAG.buckets, float("inf"))
    most = next(bound for bound, below in zip(bounds, spread.cumulative(), strict=True) if below >= 0.99 * count)
    return {"mean_s": spread.total / count, "most_s": most}


def _resident_octets() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
