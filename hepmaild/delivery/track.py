# SPDX-License-Identifier: Apache-2.0
"""One route at work: its lanes, its places, and how many workers it may hold.

Workers are dealt out in three turns: the tracks take turns, in a track the places that can start something, at a place
the lanes with ready work.  So neither a busy route, nor a busy destination, nor a dead one stands before the others.

Of the workers that a track may hold, places of which nothing is known yet get three quarters and places in trouble one
quarter: however many destinations hang, those that work go on.  Attempts that stalled (see `pool`) do not count.
"""

from __future__ import annotations

import ssl
from collections import deque

from hepmaild.config import RouteKind
from hepmaild.delivery.connections import Connection, make_tls_context
from hepmaild.delivery.hops import Resolve
from hepmaild.delivery.job import Job
from hepmaild.delivery.lane import LONGEST_PAUSE_MX_S, LONGEST_PAUSE_S, Lane, Place, Standing
from hepmaild.delivery.pace import Pace
from hepmaild.delivery.route import Host, Route
from hepmaild.mail.address import destination_of
from hepmaild.own_routes import is_own

READY_FACTOR = 16
READY_EXTRA = 1000  # bounded by READY_OCTETS of the pool too: what stands here is never read from the store
READY_OWN = 50  # instead, for an account's own server: there may be a thousand of them
READY_LANE = 32  # kind mx: in one lane
READY_MX = 2000  # kind mx: in all lanes that can be worked on
STUCK_MX = 512  # kind mx: in lanes whose place pauses
MISSING_S = 60.0  # so long is put off what waits for a route that this process does not know
FIRST_AT_ONCE = 2  # kind mx: a new place begins with so many
MAX_IDLE_PLACES = 1000
MAX_HOMES = 20_000

# By the authorities' file, and whether the certificate must be good.
Contexts = dict[tuple[str, bool], ssl.SSLContext]


