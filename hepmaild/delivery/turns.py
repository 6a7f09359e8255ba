# SPDX-License-Identifier: Apache-2.0
"""So many at once, of which those that take long count apart (Trio)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")


class Turns:
    """`quick` at once.  Who takes longer than `patience_s` makes room for the next one, as long as those are not more
    than `slow`: so what nobody answers keeps nobody else waiting, up to a bound.
    """

    def __init__(self, quick: int, slow: int, patience_s: float) -> None:
        self._quick = trio.CapacityLimiter(quick)
        self._slow = trio.CapacityLimiter(slow)
        self._patience_s = patience_s

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns, which begins when it is its turn.  Cancel-safe; what it raises comes in a group."""
        holder = object()
        await self._quick.acquire_on_behalf_of(holder)
        held = [self._quick]
        found: list[T] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._make_room, holder, held)
                found.append(await work())
                nursery.cancel_scope.cancel()
        finally:
            held[0].release_on_behalf_of(holder)
        return found[0]

    async def _make_room(self, holder: object, held: list[trio.CapacityLimiter]) -> None:
        await trio.sleep(self._patience_s)
        await self._slow.acquire_on_behalf_of(holder)
        held[0].release_on_behalf_of(holder)
        held[0] = self._slow
