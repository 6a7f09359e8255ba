# SPDX-License-Identifier: Apache-2.0
"""A bounded cache whose values are made once however many ask for them at the same time (Trio)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flights(Generic[K, V]):
    """size: how many values are kept; the ones made first go first.

    octets: how many these may have together, where somebody else decides how large a value is; octets_of: how many a
    value has.  One that is larger than that is kept alone.

    Nothing runs in the background: the first who asks makes the value, the others wait for it.
    """

    def __init__(self, size: int, octets: int = 0, octets_of: Callable[[V], int] = lambda _: 0) -> None:
        self._size = size
        self._most_octets = octets
        self._octets_of = octets_of
        self._octets = 0
        self._kept: dict[K, tuple[float, V]] = {}
        self._flying: dict[K, trio.Event] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, key: K) -> V | None:
        """The value, if there is one that still holds."""
        found = self._kept.get(key)
        if found is None:
            return None
        if found[0] <= trio.current_time():
            self._drop(key)
            return None
        return found[1]

    async def get(self, key: K, make: Callable[[], Awaitable[tuple[V, float]]]) -> V:
        """The value of `key`; made by `make`, which says until when it holds (Trio's clock).

        Cancelling somebody who waits does nothing to the others; when the one who makes it is cancelled or fails, the
        next of those who wait makes it.  Raises what `make` raises, to the one who called it.
        """
        while True:
            found = self.kept(key)
            if found is not None:
                return found
            flight = self._flying.get(key)
            if flight is None:
                return await self._fly(key, make)
            await flight.wait()

    async def _fly(self, key: K, make: Callable[[], Awaitable[tuple[V, float]]]) -> V:
        landed = self._flying[key] = trio.Event()
        try:
            value, until = await make()
            self._keep(key, value, until)
            return value
        finally:
            del self._flying[key]
            landed.set()

    def _keep(self, key: K, value: V, until: float) -> None:
        octets = self._octets_of(value)
        while self._kept and (len(self._kept) >= self._size or self._octets + octets > self._most_octets):
            self._drop(next(iter(self._kept)))
        self._kept[key] = (until, value)
        self._octets += octets

    def _drop(self, key: K) -> None:
        _, value = self._kept.pop(key)
        self._octets -= self._octets_of(value)

    def forget(self) -> None:
        """Keep nothing of what was made so far."""
        self._kept.clear()
        self._octets = 0
