# SPDX-License-Identifier: Apache-2.0
"""How the store and the queue are, for whoever watches: read when somebody asks, and no more often than is worth it.

Each figure has a task of its own that sleeps until it is asked for.  What took long is not read again soon: its share
of the time is bounded, so that a million waiting messages cost no more than ten.  Whoever asks waits a moment at most,
and otherwise gets what was read last.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from hepmaild.errors import StoreUnavailable
from hepmaild.storage import gauges
from hepmaild.storage.gauges import Entries, Recipients
from hepmaild.storage.store import Store

T = TypeVar("T")

PATIENCE_S = 2.0
LONGEST_PAUSE_S = 1800.0


class Figure(Generic[T]):
    """A value that `read` brings.

    every_s: the least time between two reads.  share: how much of the time may be spent on reading.
    value: the last one, None when there is none or the last read failed; taken_at: when it came (Trio's clock).
    """

    def __init__(self, read: Callable[[], Awaitable[T]], *, every_s: float, share: float) -> None:
        self.value: T | None = None
        self.taken_at = 0.0
        self._read = read
        self._every_s = every_s
        self._share = share
        self._next_at = 0.0
        self._wanted = trio.Event()
        self._done = trio.Event()

    @property
    def age_s(self) -> float:
        """How old the value is."""
        return trio.current_time() - self.taken_at

    async def run(self) -> None:
        """Read whenever it is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            began = trio.current_time()
            try:
                self.value = await self._read()
            except StoreUnavailable:
                self.value = None
            self.taken_at = trio.current_time()
            pause_s = min((self.taken_at - began) / self._share, LONGEST_PAUSE_S)
            self._next_at = self.taken_at + max(self._every_s, pause_s)
            self._wanted = trio.Event()
            done, self._done = self._done, trio.Event()
            done.set()

    def forget(self) -> None:
        """The next question is worth a read."""
        self.value = None
        self._next_at = 0.0

    def expire(self) -> None:
        """The next question is worth a read; until then the value is what it was."""
        self._next_at = 0.0

    async def ask(self, until: float) -> bool:
        """Have it read if that is due, and wait for a read under way, at most `until`.  False: it still runs."""
        if trio.current_time() >= self._next_at:
            self._wanted.set()
        if self._wanted.is_set():
            done = self._done
            with trio.move_on_at(until):
                await done.wait()
            return done.is_set()
        return True


@dataclass(frozen=True, slots=True)
class Count:
    """What was found.  The queue's parts are None while the store is down or has not answered yet; ages in seconds."""

    is_up: bool
    entries: dict[str, Entries] | None = None
    entries_age_s: float = 0.0
    recipients: dict[str, Recipients] | None = None
    recipients_age_s: float = 0.0


class Census:
    """`run` it; `take` a count.  now_us: the process's clock."""

    def __init__(self, store: Store, now_us: Callable[[], int]) -> None:
        async def probe() -> bool:
            await store.check()
            return True

        async def entries() -> dict[str, Entries]:
            return await store.read(gauges.entries, now_us())

        async def recipients() -> dict[str, Recipients]:
            return await store.read(gauges.recipients, now_us())

        self._up: Figure[bool] = Figure(probe, every_s=1, share=0.5)
        self._entries: Figure[dict[str, Entries]] = Figure(entries, every_s=4, share=0.02)
        self._recipients: Figure[dict[str, Recipients]] = Figure(recipients, every_s=10, share=0.005)

    async def run(self) -> None:
        """Until cancelled; idle unless somebody asks."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._up.run)
            nursery.start_soon(self._entries.run)
            nursery.start_soon(self._recipients.run)

    async def take(self) -> Count:
        """A count, within `PATIENCE_S`.  Never raises because of the store.  Cancel-safe."""
        until = trio.current_time() + PATIENCE_S
        answered = await self._up.ask(until)
        if not answered or self._up.value is None:
            self._entries.forget()
            self._recipients.forget()
            return Count(is_up=False)
        await self._entries.ask(until)
        await self._recipients.ask(until)
        return Count(True, self._entries.value, self._entries.age_s, self._recipients.value, self._recipients.age_s)
