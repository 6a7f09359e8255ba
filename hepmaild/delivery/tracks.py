# SPDX-License-Identifier: Apache-2.0
"""All tracks of a pool: those of the settings' routes, and, made when they are needed, those of accounts' own servers
and of chaos keys.

Own servers are many, and strangers': together they hold three quarters of the workers and half of what may stall, at
most, so that however many of them hang, the service's own routes go on.  A track of one that has nothing to do is
forgotten once there are many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, ValuesView
from dataclasses import replace

import trio

from hepmaild.delivery.connections import Connection
from hepmaild.delivery.hops import Resolve
from hepmaild.delivery.route import OwnWays, Route, chaos_route, missing_route
from hepmaild.delivery.track import MISSING_S, Contexts, Track
from hepmaild.mail.chaos import is_chaos
from hepmaild.own_routes import is_own, label_of

MAX_OWN = 1000  # tracks of own servers that are remembered although they have nothing to do
CHAOS_SHARE = 8  # each kind of chaos has this part of the workers: its keys test, others work
SPARE = 64  # jobs that may be claimed for own servers that have no track yet


class Tracks:
    """workers: how many there are.  resolve, resolve_for, own: see `DeliveryPool`."""

    def __init__(
        self,
        workers: int,
        resolve: Resolve | None,
        resolve_for: Callable[[Route], Resolve] | None,
        own: OwnWays | None,
    ) -> None:
        self._workers = workers
        self._resolve = resolve
        self._resolve_for = resolve_for
        self._own = own
        self._by_name: dict[str, Track] = {}
        self._own_count = 0
        self._own_busy = 0  # workers that own servers hold
        self._own_stalled = 0
        self._held: deque[Track] = deque()  # own ones that wait for others of their kind; they stay `listed`
        self._contexts: Contexts = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def values(self) -> ValuesView[Track]:
        """Every track."""
        return self._by_name.values()

    def get(self, name: str) -> Track | None:
        """The track of a route; None: nobody knows the route."""
        track = self._by_name.get(name)
        if track is None and self._own is not None and is_own(name):
            track = self._make_own(self._own, name)
        if track is None and (route := chaos_route(name)) is not None:
            track = self._by_name[name] = Track(route, max(1, self._workers // CHAOS_SHARE))
        return track

    def get_or_missing(self, name: str) -> Track:
        """The track of a route that something was claimed for; of one that is not (or no longer) known one that puts
        it off, for which no more is claimed then."""
        track = self.get(name)
        if track is None:
            track = self._by_name[name] = Track(missing_route(name), 1)
        if track.route.is_missing and not is_own(name):
            track.closed_until = trio.current_time() + MISSING_S
        return track

    def replace_routes(self, routes: Iterable[Route]) -> None:
        """These are the routes of the settings from now on.

        Files with authorities are read anew: they may hold others, and what is kept was judged by those before.
        """
        routes = list(routes)
        self._contexts.clear()
        cap = self._workers if len(routes) <= 1 else max(1, self._workers // 2)
        for route in routes:
            track = self._by_name.get(route.name)
            if track is None:
                track = self._by_name[route.name] = Track(route, cap, contexts=self._contexts)
            else:
                track.replace_route(route, cap)
            track.resolve = self._resolve_for(route) if self._resolve_for and track.is_mx else self._resolve
        for name in self._by_name.keys() - {route.name for route in routes}:
            track = self._by_name[name]
            if is_own(name) and self._own is not None:
                track.replace_route(replace(track.route), track.cap)  # equal, but its connections are another's
            elif chaos_route(name) is None:
                track.replace_route(missing_route(name), 1)

    def figures(self) -> dict[str, tuple[int, int, int, int]]:
        """See `DeliveryPool.figures`."""
        now = trio.current_time()
        found: dict[str, tuple[int, int, int, int]] = {}
        for name, track in self._by_name.items():
            before = found.get(label_of(name), (0, 0, 0, 0))
            found[label_of(name)] = (
                before[0] + track.active,
                before[1] + track.ready,
                before[2] + sum(len(place.kept) for place in track.places.values()),
                before[3] + sum(now < place.paused_until for place in track.places.values()),
            )
        return found

    def take_idle(self, too_old: float) -> tuple[list[Connection], bool]:
        """The connections that nobody keeps, or that are kept since before `too_old`; whether others are kept."""
        old: list[Connection] = []
        is_more = False
        for track in self._by_name.values():
            old += track.lost
            track.lost = []
            for place in [place for place in track.places.values() if place.kept]:
                old += [kept for kept in place.kept if kept.idle_since < too_old]
                place.kept = [kept for kept in place.kept if kept.idle_since >= too_old]
                track.retire(place)
                is_more = is_more or bool(place.kept)
        return old, is_more

    def take_all(self) -> list[Connection]:
        """Every connection that is not in use."""
        found: list[Connection] = []
        for track in self._by_name.values():
            found += track.lost
            track.lost = []
            for place in track.places.values():
                found += place.kept
                place.kept = []
        return found

    # Own servers

    def spare(self) -> int:
        """How many jobs may be claimed beside those that tracks have room for."""
        return SPARE if self._own is not None and self._own.exist else 0

    def _make_own(self, own: OwnWays, name: str) -> Track:
        if self._own_count >= MAX_OWN:
            self._forget_idle()
        self._own_count += 1
        track = Track(own.placeholder(name), max(1, self._workers // 4), contexts=self._contexts)
        self._by_name[name] = track
        return track

    def _forget_idle(self) -> None:
        now = trio.current_time()
        for name in [name for name, track in self._by_name.items() if is_own(name) and track.is_idle(now)]:
            del self._by_name[name]
            self._own_count -= 1

    def must_wait(self, track: Track) -> bool:
        """Whether a track whose turn it is stands back, since own servers hold their share; it stays `listed`."""
        if not is_own(track.route.name) or self._own_busy < max(1, self._workers * 3 // 4):
            return False
        self._held.append(track)
        return True

    def begin(self, track: Track) -> None:
        """An attempt begins."""
        self._own_busy += is_own(track.route.name)

    def end(self, track: Track, *, stalled: bool) -> Track | None:
        """An attempt ended; the track that stood back for it, to be listed again."""
        if not is_own(track.route.name):
            return None
        self._own_stalled -= stalled
        self._own_busy -= not stalled
        return self._next_held()

    def may_stall(self, track: Track, most: int) -> bool:
        """Whether one more attempt of the track may stall; most: how many there may be in all."""
        if is_own(track.route.name):
            return self._own_stalled < most // 2  # and no more of one than its track may hold
        is_alone = sum(not is_chaos(name) for name in self._by_name) == 1
        return track.stalled < (most if is_alone else most // 2)

    def stall(self, track: Track) -> Track | None:
        """An attempt stalled; the track that stood back for it, to be listed again."""
        if not is_own(track.route.name):
            return None
        self._own_stalled += 1
        self._own_busy -= 1
        return self._next_held()

    def _next_held(self) -> Track | None:
        if not self._held:
            return None
        track = self._held.popleft()
        track.listed = False
        return track
