# SPDX-License-Identifier: Apache-2.0
"""What waits, and where it goes: lanes and places.

A *lane* holds the ready work of one (route, destination).  A *place* is what is delivered to: the next hop of a route,
or, on routes of kind `mx`, one set of MX hosts, which many destinations may share.  Connections, how many attempts run
at once, and pauses belong to the place.

A place lets more attempts run at once while they go well, and fewer when *it* (not a message) gives trouble: halved at
each trouble, one more at each success.  After three troubles in a row it pauses, longer each time, and then tries one.
So a dead place holds one worker, not all of them, and mail that waits for it has no attempts wasted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from hepmaild.delivery.connections import Connection
from hepmaild.delivery.job import Job
from hepmaild.delivery.route import Host

if TYPE_CHECKING:
    from hepmaild.delivery.track import Track

TROUBLES_BEFORE_PAUSE = 3
PAUSES_OF_ONE_AWAY = 5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
LONGEST_PAUSE_MX_S = 120.0  # there are many, and each try at a dead one costs somebody's attempt
PLAIN_FOR_S = 600.0
AVOID_FIRST_S = 30.0
AVOID_LONGEST_S = 600.0
MAX_HOSTS_NOTED = 32


class Standing(IntEnum):
    """What is known of a place; decides how many workers all places of its kind may hold."""

    PROVEN = 0
    FRESH = 1  # nothing came of it yet
    TROUBLED = 2  # its last attempt failed for its own fault


class Lane:
    """destination: "" where the route has one next hop.  ready: jobs, and when their leases began (Trio's clock).

    place: where it delivers to.  is_behind: the store may hold due work for it that was not claimed.  in_turn: whether
    it stands in its place's line, which it does as long as it has ready work.
    """

    __slots__ = ("active", "destination", "in_turn", "is_behind", "place", "ready")

    def __init__(self, destination: str, place: Place) -> None:
        self.destination = destination
        self.place = place
        self.ready: deque[tuple[Job, float]] = deque()
        self.active = 0
        self.in_turn = False
        self.is_behind = False

    def is_running_low(self) -> bool:
        """Whether more work should be fetched, if there is any."""
        return len(self.ready) <= self.place.allowed


class Place:
    """See the module's page.  Times are Trio's clock.

    key: what the resolver calls it.  cap: the most attempts at once; allowed: the most just now; active: how many there
    are.  turn: lanes with ready work.  listed: whether it stands in the track's line (or is held back from it).
    """

    __slots__ = (
        "_down",
        "_pauses",
        "_troubles",
        "active",
        "allowed",
        "cap",
        "kept",
        "key",
        "lanes",
        "lax_until",
        "listed",
        "longest_pause_s",
        "paused_until",
        "plain_until",
        "standing",
        "track",
        "turn",
    )

    def __init__(self, track: Track, key: str, cap: int, allowed: int, longest_pause_s: float) -> None:
        self.track = track
        self.key = key
        self.cap = cap
        self.allowed = allowed
        self.active = 0
        self.lanes = 0
        self.turn: deque[Lane] = deque()
        self.listed = False
        self.kept: list[Connection] = []
        self.standing = Standing.FRESH
        self.longest_pause_s = longest_pause_s
        self.paused_until = 0.0
        self.plain_until: dict[str, float] = {}  # opportunistic only: no TLS with that host until then
        self.lax_until: dict[str, float] = {}  # MTA-STS testing only: its certificate is not good, as was seen lately
        self._down: dict[str, tuple[float, float]] = {}  # by host: not tried before, and for how long that was
        self._troubles = 0
        self._pauses = 0

    def can_start(self, now: float) -> bool:
        """Whether a worker may take a job here now."""
        return bool(self.turn) and self.active < self.allowed and now >= self.paused_until

    @property
    def is_in_trouble(self) -> bool:
        """Whether its last attempt failed for its own fault."""
        return self._troubles > 0

    @property
    def is_away(self) -> bool:
        """Whether one pause after another was in vain, for a quarter of a minute at least; also while it is tried."""
        return self._pauses >= PAUSES_OF_ONE_AWAY

    def went_well(self) -> None:
        """An attempt got proper answers, whatever they were."""
        self._troubles = self._pauses = 0
        self.standing = Standing.PROVEN
        if self.allowed < self.cap:
            self.allowed += 1

    def had_trouble(self, now: float) -> bool:
        """It could not be reached, or broke off.  True: the place pauses from now on."""
        self.allowed = max(1, self.allowed // 2)
        self.standing = Standing.TROUBLED
        self._troubles += 1
        if self._troubles < TROUBLES_BEFORE_PAUSE or now < self.paused_until:
            return False  # attempts that began before the pause do not make it longer
        self.paused_until = now + min(FIRST_PAUSE_S * 2**self._pauses, self.longest_pause_s)
        self._pauses = min(self._pauses + 1, 10)
        self.allowed = 1
        return True

    def start_over(self, cap: int) -> None:
        """Other settings: what was learned no longer counts."""
        self.plain_until.clear()
        self.lax_until.clear()
        self._down.clear()
        self._troubles = self._pauses = 0
        self.standing = Standing.FRESH
        self.paused_until = 0.0
        self.limit(cap)

    def limit(self, cap: int) -> None:
        """Another cap."""
        self.cap = cap
        self.allowed = min(max(self.allowed, 1), cap)

    # Hosts: which one first

    def order(self, hosts: Sequence[Host], now: float) -> Sequence[Host]:
        """The hosts in the order to try: those that failed lately come last.

        One whose time of avoidance is over is tried again in its place, by one attempt: the others avoid it until that
        one knows.
        """
        if not self._down or len(hosts) == 1:
            return hosts
        good, bad = [], []
        for host in hosts:
            until, span_s = self._down.get(host.address, (0.0, 0.0))
            if now < until:
                bad.append((until, host))
                continue
            good.append(host)
            if span_s:
                self._down[host.address] = (now + span_s, span_s)
        return [*good, *(host for _, host in sorted(bad, key=lambda pair: pair[0]))]

    def host_failed(self, host: Host, now: float) -> None:
        """It gave no session: avoid it for a while, longer each time."""
        _, span_s = self._down.get(host.address, (0.0, 0.0))
        span_s = min(2 * span_s, AVOID_LONGEST_S) if span_s else AVOID_FIRST_S
        if host.address not in self._down and len(self._down) >= MAX_HOSTS_NOTED:
            del self._down[next(iter(self._down))]
        self._down[host.address] = (now + span_s, span_s)

    def host_works(self, host: Host) -> None:
        """It gave a session."""
        if self._down:
            self._down.pop(host.address, None)

    def go_plain(self, host: Host, now: float) -> None:
        """Its TLS does not work: none for a while (only where clear text is allowed)."""
        _note(self.plain_until, host, now + PLAIN_FOR_S)

    def go_lax(self, host: Host, now: float) -> None:
        """Its certificate is not good, which an MTA-STS policy in mode testing allows: not looked at for a while."""
        _note(self.lax_until, host, now + PLAIN_FOR_S)


def _note(until: dict[str, float], host: Host, when: float) -> None:
    if len(until) >= MAX_HOSTS_NOTED:
        until.clear()
    until[host.address] = when
