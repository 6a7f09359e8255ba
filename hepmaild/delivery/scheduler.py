# SPDX-License-Identifier: Apache-2.0
"""Fetches due work from the store, no more than can be worked on (Trio).

It sleeps until the next thing is due, a lane has room again or a pause ends, and otherwise does nothing: an idle daemon
asks the store once a minute, in case another process left something behind and died.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import structlog
import trio

from hepmaild.delivery.job import Job, Queue
from hepmaild.delivery.lane import Lane
from hepmaild.errors import StoreUnavailable

log = structlog.get_logger()

CLAIM_LIMIT = 256
LOOK_AGAIN_S = 60.0
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 10.0
SKIPPED_S = 0.5  # something is due but could not be claimed: others hold it
UNIT_TIMEOUT_S = 60  # the store has its own, shorter one


class Scheduler:
    """`run` until `stop`; `wake` when there may be something to claim.

    lanes: all lanes now; take: puts claimed jobs into their lanes; resumed: a lane's pause is over.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        lanes: Callable[[], Iterable[Lane]],
        take: Callable[[Sequence[Job]], None],
        resumed: Callable[[Lane], None],
        now_us: Callable[[], int],
    ) -> None:
        self._queue = queue
        self._lanes = lanes
        self._take = take
        self._resumed = resumed
        self._now_us = now_us
        self._event = trio.Event()
        self._stopping = trio.Event()
        self._stopped = trio.Event()
        self._sleeps_until_us = 0
        self._backoff_s = 0.0

    def wake(self) -> None:
        """Look now.  Cheap, and harmless when nothing is there."""
        self._event.set()

    def note_due(self, due_us: int) -> None:
        """Something will be due then: look no later than that."""
        if due_us < self._sleeps_until_us:
            self.wake()

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
            while not self._stopping.is_set():
                self._event = trio.Event()  # before looking, so that no wake-up falls between
                self._sleeps_until_us = 0
                sleep_s = await self._look()
                if self._stopping.is_set():
                    break
                self._sleeps_until_us = self._now_us() + int(sleep_s * 1_000_000)
                with trio.move_on_after(sleep_s):
                    await self._event.wait()
                if self._backoff_s:
                    with trio.move_on_after(self._backoff_s):  # wake-ups do not shorten it: the store is sick
                        await self._stopping.wait()
        finally:
            self._stopped.set()

    async def _look(self) -> float:
        """Claim what there is room for; how many seconds to sleep then."""
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + UNIT_TIMEOUT_S):
                sleep_s = await self._claim_all()
                self._backoff_s = 0.0
                return sleep_s
        except StoreUnavailable:
            pass
        self._backoff_s = min(max(2 * self._backoff_s, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
        log.warning("store_unavailable", doing="claim", again_in_s=self._backoff_s)
        return 0.0

    async def _claim_all(self) -> float:
        while True:
            now = trio.current_time()
            room, open_lanes, full, resume_s = self._survey(now)
            if not room:
                return min(resume_s, LOOK_AGAIN_S)
            limit = min(room, CLAIM_LIMIT)
            jobs = await self._queue.claim(limit, exclude=full)
            if jobs:
                self._take(jobs)
            more = len(jobs) >= limit
            for lane in open_lanes:
                lane.is_behind = more
            if self._stopping.is_set():
                return 0.0
            if more:
                continue
            due_us = await self._queue.next_due_at_us(exclude=full)
            if due_us is None:
                return min(resume_s, LOOK_AGAIN_S)
            due_s = (due_us - self._now_us()) / 1_000_000
            return min(max(due_s, 0.0 if jobs else SKIPPED_S if due_s <= 0 else 0.001), resume_s, LOOK_AGAIN_S)

    def _survey(self, now: float) -> tuple[int, list[Lane], list[str], float]:
        """How much room there is, which lanes have some, the routes without, and in how many seconds a pause ends."""
        room, resume_s = 0, LOOK_AGAIN_S
        open_lanes: list[Lane] = []
        full: list[str] = []
        for lane in self._lanes():
            if lane.paused_until and now >= lane.paused_until:
                lane.paused_until = 0.0
                self._resumed(lane)
            elif lane.paused_until:
                resume_s = min(resume_s, lane.paused_until - now)
            lane_room = lane.room(now)
            if lane_room:
                room += lane_room
                open_lanes.append(lane)
            else:
                lane.is_behind = True  # nobody looks what the store has for it
                full.append(lane.route.name)
        return room, open_lanes, full, resume_s
