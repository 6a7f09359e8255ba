# SPDX-License-Identifier: Apache-2.0
"""The delivery pool: a fixed number of workers over all routes (Trio).

Work stands ready in lanes, one a route; a free worker takes the next job of the lane whose turn it is.  So a route
with much to do does not stand before one with little, and one whose next hop hangs holds at most half of the workers.
Fresh mail is offered by the intake (`offer_nowait`) and never read from the store; the scheduler claims all other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog
import trio

from hepmaild.config import DeliverySettings, RouteKind
from hepmaild.delivery.attempt import End, Runner
from hepmaild.delivery.connections import Connect, Connection, connect_tcp
from hepmaild.delivery.job import Attempt, Job, Queue
from hepmaild.delivery.lane import Lane
from hepmaild.delivery.route import Route
from hepmaild.delivery.sandbox import Sandbox
from hepmaild.delivery.scheduler import Scheduler
from hepmaild.errors import StoreUnavailable
from hepmaild.lifecycle import Lifecycle

log = structlog.get_logger()

READY_OCTETS = 64 << 20  # contents that stand ready in memory
KEEP_IDLE_S = 30.0
RELEASE_AT_ONCE = 64


class DeliveryPool:
    """Give mail to it with `offer_nowait`, run it with `run`.

    settings, routes: see config.  queue: the store.  hostname: for EHLO.  state_dir: what sandbox directories are
    relative to.  drain_timeout_s: how long a drain may take.  now_us: Unix microseconds.  random: [0, 1).
    connect: how to reach a next hop.  on_reported: called after each durable report; must not raise.
    """

    def __init__(
        self,
        settings: DeliverySettings,
        routes: Iterable[Route],
        queue: Queue,
        lifecycle: Lifecycle,
        hostname: str,
        *,
        state_dir: Path,
        now_us: Callable[[], int],
        random: Callable[[], float],
        drain_timeout_s: float = 30.0,
        connect: Connect = connect_tcp,
        on_reported: Callable[[Attempt], None] | None = None,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._lifecycle = lifecycle
        self._drain_timeout_s = drain_timeout_s
        self._on_reported = on_reported
        self._now_us = now_us
        self._runner = Runner(
            settings,
            queue,
            hostname,
            connect=connect,
            sandbox=Sandbox(state_dir),
            now_us=now_us,
            random=random,
            on_reported=self._reported,
        )
        self._scheduler = Scheduler(
            queue, lanes=lambda: list(self._lanes.values()), take=self._take, resumed=self._list_lane, now_us=now_us
        )
        self._lanes: dict[str, Lane] = {}
        self._runnable: deque[Lane] = deque()
        self._parked = trio.lowlevel.ParkingLot()
        self._ready_octets = 0
        self._running = False
        self._stopping = False
        self._busy = 0
        self._quiet = trio.Event()  # nobody is busy; renewed by the drain, which waits for it
        self._kept_something = trio.Event()
        self.replace_routes(routes)

    # What others call

    def offer_nowait(self, job: Job) -> bool:
        """Take a job that was just committed as leased; with it the pool owns `job.content` and closes it.

        False: it was not taken (draining, not running, unknown route).  Then give it back with `Queue.release`.
        """
        lane = self._lanes.get(job.route)
        if lane is None or not self._running:
            return False
        self._push(lane, job)
        return True

    def capacity_hint(self, route: str, destinations: Sequence[str] = ("",)) -> int:
        """How many more jobs for `route` would be worked on soon: commit no more than that as leased.

        What is committed as queued instead needs a `wake` after the commit.
        """
        lane = self._lanes.get(route)
        if lane is None or not self._running or self._ready_octets > READY_OCTETS:
            return 0
        now = trio.current_time()
        if lane.is_behind:
            # Older mail waits in the store: leave it its place.
            return max(0, lane.allowed - len(lane.ready)) if now >= lane.paused_until else 0
        return lane.room(now)

    def wake(self) -> None:
        """Something may be due: a commit left jobs queued, or somebody asked for a retry."""
        self._scheduler.wake()

    def replace_routes(self, routes: Iterable[Route]) -> None:
        """Use these routes from now on.  Attempts under way end on the old ones."""
        routes = list(routes)
        workers = self._settings.workers
        cap = workers if len(routes) <= 1 else max(1, workers // 2)
        for route in routes:
            lane = self._lanes.get(route.name)
            lane_cap = min(cap, route.connections)
            if lane is None:
                self._lanes[route.name] = Lane(route, lane_cap)
            else:
                lane.replace_route(route, lane_cap)
        for name in self._lanes.keys() - {route.name for route in routes}:
            self._lanes[name].replace_route(Route(name, RouteKind.MX), 1)

    @property
    def active(self) -> int:
        """Attempts under way."""
        return self._busy

    def figures(self) -> dict[str, tuple[int, int, int, int]]:
        """By route, just now: attempts under way, jobs that stand ready, kept connections, paused next hops."""
        now = trio.current_time()
        return {
            name: (lane.active, len(lane.ready), len(lane.kept), int(now < lane.paused_until))
            for name, lane in self._lanes.items()
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until the drain is over.

        On `lifecycle.draining`: no new claims, what stands ready is given back, attempts have until shortly before
        `drain_timeout_s`; then those before the dot are cancelled and given back, and those past it are reported as in
        doubt.  When cancelled instead: the same at once, but attempts past the dot keep their own deadlines.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._scheduler.run)
                nursery.start_soon(self._close_idle)
                async with trio.open_nursery() as workers:
                    self._running = True
                    for _ in range(self._settings.workers):
                        workers.start_soon(self._work)
                    task_status.started()
                    await self._lifecycle.draining.wait()
                    await self._drain(nursery, workers)
                nursery.cancel_scope.cancel()
        finally:
            self._running = False
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await self._release_ready()
                for lane in self._lanes.values():
                    await _close_all(lane.kept, self._now_us)

    # Ready work

    def _push(self, lane: Lane, job: Job) -> None:
        lane.ready.append((job, trio.current_time()))
        if job.content is not None:
            self._ready_octets += job.size
        self._list_lane(lane)

    def _take(self, jobs: Sequence[Job]) -> None:
        """Claimed jobs go to their lanes; a route that is not (or no longer) known gets a lane that defers."""
        for job in jobs:
            lane = self._lanes.get(job.route)
            if lane is None:
                lane = self._lanes[job.route] = Lane(Route(job.route, RouteKind.MX), 1)
            self._push(lane, job)

    def _list_lane(self, lane: Lane) -> None:
        """Put a lane that has work in line, and call a free worker."""
        if not lane.listed and lane.has_work(trio.current_time()):
            lane.listed = True
            self._runnable.append(lane)
            self._parked.unpark()

    def _next(self) -> tuple[Lane, Job, float] | None:
        """The next job of the lane whose turn it is; its worker slot is taken."""
        now = trio.current_time()
        while self._runnable:
            lane = self._runnable.popleft()
            lane.listed = False
            if lane.has_work(now):
                job, leased = lane.ready.popleft()
                if job.content is not None:
                    self._ready_octets -= job.size
                lane.active += 1
                self._list_lane(lane)  # to the end of the line
                return lane, job, leased
        return None

    # Workers

    async def _work(self) -> None:
        while not self._stopping:
            turn = self._next()
            if turn is None:
                await self._parked.park()
                continue
            lane, job, leased = turn
            self._busy += 1
            try:
                await self._do(lane, job, leased)
            finally:
                self._busy -= 1
                lane.active -= 1
                if not self._busy:
                    self._quiet.set()
                self._list_lane(lane)
                if lane.is_behind and lane.is_running_low():
                    self._scheduler.wake()

    async def _do(self, lane: Lane, job: Job, leased: float) -> None:
        if trio.current_time() - leased > self._settings.attempt_timeout_s / 2:
            await self._release(job)  # it stood here too long to be sure of its lease
            self._scheduler.wake()
            return
        end = await self._runner.attempt(job, lane, leased)
        if end is End.WELL:
            lane.went_well()
        elif end is End.TROUBLE:
            if lane.had_trouble(trio.current_time()):
                log.warning("route_paused", route=lane.route.name, seconds=lane.paused_until - trio.current_time())
                self._scheduler.wake()  # to end the pause
        elif end is End.STORE_DOWN:
            self._scheduler.store_failed()
            self._scheduler.wake()  # what was given back is due; nobody else would say so
        if lane.kept and not self._kept_something.is_set():
            self._kept_something.set()

    def _reported(self, attempt: Attempt) -> None:
        for outcome in attempt.outcomes:
            if outcome.retry_at_us is not None:
                self._scheduler.note_due(outcome.retry_at_us)
        if self._on_reported is not None:
            self._on_reported(attempt)

    async def _close_idle(self) -> None:
        """Close connections that were kept too long; sleeps while there are none."""
        while True:
            await self._kept_something.wait()
            await trio.sleep(KEEP_IDLE_S / 2)
            self._kept_something = trio.Event()
            too_old = trio.current_time() - KEEP_IDLE_S
            async with trio.open_nursery() as nursery:
                for lane in self._lanes.values():
                    old = [kept for kept in lane.kept if kept.idle_since < too_old]
                    lane.kept = [kept for kept in lane.kept if kept.idle_since >= too_old]
                    if lane.kept:
                        self._kept_something.set()
                    if old:
                        nursery.start_soon(_close_all, old, self._now_us)

    # The end

    async def _drain(self, nursery: trio.Nursery, workers: trio.Nursery) -> None:
        self._running = False
        begun = trio.current_time()
        margin_s = min(6.0, self._drain_timeout_s / 3)
        end = begun + self._drain_timeout_s - margin_s / 3
        self._runner.report_until = end
        nursery.start_soon(self._cut, end - margin_s / 3)
        with trio.move_on_at(end - 2 * margin_s / 3):
            await self._scheduler.stop()
            self._stopping = True
            await self._release_ready()
            self._parked.unpark_all()
            while self._busy:
                self._quiet = trio.Event()
                await self._quiet.wait()
        self._stopping = True
        workers.cancel_scope.cancel()

    async def _cut(self, when: float) -> None:
        """What still waits past the dot then is in doubt: it gets a moment to say so."""
        await trio.sleep_until(when)
        for flight in self._runner.flights:
            if flight.scope is not None:
                flight.scope.deadline = min(flight.scope.deadline, when)

    async def _release_ready(self) -> None:
        """Give back what nobody works on; together, since the store commits in groups."""
        jobs = [job for lane in self._lanes.values() for job, _ in lane.ready]
        for lane in self._lanes.values():
            lane.ready.clear()
        self._ready_octets = 0
        for start in range(0, len(jobs), RELEASE_AT_ONCE):
            async with trio.open_nursery() as nursery:
                for job in jobs[start : start + RELEASE_AT_ONCE]:
                    nursery.start_soon(self._release, job)

    async def _release(self, job: Job) -> None:
        if job.content is not None:
            job.content.close()
        try:
            await self._queue.release(job)
        except StoreUnavailable:
            log.warning("attempt_forsaken", message_id=job.message_id, route=job.route)
            self._queue.forsake(job)


async def _close_all(connections: Sequence[Connection], now_us: Callable[[], int]) -> None:
    """Say QUIT on all of them, at once: each takes a few seconds at most."""
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(connection.quit, now_us)
