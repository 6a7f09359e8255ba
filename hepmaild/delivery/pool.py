# SPDX-License-Identifier: Apache-2.0
"""The delivery pool: a fixed number of workers over all routes (Trio).

Work stands ready in lanes, which take turns (see `track`); a free worker takes the next job.  Fresh mail is offered by
the intake (`offer_nowait`) and never read from the store; the scheduler claims all other.

An attempt that has waited for `STALLED_S` no longer counts as a worker: another one takes its place, up to a bound.  So
next hops that hang, however many, cost memory, not the others' time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
import trio

from hepmaild.config import DeliverySettings
from hepmaild.delivery.alarms import Alarms
from hepmaild.delivery.attempt import Runner
from hepmaild.delivery.connections import Connect, close_all, connect_tcp
from hepmaild.delivery.flight import End, Flight, Joined
from hepmaild.delivery.hops import Resolve
from hepmaild.delivery.job import Attempt, Job, Queue
from hepmaild.delivery.lane import Place, Standing
from hepmaild.delivery.returns import Returns
from hepmaild.delivery.route import OwnWays, Route
from hepmaild.delivery.sandbox import Sandbox
from hepmaild.delivery.scheduler import Scheduler
from hepmaild.delivery.track import STUCK_MX, Track
from hepmaild.delivery.tracks import Tracks
from hepmaild.lifecycle import Lifecycle
from hepmaild.timers import Timers, current_clock

log = structlog.get_logger()

READY_OCTETS = 64 << 20  # contents that stand ready in memory
KEEP_IDLE_S = 30.0
STALLED_S = 2.0
CUT_S = 2.0  # when all is cancelled: for answers to final dots, and then for saying what came of them
STALLED_FACTOR = 8  # attempts beside the workers, for each worker; one of several tracks may have half of them


class DeliveryPool:
    """Give mail to it with `offer_nowait`, run it with `run`.

    settings, routes: see config.  queue: the store.  hostname: for EHLO.  state_dir: what sandbox directories are
    relative to.  drain_timeout_s: how long a drain may take.  now_us: Unix microseconds.  random: [0, 1).
    connect: how to reach a next hop.  on_reported: called after each durable report; must not raise.
    resolve: who finds the hosts of destinations; resolve_for: for one route of kind `mx`.  Without either: deferred.
    is_paused: whether nobody is to work on a (route, destination) now; what stands ready for it is given back.
    own: who knows the SMTP servers of accounts; None: there are none.
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
        resolve: Resolve | None = None,
        resolve_for: Callable[[Route], Resolve] | None = None,
        on_reported: Callable[[Attempt], None] | None = None,
        is_paused: Callable[[str, str], bool] = lambda *_: False,
        own: OwnWays | None = None,
    ) -> None:
        self._settings = settings
        self._is_paused = is_paused
        self._returns = Returns(queue)
        self._lifecycle = lifecycle
        self._drain_timeout_s = drain_timeout_s
        self._on_reported = on_reported
        self._now_us = now_us
        self._time = current_clock()
        self._timers = Timers()
        self._timing = trio.CancelScope(shield=True)  # as long as there are workers
        self._runner = Runner(
            settings,
            queue,
            hostname,
            connect=connect,
            sandbox=Sandbox(state_dir),
            now_us=now_us,
            random=random,
            join=self._join,
            timers=self._timers,
            on_reported=self._reported,
            own=own,
        )
        self._tracks = Tracks(settings.workers, resolve, resolve_for, own)
        self._scheduler = Scheduler(
            queue, tracks=self._tracks.values, take=self._take, now_us=now_us, spare=self._tracks.spare
        )
        self._alarms = Alarms()
        self._runnable: deque[Track] = deque()
        self._parked = trio.lowlevel.ParkingLot()
        self._workers: trio.Nursery | None = None
        self._ready_octets = 0
        self._running = False
        self._stopping = False
        self._busy = 0
        self._stalled = 0
        self._quiet = trio.Event()  # nobody is busy; renewed by the drain, which waits for it
        self._somebody_flies = trio.Event()
        self._kept_something = trio.Event()
        self.replace_routes(routes)

    # What others call

    def offer_nowait(self, job: Job) -> bool:
        """Take a job that was just committed as leased; with it the pool owns `job.content` and closes it.

        False: it was not taken (draining, not running, unknown route).  Then give it back with `Queue.release`.
        """
        track = self._tracks.get(job.route) if self._running else None
        if track is None:
            return False
        self._push(track, job)
        return True

    def capacity_hint(self, route: str, destinations: Sequence[str] = ("",)) -> int:
        """How many more jobs for each of these destinations would be worked on soon: commit no more as leased.

        What is committed as queued instead is told with `left` after the commit.
        """
        track = self._tracks.get(route) if self._running else None  # which makes some
        if track is None or self._ready_octets > READY_OCTETS:
            return 0
        now = self._time()
        if len(destinations) == 1:
            return track.hint(destinations[0], now)
        return min((track.hint(destination, now) for destination in destinations), default=0)

    def left(self, route: str, destinations: Collection[str]) -> Collection[str]:
        """A commit left jobs for these destinations queued, since there was no room; those that are away are returned.

        The store is asked when there is room: looking each time would find nothing, and keep others from their commits.
        """
        track, now = self._tracks.get(route) if self._running else None, self._time()
        if self._scheduler.is_looking or track is None or any(track.note_left(where, now) for where in destinations):
            self._scheduler.wake()
        return () if track is None else [where for where in destinations if track.is_away(where)]

    def wake(self) -> None:
        """Something may be due, such as what somebody asked to be tried again."""
        self._scheduler.wake()

    def replace_routes(self, routes: Iterable[Route]) -> None:
        """Use these routes from now on.  Attempts under way end on the old ones."""
        self._tracks.replace_routes(routes)
        if self._running:
            for track in self._tracks.values():
                for place in list(track.places.values()):
                    self._list_place(place)
                self._list_track(track)
            self._scheduler.wake()  # pauses and limits may be other ones

    def take_settings(self, settings: DeliverySettings) -> None:
        """Timeouts, schedule and policy from now on; the number of workers stays."""
        self._settings = replace(settings, workers=self._settings.workers)
        self._runner.take_settings(settings)

    @property
    def active(self) -> int:
        """Attempts under way."""
        return self._busy

    @property
    def stalled(self) -> int:
        """Those of them that wait so long that they no longer count as workers."""
        return self._stalled

    def figures(self) -> dict[str, tuple[int, int, int, int]]:
        """By route, just now: attempts under way, jobs that stand ready, kept connections, paused places.

        The servers of accounts are one, `own:*`.
        """
        return self._tracks.figures()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until the drain is over.

        On `lifecycle.draining`: no new claims, what stands ready is given back, attempts have until shortly before
        `drain_timeout_s`; then those before the dot are cancelled and given back, and those past it are reported as in
        doubt.  When cancelled, also meanwhile: the same at once, attempts past the dot have `CUT_S`.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._scheduler.run)
                nursery.start_soon(self._close_idle)
                nursery.start_soon(self._alarms.run)
                nursery.start_soon(self._run_timers)
                try:
                    async with trio.open_nursery() as workers:
                        self._workers = workers
                        self._running = True
                        for _ in range(self._settings.workers):
                            workers.start_soon(self._work)
                        nursery.start_soon(self._watch)
                        workers.start_soon(self._cut_when_cancelled)
                        task_status.started()
                        await self._lifecycle.draining.wait()
                        await self._drain(workers)
                finally:
                    self._timing.cancel()
                nursery.cancel_scope.cancel()
        finally:
            self._running = False
            with trio.CancelScope(shield=True, deadline=self._time() + 5):
                await self._release_ready()
                await close_all(self._tracks.take_all(), self._now_us)

    async def _run_timers(self) -> None:
        """Also while all is cancelled: attempts past the dot are shielded, and have their deadlines from here."""
        with self._timing:
            await self._timers.run()

    # Ready work

    def _push(self, track: Track, job: Job) -> None:
        place = track.push(job, self._time())
        if job.content is not None:
            self._ready_octets += job.size
        self._list_place(place)

    def _take(self, jobs: Sequence[Job]) -> None:
        """Claimed jobs go to their lanes; a route that is not (or no longer) known gets a track that defers."""
        for job in jobs:
            self._push(self._tracks.get_or_missing(job.route), job)

    def _list_place(self, place: Place) -> None:
        """Put a place that can start something in line, and call a free worker."""
        if not place.listed and place.can_start(self._time()):
            place.listed = True
            place.track.line.append(place)
            self._list_track(place.track)

    def _list_track(self, track: Track) -> None:
        if not track.listed and track.line and not track.resumes_at:
            track.listed = True
            self._runnable.append(track)
            self._parked.unpark()

    def _list_held(self, track: Track | None) -> None:
        if track is not None:
            self._list_track(track)

    def _next(self) -> Flight | None:
        """The next attempt of the track whose turn it is; its worker is taken."""
        if not self._runnable:
            return None
        now = self._time()
        while self._runnable:
            track = self._runnable.popleft()
            track.listed = False
            pace = track.pace
            if pace is not None:
                wait_s = pace.wait_s(now)
                if wait_s:
                    track.resumes_at = now + wait_s
                    self._alarms.at(track.resumes_at, partial(self._resume_track, track))
                    continue
            if self._tracks.must_wait(track):
                track.listed = True
                continue
            place = track.next_place(now)
            if place is None:
                continue  # listed again when one of its attempts ends
            lane, job, leased = track.pop(place)
            if job.content is not None:
                self._ready_octets -= job.size
            standing = track.begin(place, lane)
            self._tracks.begin(track)
            self._list_place(place)  # to the end of the line
            if track.line and not track.listed:
                self._list_track(track)
            lease_ends = leased + self._settings.attempt_timeout_s
            flight = Flight(job, track, lane, place, standing, track.route, leased, now, self._now_us(), lease_ends)
            if pace is not None and not self._is_vain(flight):
                pace.take()
            return flight
        return None

    def _is_vain(self, flight: Flight) -> bool:
        return flight.is_late(self._time()) or self._is_paused(flight.job.route, flight.job.destination)

    def _resume_track(self, track: Track) -> None:
        track.resumes_at = 0.0
        self._list_track(track)

    def _resume_place(self, place: Place) -> None:
        """Its pause is over: what waits here goes on, and what waits in the store may be claimed."""
        self._list_place(place)
        self._scheduler.wake()

    # Workers

    async def _work(self) -> None:
        while not self._stopping:
            flight = self._next()
            if flight is None:
                await self._parked.park()
                continue
            self._busy += 1
            if not self._somebody_flies.is_set():
                self._somebody_flies.set()
            end = End.NEITHER
            try:
                end = await self._do(flight)
            finally:
                self._land(flight, end)
            if flight.is_stalled:
                return  # another worker took its place long ago

    async def _do(self, flight: Flight) -> End:
        if self._is_vain(flight):
            await self._returns.give_back(flight.job)
            self._scheduler.wake()
            return End.NEITHER
        end = await self._runner.attempt(flight)
        if flight.put_off_until_us is not None:
            self._scheduler.note_due(flight.put_off_until_us)
        if end is End.STORE_DOWN:
            self._scheduler.store_failed()
        if end is End.STORE_DOWN or flight.is_given_back:
            self._scheduler.wake()  # what was given back is due; nobody else would say so
        return end

    def _land(self, flight: Flight, end: End) -> None:
        """What an attempt's end means for its place, and for those that wait."""
        track, place, lane = flight.track, flight.place, flight.lane
        self._busy -= 1
        if not self._busy:
            self._quiet.set()
        self._stalled -= flight.is_stalled
        track.end(place, flight.standing, stalled=flight.is_stalled)
        self._list_held(self._tracks.end(track, stalled=flight.is_stalled))
        if end is End.WELL:
            if place.standing is not Standing.PROVEN and place.listed:
                track.proved(place)
            place.went_well()
        elif end is End.TROUBLE:
            self._had_trouble(place)
        elif end is End.APART:
            self._had_trouble(track.part(lane))
        elif end is End.PUT_BACK:
            if flight.job.content is not None:
                self._ready_octets += flight.job.size
            self._list_place(track.put_back(lane, flight.job, flight.leased))
        needs_more = end is not End.PUT_BACK and track.needs_more(lane)
        track.leave(lane)
        if place.key:  # one of many
            track.retire(place)
            self._list_place(lane.place)
        if (place.kept or track.lost) and not self._kept_something.is_set():
            self._kept_something.set()
        self._list_place(place)
        if track.line and not track.listed:
            self._list_track(track)
        if needs_more:
            self._scheduler.wake()

    def _had_trouble(self, place: Place) -> None:
        now = self._time()
        if not place.had_trouble(now):
            return
        self._alarms.at(place.paused_until, partial(self._resume_place, place))
        seconds = round(place.paused_until - now, 1)
        if place.track.is_mx:
            log.info("place_paused", route=place.track.route.name, place=place.key, seconds=seconds)
        else:
            log.warning("route_paused", route=place.track.route.name, seconds=seconds)

    def _join(self, flight: Flight, key: str) -> Joined:
        """A job turned out to go to this place: whether it may go on there at once."""
        track, lane = flight.track, flight.lane
        if not track.is_mx or track.lanes.get(lane.destination) is not lane:
            return Joined.GO  # the route's kind changed meanwhile
        if flight.place is lane.place and track.is_own(lane.place) and lane.place.is_in_trouble:
            return Joined.GO  # one after the other, apart, until one goes well
        place = track.join(lane, key)
        self._list_place(place)
        now = self._time()
        if now < place.paused_until:
            return Joined.WAIT if track.stuck(now) < STUCK_MX else Joined.DEFER
        if place.active >= place.allowed:
            return Joined.WAIT
        before, flight.place = flight.place, place
        flight.standing = track.change_place(before, place, flight.standing, stalled=flight.is_stalled)
        self._list_track(track)
        return Joined.GO

    def _reported(self, attempt: Attempt) -> None:
        for outcome in attempt.outcomes:
            if outcome.retry_at_us is not None:
                self._scheduler.note_due(outcome.retry_at_us)
        if self._on_reported is not None:
            self._on_reported(attempt)

    async def _watch(self) -> None:
        """Look for attempts that stalled; sleeps while none is under way that has not."""
        while True:
            now = self._time()
            again_at = 0.0
            for flight in list(self._runner.flights):
                if flight.is_stalled:
                    continue
                again_at = max(flight.began, now - STALLED_S / 2) + STALLED_S
                if flight.began + STALLED_S > now:
                    break  # and so are those behind it
                self._stall(flight)
            if again_at:
                await trio.sleep_until(again_at)
            else:
                self._somebody_flies = trio.Event()
                await self._somebody_flies.wait()

    def _stall(self, flight: Flight) -> None:
        track, most = flight.track, STALLED_FACTOR * self._settings.workers
        if self._stopping or self._workers is None or self._stalled >= most:
            return
        if not self._tracks.may_stall(track, most):
            return
        flight.is_stalled = True
        self._stalled += 1
        track.stalled += 1
        track.free(flight.standing)
        self._list_held(self._tracks.stall(track))
        self._list_track(track)
        self._workers.start_soon(self._work)

    async def _close_idle(self) -> None:
        """Close connections that were kept too long, or that nobody keeps; sleeps while there are none."""
        while True:
            await self._kept_something.wait()
            await trio.sleep(KEEP_IDLE_S / 2)
            self._kept_something = trio.Event()
            too_old = self._time() - KEEP_IDLE_S
            old, is_more = self._tracks.take_idle(too_old)
            if is_more:
                self._kept_something.set()
            await close_all(old, self._now_us)

    # The end

    async def _drain(self, workers: trio.Nursery) -> None:
        self._running = False
        begun = self._time()
        margin_s = min(6.0, self._drain_timeout_s / 3)
        end = begun + self._drain_timeout_s - margin_s / 3
        self._runner.end_by(end - margin_s / 3, end)
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

    async def _cut_when_cancelled(self) -> None:
        """What is past its dot is shielded, and would go on for ten minutes.  A drain's own end leaves it less."""
        try:
            await trio.sleep_forever()
        finally:
            self._runner.end_by(self._time() + CUT_S, self._time() + 2 * CUT_S)

    async def _release_ready(self) -> None:
        """Give back what nobody works on."""
        await self._returns.give_back_all([job for track in self._tracks.values() for job in track.give_up()])
