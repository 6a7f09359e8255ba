# SPDX-License-Identifier: Apache-2.0
"""A connection in memory: two ends, latency, small pieces, and a place where it is cut.

What TCP does is done here too: the first send into a cut connection succeeds and is lost, later ones fail; what arrived
before the cut can still be read.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio


@dataclass(frozen=True)
class Cut:
    """Where a connection breaks: after so many octets in a direction.  reset: the end looks like an error, not EOF."""

    to_server: float = math.inf
    to_client: float = math.inf
    reset: bool = False


class End(trio.abc.Stream):
    """One end of a wire.  on_send: asked before each send of this end; may raise."""

    def __init__(self, latency_s: float, limit: float, *, fragments: bool, dice: random.Random) -> None:
        self.peer: End
        self.on_send: Callable[[bytes], None] | None = None
        self._latency_s = latency_s
        self._left = limit  # octets that this end may still send
        self._fragments = fragments
        self._dice = dice
        self._inbox: deque[tuple[float, bytes]] = deque()
        self._over_at = math.inf  # when the end arrives
        self._reset = False
        self._closed = False
        self._lost = False  # what is sent goes nowhere
        self._sent_into_nothing = False
        self._lot = trio.lowlevel.ParkingLot()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError
        octets = bytes(data)
        if self.on_send is not None:
            self.on_send(octets)
        if self._lost or self.peer._closed:
            if self._sent_into_nothing or self._reset:
                raise trio.BrokenResourceError
            self._sent_into_nothing = True
            return
        self.put(octets)

    def put(self, octets: bytes) -> None:
        """Send as much as the cut lets through."""
        if len(octets) >= self._left:
            octets = octets[: int(self._left)]
            self._deliver(octets)
            self.cut()
            return
        self._left -= len(octets)
        self._deliver(octets)

    def _deliver(self, octets: bytes) -> None:
        if octets:
            self.peer._inbox.append((trio.current_time() + self._latency_s, octets))
            self.peer._lot.unpark_all()

    def cut(self, *, reset: bool = False) -> None:
        """The connection breaks for both, after what is on its way."""
        for end in (self, self.peer):
            end._lost = True
            end._reset = end._reset or reset
            end._over_at = min(end._over_at, trio.current_time() + end.peer._latency_s)
            end._lot.unpark_all()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            now = trio.current_time()
            if self._inbox and self._inbox[0][0] <= now:
                return self._take(max_bytes or 65_536)
            if not self._inbox and self._over_at <= now:
                if self._reset:
                    raise trio.BrokenResourceError
                return b""
            ready = self._inbox[0][0] if self._inbox else self._over_at
            with trio.move_on_at(ready):
                await self._lot.park()

    def _take(self, most: int) -> bytes:
        at, octets = self._inbox.popleft()
        if self._fragments:
            most = min(most, self._dice.choice((1, 2, 7, 60)))
        if len(octets) > most:
            self._inbox.appendleft((at, octets[most:]))
            return octets[:most]
        return octets

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close this end; the other one reads what is on its way, then the end."""
        if not self._closed:
            self._closed = True
            self._lot.unpark_all()
            peer = self.peer
            peer._over_at = min(peer._over_at, trio.current_time() + self._latency_s)
            peer._lot.unpark_all()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    @property
    def is_closed(self) -> bool:
        """Whether this end was closed here."""
        return self._closed


def make_wire(dice: random.Random, latency_s: float, cut: Cut, *, fragments: bool) -> tuple[End, End]:
    """(the client's end, the server's end)."""
    client = End(latency_s, cut.to_server, fragments=fragments, dice=dice)
    server = End(latency_s, cut.to_client, fragments=False, dice=dice)
    client.peer, server.peer = server, client
    return client, server
