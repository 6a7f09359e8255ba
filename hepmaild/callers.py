# SPDX-License-Identifier: Apache-2.0
"""Callers that wait for the first attempt at their message, and those of them that wait in vain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import trio

from hepmaild.delivery.job import Outcome, Result
from hepmaild.errors import StoreUnavailable
from hepmaild.receipts import ENDINGS, Vain
from hepmaild.storage.store import Store
from hepmaild.storage.untried import Untried, untried

LOOK_AT_ONCE = 500  # messages of one question


class FirstAttempt:
    """What a caller waits for: the outcomes of the first attempt at each destination of its message.

    done: every destination was heard of once, be it only that nobody works on it now.  outcomes: in the order of the
    recipients, of those destinations that were attempted, or will never be.  vain: why another one is not tried soon.
    """

    __slots__ = ("_missing", "done", "outcomes", "vain")

    def __init__(self, destinations: Collection[str]) -> None:
        self.done = trio.Event()
        self.outcomes: tuple[Outcome, ...] = ()
        self.vain: Vain | None = None
        self._missing = set(destinations)

    def hear(self, destination: str, outcomes: tuple[Outcome, ...] = ()) -> None:
        """The first attempt at a destination was made, or will not be soon (no outcomes)."""
        if destination not in self._missing:
            return
        self._missing.discard(destination)
        if outcomes:
            both = (*self.outcomes, *outcomes)
            self.outcomes = both if not self.outcomes else tuple(sorted(both, key=lambda o: o.recipient_id))
        if not self._missing:
            self.done.set()


class Callers:
    """Those of this process.  owner: its name in leases.  is_paused: whether nobody is to work on this now."""

    def __init__(self, store: Store, owner: str, is_paused: Callable[[str, str], bool]) -> None:
        self._store = store
        self._owner = owner
        self._is_paused = is_paused
        self._claims = True
        self._waiting: dict[str, FirstAttempt] = {}

    def expect(self, message_id: str, destinations: Collection[str]) -> FirstAttempt:
        """A caller waits for the first attempt at every destination.  `forget` it afterwards."""
        waiter = self._waiting[message_id] = FirstAttempt(destinations)
        return waiter

    def forget(self, message_id: str) -> None:
        """The caller waits no longer."""
        self._waiting.pop(message_id, None)

    def find(self, message_id: str) -> FirstAttempt | None:
        """Who waits for this message."""
        return self._waiting.get(message_id)

    def nobody_there(self, message_id: str, destination: str, vain: Vain | None = None) -> None:
        """Nothing goes to this destination, or not soon: a caller that waits need not wait for it."""
        waiter = self._waiting.get(message_id)
        if waiter is not None:
            waiter.vain = waiter.vain or vain
            waiter.hear(destination)

    async def lease_lost(self, message_id: str, destination: str) -> None:
        """An attempt of this process found that its lease is another's, or nobody's."""
        if message_id in self._waiting:
            await self._look([message_id])
            self.nobody_there(message_id, destination)

    async def look(self) -> None:
        """Somebody changed the queue: tell those whose message is not tried now, or never."""
        await self._look(list(self._waiting))

    async def no_more_claims(self) -> None:
        """This process begins with nothing any more: who waits for what nobody has is told."""
        self._claims = False
        await self.look()

    async def _look(self, ids: Sequence[str]) -> None:
        with suppress(StoreUnavailable):  # they wait as long as they would have
            for n in range(0, len(ids), LOOK_AT_ONCE):
                for found in await self._store.read(untried, ids[n : n + LOOK_AT_ONCE]):
                    self._judge(found)

    def _judge(self, found: Untried) -> None:
        waiter = self._waiting.get(found.message_id)
        if waiter is None:
            return
        states = set(found.states.values())
        if states <= ENDINGS.keys():
            ended = [Outcome(n, Result.FAILED, ENDINGS[state]) for n, state in found.states.items()]
            waiter.hear(found.destination, tuple(ended))
        elif states <= {"held", *ENDINGS}:
            self.nobody_there(found.message_id, found.destination, Vain.HELD)
        elif found.owner is None and self._is_paused(found.route, found.destination):
            self.nobody_there(found.message_id, found.destination, Vain.PAUSED)
        elif found.owner != self._owner and (found.owner is not None or not self._claims):
            # Another process does it, and is not heard here; or whoever claims it will be another.
            self.nobody_there(found.message_id, found.destination)
