# SPDX-License-Identifier: Apache-2.0
"""Things to do at certain times, by one task that sleeps until the next of them (Trio)."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import trio


class Alarms:
    """Times are Trio's clock.  There is no way to take one back: what is called looks whether it still matters."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._earlier = trio.Event()

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call `call` then; it must neither block nor raise."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, call))
        if self._heap[0][1] == self._count:
            self._earlier.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._earlier = trio.Event()
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                heapq.heappop(self._heap)[2]()
            with trio.move_on_at(self._heap[0][0]) if self._heap else trio.CancelScope():
                await self._earlier.wait()