class Track:
    """cap: how many workers it may hold.  ready: jobs that stand here.  line: places that may have something to start.

    is_behind: the store may hold due work that was not claimed.  closed_until: nothing more is claimed before that.
    resolve: who finds the hosts of a destination.

    contexts: for TLS, shared by all tracks of a pool: each may hold every authority there is.

    homes: where the mail of a destination went last.  lost: connections that nobody keeps any more; the pool closes
    them.
    """

    def __init__(self, route: Route, cap: int, *, contexts: Contexts | None = None) -> None:
        self.route = route
        self.cap = cap
        self._hosts = route.hosts
        self.pace = Pace(route.messages_per_second) if route.messages_per_second else None
        self.active = 0
        self.stalled = 0
        self.unstalled = [0, 0, 0]  # attempts by the standing of their place
        self.ready = 0
        self.listed = False
        self.resumes_at = 0.0  # the pace: nothing begins before that
        self.is_behind = False
        self.closed_until = 0.0
        self.resolve: Resolve | None = None
        self.lost: list[Connection] = []
        self.lanes: dict[str, Lane] = {}
        self.places: dict[str, Place] = {}
        self.homes: dict[str, str] = {}
        self.line: deque[Place] = deque()
        self.held: tuple[deque[Place], ...] = (deque(), deque(), deque())
        self._idle: dict[str, Place] = {}  # places without lanes, the longest idle first
        self._contexts = {} if contexts is None else contexts
        self._only: Lane | None = None
        self._extra = READY_OWN if is_own(route.name) else READY_EXTRA
        if not self.is_mx:
            self._make_only_lane()

    @property
    def _only_place(self) -> Place | None:
        return self._only.place if self._only is not None else None

    @property
    def is_mx(self) -> bool:
        """Whether each destination goes to its own hosts."""
        return self.route.kind is RouteKind.MX

    def hosts_of(self, route: Route) -> tuple[Host, ...]:
        """Those of the route that an attempt goes by, which need not be the track's any more."""
        return self._hosts if route is self.route else route.hosts

    def tls_context(self, route: Route, *, verified: bool) -> ssl.SSLContext:
        """For a flight's route.  Made at first use, since it reads files.  Raises OSError on a bad `tls_ca`."""
        key = (route.tls_ca, verified)
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = make_tls_context(route, verified=verified)
        return context

    def replace_route(self, route: Route, cap: int) -> None:
        """New settings: kept connections no longer fit, and what was learned may be wrong."""
        self.cap = cap
        was_mx = self.is_mx
        changed = route != self.route
        self.route = route
        if changed:
            self._hosts = route.hosts
            self.pace = Pace(route.messages_per_second) if route.messages_per_second else None
            self.resumes_at = self.closed_until = 0.0
            self.homes.clear()
        for place in self.places.values():
            place_cap = min(cap, route.connections)
            place.start_over(place_cap) if changed else place.limit(place_cap)
        if was_mx != self.is_mx:
            self._change_kind()

    def _change_kind(self) -> None:
        """Everything that is ready moves to lanes of the other kind; attempts under way end where they are."""
        waiting = [entry for lane in self.lanes.values() for entry in lane.ready]
        for place in self.places.values():
            self.lost += place.kept
            place.kept.clear()
            place.turn.clear()
        for lane in self.lanes.values():
            lane.ready.clear()
        self.lanes, self.places, self._idle, self._only = {}, {}, {}, None
        self.ready = 0
        if not self.is_mx:
            self._make_only_lane()
        for job, leased in waiting:
            self.push(job, leased)

    def is_idle(self, now: float) -> bool:
        """Whether nothing would be lost with it."""
        if self.active or self.ready or self.listed or self.lost:
            return False
        return not any(place.kept or now < place.paused_until for place in self.places.values())

    # Lanes and places

    def _make_only_lane(self) -> None:
        cap = min(self.cap, self.route.connections)
        place = self.places[""] = Place(self, "", cap, cap, LONGEST_PAUSE_S)
        place.lanes = 1
        self._only = self.lanes[""] = Lane("", place)

    def lane_of(self, job: Job) -> Lane:
        """The lane of a job, made if there is none."""
        if self._only is not None:
            return self._only
        destination = job_destination(job)
        lane = self.lanes.get(destination)
        if lane is None:
            home = self.homes.get(destination)
            place = self.places.get(home) if home is not None else None
            lane = self.lanes[destination] = Lane(destination, place or self._own_place(destination))
            self._came(lane.place)
        return lane

    def _own_place(self, destination: str) -> Place:
        """Where a lane is while nobody knows where its mail goes: one attempt at a time finds out."""
        key = f"={destination}"
        place = self.places.get(key)
        if place is None:
            place = self.places[key] = Place(self, key, 1, 1, LONGEST_PAUSE_MX_S)
        return place

    @staticmethod
    def is_own(place: Place) -> bool:
        """Whether only one destination can be there."""
        return place.key.startswith("=")

    def join(self, lane: Lane, key: str) -> Place:
        """The lane's mail goes to this place from now on."""
        place = self.places.get(key)
        if place is None:
            cap = min(self.cap, self.route.connections)
            place = self.places[key] = Place(self, key, cap, min(FIRST_AT_ONCE, cap), LONGEST_PAUSE_MX_S)
        self.homes.pop(lane.destination, None)
        if len(self.homes) >= MAX_HOMES:
            del self.homes[next(iter(self.homes))]
        self.homes[lane.destination] = key
        self._move(lane, place)
        return place

    def part(self, lane: Lane) -> Place:
        """The lane's trouble is its own, not that of the place which it shares: it waits apart."""
        place = self._own_place(lane.destination)
        self.homes.pop(lane.destination, None)
        self._move(lane, place)
        return place

    def _move(self, lane: Lane, place: Place) -> None:
        before = lane.place
        if before is place:
            return
        if lane.in_turn:
            before.turn.remove(lane)
            place.turn.append(lane)
        lane.place = place
        self._came(place)
        before.lanes -= 1
        self.retire(before)

    def _came(self, place: Place) -> None:
        place.lanes += 1
        self._idle.pop(place.key, None)

    def leave(self, lane: Lane) -> None:
        """An attempt of the lane ended: forget it when nothing else is there."""
        lane.active -= 1
        if lane is self._only or lane.ready or lane.active:
            return
        if self.lanes.get(lane.destination) is not lane:
            return
        del self.lanes[lane.destination]
        lane.place.lanes -= 1
        self.retire(lane.place)

    def retire(self, place: Place) -> None:
        """Forget a place that no lane goes to, unless there is something to remember; of those only so many."""
        if self.places.get(place.key) is not place:
            self.lost += place.kept  # the route's kind changed meanwhile
            place.kept.clear()
            return
        if place.lanes or place.active or place is self._only_place:
            return
        if not place.is_in_trouble and not place.kept and self.is_own(place):
            self._forget(place)
            return
        self._idle.pop(place.key, None)
        self._idle[place.key] = place
        while len(self._idle) > MAX_IDLE_PLACES:
            self._forget(self._idle[next(iter(self._idle))])

    def _forget(self, place: Place) -> None:
        self._idle.pop(place.key, None)
        self.places.pop(place.key, None)
        self.lost += place.kept
        place.kept.clear()

    # Ready work

    def push(self, job: Job, leased: float) -> Place:
        """Put a job into its lane; its place is to be listed."""
        lane = self.lane_of(job)
        lane.ready.append((job, leased))
        return self._stand(lane)

    def put_back(self, lane: Lane, job: Job, leased: float) -> Place:
        """A job that was taken but cannot be worked on now: it is the next one of its lane."""
        if self.lanes.get(lane.destination) is not lane:
            return self.push(job, leased)  # the route's kind changed meanwhile
        lane.ready.appendleft((job, leased))
        return self._stand(lane)

    def _stand(self, lane: Lane) -> Place:
        self.ready += 1
        place = lane.place
        if not lane.in_turn:
            lane.in_turn = True
            place.turn.append(lane)
        return place

    def next_place(self, now: float) -> Place | None:
        """The place whose turn it is, out of the line; None when none may start anything."""
        if self.active - self.stalled >= self.cap:
            return None
        line = self.line
        while line:
            place = line.popleft()
            standing = place.standing
            if not place.can_start(now):
                place.listed = False
                self._recall()
                continue
            # It may have come into the line with another standing: then what was left for it there is not used.
            self._recall(besides=standing)
            if standing and self.unstalled[standing] >= self.most(standing):
                self.held[standing].append(place)  # it stays `listed`: `free` puts it back
            else:
                place.listed = False
                return place
        return None

    def _recall(self, besides: Standing | None = None) -> None:
        """A place left the line: what it leaves unused is for one that was held back, but not what it takes itself."""
        for standing in (Standing.FRESH, Standing.TROUBLED):
            held = self.held[standing]
            if held and standing is not besides and self.unstalled[standing] < self.most(standing):
                self.line.append(held.popleft())

    def most(self, standing: Standing) -> int:
        """How many workers the places of a standing may hold together."""
        if standing is Standing.PROVEN:
            return self.cap
        return max(1, self.cap // 4 if standing is Standing.TROUBLED else self.cap * 3 // 4)

    def pop(self, place: Place) -> tuple[Lane, Job, float]:
        """The next job of a place: its lanes take turns."""
        turn = place.turn
        lane = turn.popleft()
        job, leased = lane.ready.popleft()
        if lane.ready:
            turn.append(lane)
        else:
            lane.in_turn = False
        self.ready -= 1
        return lane, job, leased

    def begin(self, place: Place, lane: Lane) -> Standing:
        """An attempt begins: it counts from here until `end` and `leave`."""
        standing = place.standing
        self.active += 1
        self.unstalled[standing] += 1
        place.active += 1
        lane.active += 1
        return standing

    def end(self, place: Place, standing: Standing, *, stalled: bool) -> None:
        """An attempt at `place` ended."""
        self.active -= 1
        place.active -= 1
        if stalled:
            self.stalled -= 1
        else:
            self.free(standing)

    def change_place(self, before: Place, after: Place, standing: Standing, *, stalled: bool) -> Standing:
        """An attempt goes on at another place than it began at."""
        before.active -= 1
        after.active += 1
        if not stalled:
            self.unstalled[after.standing] += 1
            self.free(standing)
        self.retire(before)
        return after.standing

    def free(self, standing: Standing) -> None:
        """An attempt no longer counts: places that were held back may come again."""
        self.unstalled[standing] -= 1
        held = self.held[standing]
        if not held:
            return
        room = self.most(standing) - self.unstalled[standing]
        while held and room > 0:
            place = held.popleft()
            if place.standing is standing:
                room -= 1
            self.line.append(place)

    def proved(self, place: Place) -> None:
        """A place that may be held back is proven now."""
        for held in self.held[1:]:
            if place in held:
                held.remove(place)
                self.line.append(place)

    def give_up(self) -> list[Job]:
        """All that stands ready; it is not here any more."""
        jobs = []
        for lane in self.lanes.values():
            jobs += [job for job, _ in lane.ready]
            lane.ready.clear()
            lane.in_turn = False
        for place in self.places.values():
            place.turn.clear()
        self.ready = 0
        return jobs

    # Room

    def survey(self, now: float) -> tuple[int, list[tuple[str, str]]]:
        """How many more jobs may stand here (0: none at all), and the (route, destination) pairs without room."""
        only = self._only
        if only is not None:
            return self._room_of_only(only, now), []
        stuck = 0
        full = []
        for lane in self.lanes.values():
            waiting = len(lane.ready)
            if now < lane.place.paused_until:
                stuck += waiting
            elif waiting < READY_LANE:
                continue
            lane.is_behind = True  # nobody looks what the store has for it
            full.append((self.route.name, lane.destination))
        return max(0, self._paced(READY_MX) - (self.ready - stuck)), full

    def _room_of_only(self, lane: Lane, now: float) -> int:
        if now < lane.place.paused_until or now < self.closed_until:
            return 0
        return max(0, self._paced(READY_FACTOR * lane.place.allowed + self._extra) - len(lane.ready))

    def _paced(self, room: int) -> int:
        """What a limit lets pass in a minute is enough to stand ready."""
        return room if self.pace is None else min(room, 1 + int(60 * self.route.messages_per_second))

    def stuck(self, now: float) -> int:
        """How many jobs stand in lanes whose place pauses."""
        return sum(len(lane.ready) for lane in self.lanes.values() if now < lane.place.paused_until)

    def note_full(self) -> None:
        """Nobody looks what the store has for it."""
        self.is_behind = True
        if self._only is not None:
            self._only.is_behind = True

    def note_behind(self, now: float, *, behind: bool) -> None:
        """What the last claim says of the lanes that had room."""
        self.is_behind = behind
        for lane in self.lanes.values():
            if now >= lane.place.paused_until and (self._only is not None or len(lane.ready) < READY_LANE):
                lane.is_behind = behind

    def hint(self, destination: str, now: float) -> int:
        """How many more jobs for a destination would be worked on soon."""
        lane = self._only
        if lane is not None:
            if not lane.is_behind:
                return self._room_of_only(lane, now)
            # Older mail waits in the store: leave it its place.
            return max(0, lane.place.allowed - len(lane.ready)) if now >= lane.place.paused_until else 0
        if self.ready >= self._paced(READY_MX + STUCK_MX):
            return 0
        lane, home = self._where(destination)
        if home is not None and now < home.paused_until:
            return 0
        waiting = len(lane.ready) if lane is not None else 0
        if self.is_behind or (lane is not None and lane.is_behind):
            return max(0, FIRST_AT_ONCE - waiting)
        return max(0, READY_LANE - waiting)

    def note_left(self, destination: str, now: float) -> bool:
        """Something for a destination was left to the store.  False: nobody need look for it before there is room, and
        somebody will then, at the end of the pause or when the lane runs low."""
        lane, place = self._where(destination)
        if place is not None and now < place.paused_until:
            return False
        if lane is None or lane.is_running_low():
            return True
        lane.is_behind = True
        return False

    def is_away(self, destination: str) -> bool:
        """Whether what is left for a destination has to wait until its next hop is back."""
        place = self._where(destination)[1]
        return place is not None and place.is_away

    def _where(self, destination: str) -> tuple[Lane | None, Place | None]:
        """Its lane, and its place or that at which it was last."""
        lane = self._only or self.lanes.get(destination)
        if lane is not None:
            return lane, lane.place
        return None, self.places.get(self.homes.get(destination, f"={destination}"))

    def needs_more(self, lane: Lane) -> bool:
        """Whether the store may have more, and there is room for it again."""
        if lane.is_behind and lane.is_running_low():
            return True
        return self.is_behind and self._only is None and self.ready < READY_MX // 2


def job_destination(job: Job) -> str:
    """The domain that a job on a route of kind `mx` goes to.

    A job that was accepted when its route was of another kind has none: it goes to its first recipient's.
    """
    return job.destination or destination_of(job.recipients[0].address, RouteKind.MX)
