# SPDX-License-Identifier: Apache-2.0
"""One route at work: what waits for it here, how many work on it, its kept connections, how it is doing.

A lane lets more attempts run at once while they go well, and fewer when the *next hop* (not a message) gives trouble:
halved at each trouble, one more at each success.  After three troubles in a row it pauses, longer each time, and then
tries one.  So a dead next hop holds one worker, not all of them, and mail that waits for it has no attempts wasted.
"""

from __future__ import annotations

import ssl
from collections import deque

from hepmaild.delivery.connections import Connection, make_tls_context
from hepmaild.delivery.job import Job
from hepmaild.delivery.route import Route

TROUBLES_BEFORE_PAUSE = 3
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
READY_FACTOR = 16
READY_EXTRA = 1000  # bounded by READY_OCTETS of the pool too: what stands here is never read from the store
PLAIN_FOR_S = 600.0


class Lane:
    """See the module's page.  Times are Trio's clock.

    cap: the most attempts at once; allowed: the most just now; active: how many there are.  is_behind: the store may
    hold due work for it that was not claimed.
    """

    def __init__(self, route: Route, cap: int) -> None:
        self.route = route
        self.cap = cap
        self.allowed = cap
        self.active = 0
        self.listed = False  # whether it stands in the pool's line of runnable lanes
        self.ready: deque[tuple[Job, float]] = deque()
        self.kept: list[Connection] = []
        self.is_behind = False
        self.paused_until = 0.0
        self.plain_until = 0.0  # opportunistic only: no TLS until then, since a handshake failed
        self._troubles = 0
        self._pauses = 0
        self._context: ssl.SSLContext | None = None

    def tls_context(self) -> ssl.SSLContext:
        """Made at first use, since it reads files.  Raises OSError on a bad `tls_ca`."""
        if self._context is None:
            self._context = make_tls_context(self.route)
        return self._context

    def replace_route(self, route: Route, cap: int) -> None:
        """New settings: kept connections no longer fit."""
        self.cap = cap
        self.allowed = min(max(self.allowed, 1), cap)
        if route != self.route:
            self.route = route
            self._context = None
            self.plain_until = 0.0
            self._troubles = self._pauses = 0
            self.paused_until = 0.0

    def has_work(self, now: float) -> bool:
        """Whether a worker may take a job here now."""
        return bool(self.ready) and self.active < self.allowed and now >= self.paused_until

    def room(self, now: float) -> int:
        """How many more jobs may wait here."""
        if now < self.paused_until:
            return 0
        return max(0, READY_FACTOR * self.allowed + READY_EXTRA - len(self.ready))

    def is_running_low(self) -> bool:
        """Whether more work should be fetched, if there is any."""
        return len(self.ready) <= self.allowed

    def went_well(self) -> None:
        """An attempt got proper answers, whatever they were."""
        self._troubles = self._pauses = 0
        if self.allowed < self.cap:
            self.allowed += 1

    def had_trouble(self, now: float) -> bool:
        """The next hop could not be reached, or broke off.  True: the lane pauses from now on."""
        self.allowed = max(1, self.allowed // 2)
        self._troubles += 1
        if self._troubles < TROUBLES_BEFORE_PAUSE or now < self.paused_until:
            return False  # attempts that began before the pause do not make it longer
        self.paused_until = now + min(FIRST_PAUSE_S * 2**self._pauses, LONGEST_PAUSE_S)
        self._pauses = min(self._pauses + 1, 10)
        self.allowed = 1
        return True
