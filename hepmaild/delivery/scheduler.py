# SPDX-License-Identifier: Apache-2.0
"""Fetches due work from the store, no more than can be worked on (Trio).

It sleeps until the next thing is due or somebody wakes it (there is room again, a pause is over), and otherwise does
nothing: an idle daemon asks the store once a minute, in case another process left something behind and died.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from hepmaild.delivery.job import Job, Queue
from hepmaild.delivery.track import Track
from hepmaild.errors import StoreUnavailable

log = structlog.get_logger()

CLAIM_LIMIT = 256
LOOK_AGAIN_S = 60.0
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 10.0
TOGETHER_S = 0.2  # what falls due within this is claimed together: each claim is a unit, whatever it brings
APART_S = 0.01  # between retries that were claimed together: other mail would wait for a burst of them
ALL_APART_S = 0.05  # ... all of them by then
SKIPPED_S = 0.5  # something is due but could not be claimed: others hold it
UNIT_TIMEOUT_S = 60  # of a whole look: its units have the store's own, and a slow claim ends by itself
NEVER_US = 1 << 62


@dataclass(slots=True)
class Room:
    """How much more may be claimed.  open: tracks with room.  exclude, full, most_of: what `Queue.claim` takes.

    Only what leaves at a pace has a bound of its own: it would stand ready until its leases are too old, and others
    that are idle have room for a thousand.
    """

    room: int = 0
    open: list[Track] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    full: list[tuple[str, str]] = field(default_factory=list)
    most_of: dict[str, int] = field(default_factory=dict)


class Scheduler:
    """`run` until `stop`; `wake` when there may be something to claim.

    tracks: all tracks now; take: puts claimed jobs into their lanes.  spare: how many jobs may be claimed for routes
    that have no track yet.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        tracks: Callable[[], Iterable[Track]],
        take: Callable[[Sequence[Job]], None],
        now_us: Callable[[], int],
        spare: Callable[[], int] = lambda: 0,
    ) -> None:
        self._spare = spare
        self._queue = queue
        self._tracks = tracks
        self._take = take
        self._now_us = now_us
        self._event = trio.Event()
        self._stopping = trio.Event()
        self._stopped = trio.Event()
        self._nap: trio.CancelScope | None = None
        self._noted_us = NEVER_US
        self._backoff_s = 0.0
        self.is_looking = False  # what it finds may be older than what is committed now

    def wake(self) -> None:
        """Look now.  Cheap, and harmless when nothing is there."""
        self._event.set()

    def note_due(self, due_us: int) -> None:
        """Something will be due then: look no later than that."""
        self._noted_us = min(self._noted_us, due_us)
        if self._nap is not None:
            self._nap.deadline = min(self._nap.deadline, trio.current_time() + self._until(due_us))

    def store_failed(self) -> None:
        """Somebody found the store unavailable: claims pause for a moment."""
        self._backoff_s = self._backoff_s or FIRST_BACKOFF_S

    async def stop(self) -> None:
        """No more claims.  Returns when a claim under way has ended; what it brought was taken."""
        self._stopping.set()
        self.wake()
        await self._stopped.wait()

    async def run(self) -> None:
        """Claim and sleep.  When cancelled a claim under way is finished first (bounded), so that no lease is lost."""
        try:
            is_time = False
            while not self._stopping.is_set():
                self._event = trio.Event()  # before looking, so that no wake-up falls between
                self._noted_us = NEVER_US
                sleep_s = await self._look(patient=is_time)
                if self._stopping.is_set():
                    break
                is_time = await self._sleep(sleep_s)
                if self._backoff_s:
                    with trio.move_on_after(self._backoff_s):  # wake-ups do not shorten it: the store is sick
                        await self._stopping.wait()
        finally:
            self._stopped.set()

    async def _sleep(self, seconds: float) -> bool:
        """Until something is due (True), or somebody wakes us."""
        with trio.move_on_after(seconds) as self._nap:
            await self._event.wait()
        is_time, self._nap = self._nap.cancelled_caught, None
        return is_time

    def _until(self, due_us: int) -> float:
        """How many seconds to sleep for what is due later: what falls due in a moment is claimed together."""
        return max((due_us - self._now_us()) / 1_000_000, TOGETHER_S)

    async def _look(self, *, patient: bool) -> float:
        """Claim what there is room for; how many seconds to sleep then.  patient: it is only time for something."""
        self.is_looking = True
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + UNIT_TIMEOUT_S):
                sleep_s = await self._claim_all(patient=patient)
                self._backoff_s = 0.0
                return sleep_s
        except StoreUnavailable:
            pass
        finally:
            self.is_looking = False
        self._backoff_s = min(max(2 * self._backoff_s, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
        log.warning("store_unavailable", doing="claim", again_in_s=self._backoff_s)
        return 0.0

    async def _claim_all(self, *, patient: bool) -> float:
        while True:
            found = self._survey(trio.current_time())
            if not found.room:
                return LOOK_AGAIN_S
            limit = min(found.room, CLAIM_LIMIT)
            calm = patient and not any(track.is_behind for track in found.open)
            jobs, due_us = await self._queue.claim(
                limit, exclude=found.exclude, full=found.full, most_of=found.most_of, patient=calm
            )
            more = len(jobs) >= limit
            taken = Counter(job.route for job in jobs if job.route in found.most_of)
            if more:
                self._take(jobs)
            else:
                await self._hand_out(jobs)
            now = trio.current_time()
            for track in found.open:
                name = track.route.name
                track.note_behind(now, behind=more or taken[name] >= found.most_of.get(name, CLAIM_LIMIT))
            if self._stopping.is_set():
                return 0.0
            if more:
                continue
            if due_us is None or due_us > self._noted_us:
                due_us = self._noted_us
            if due_us > self._now_us():
                return min(self._until(due_us), LOOK_AGAIN_S)
            return 0.0 if jobs else SKIPPED_S

    async def _hand_out(self, jobs: Sequence[Job]) -> None:
        """Retries a little apart, unless somebody wants to look again; what was never tried at once.

        Under load fresh mail is left to the store when there is no room for it, and the claims that fetch it are what
        keeps the workers busy.
        """
        fresh: list[Job] = []
        retries: list[Job] = []
        for job in jobs:
            (retries if any(r.attempts for r in job.recipients) else fresh).append(job)
        if fresh:
            self._take(fresh)
        rest = iter(retries)
        try:
            for n, job in enumerate(rest, 1):
                self._take([job])
                if n < len(retries):
                    with trio.move_on_after(min(APART_S, ALL_APART_S / len(retries))):
                        await self._event.wait()
        finally:
            self._take(list(rest))  # none, unless the time of this look is over: they are leased, nobody else has them

    def _survey(self, now: float) -> Room:
        found = Room(self._spare())
        for track in self._tracks():
            room, full = track.survey(now)
            if room:
                found.room += room
                found.open.append(track)
                found.full += full
                if track.pace is not None:
                    found.most_of[track.route.name] = room
            else:
                track.note_full()
                found.exclude.append(track.route.name)
        return found
