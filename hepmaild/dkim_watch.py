# SPDX-License-Identifier: Apache-2.0
"""The daemon's watch over DKIM keys: a pending one is used once DNS shows it, the one before it is retired later.

Nothing is asked while no key is pending; it is woken when the command line has made one.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog
import trio

from hepmaild.delivery.answers import Failed
from hepmaild.errors import StoreUnavailable
from hepmaild.mail.dkim_record import judge, record_name
from hepmaild.storage import dkim as rows
from hepmaild.storage.store import Store

log = structlog.get_logger()

LookupTxt = Callable[[str], Awaitable[tuple[str, ...] | Failed]]

TOPIC = "keys"
# The first look is late on purpose: a resolver that was asked too early remembers for a while that there is nothing.
FIRST_LOOK_S = 120.0
MAX_PAUSE_S = 6 * 3600.0
AGE_SHARE = 8  # a key that has waited for 8 hours is looked at every hour
LOOKS_AT_ONCE = 10
STORE_PAUSE_S = 60.0


async def look(lookup_txt: LookupTxt, key: Mapping[str, Any]) -> str | Failed | None:
    """What is wrong with a key's record in DNS; None when it is right.  Bounded by `dns.lifetime_s`; cancel-safe."""
    found = await lookup_txt(record_name(key["domain"], key["selector"]))
    if isinstance(found, Failed):
        return found
    return judge(found, key["algorithm"], key["public_key"])


def next_look_us(key: Mapping[str, Any], now_us: int) -> int:
    """When a pending key is due to be looked at (Unix µs): the longer it waits, the less often."""
    age_s = max(0, now_us - key["created_at_us"]) / 1e6
    pause_s = min(max(age_s / AGE_SHARE, FIRST_LOOK_S), MAX_PAUSE_S)
    since_us: int = key["created_at_us"] if key["checked_at_us"] is None else key["checked_at_us"]
    return min(since_us, now_us) + int(pause_s * 1e6)


class DkimWatch:
    """lookup_txt: `Lookups.lookup_txt`."""

    def __init__(self, store: Store, lookup_txt: LookupTxt, now_us: Callable[[], int]) -> None:
        self._store = store
        self._lookup_txt = lookup_txt
        self._now_us = now_us
        self._woken = trio.Event()

    def wake(self) -> None:
        """Keys may have changed."""
        self._woken.set()

    async def run(self) -> None:
        """Look when something is due, until cancelled."""
        while True:
            self._woken = trio.Event()
            try:
                pause_s = await self.round()
            except StoreUnavailable:
                pause_s = STORE_PAUSE_S
            with trio.move_on_after(pause_s):
                await self._woken.wait()

    async def round(self) -> float:
        """Look at what is due; how long (s) nothing will be, infinity when nothing waits.  Raises
        `StoreUnavailable`."""
        pending, overlap_ends_us = await self._store.read(rows.waiting)
        now_us = self._now_us()
        due = [key for key in pending if next_look_us(key, now_us) <= now_us]
        if due:
            await self._note(await self._look_at_all(due))
        if overlap_ends_us is not None and overlap_ends_us <= now_us:
            for key in await self._store.write(rows.retire_overlapped, now_us):
                log.info("dkim_key_retired", domain=key["domain"], selector=key["selector"])
        pending, overlap_ends_us = await self._store.read(rows.waiting)
        now_us = self._now_us()
        times = [next_look_us(key, now_us) for key in pending]
        if overlap_ends_us is not None:
            times.append(overlap_ends_us)
        return min((max(0.0, min((at - now_us) / 1e6, MAX_PAUSE_S)) for at in times), default=math.inf)

    async def _look_at_all(self, keys: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str | None]]:
        """Each key with what is wrong with its record."""
        found: list[tuple[Mapping[str, Any], str | None]] = []
        limiter = trio.CapacityLimiter(LOOKS_AT_ONCE)

        async def look_at(key: Mapping[str, Any]) -> None:
            async with limiter:
                problem = await look(self._lookup_txt, key)
            found.append((key, problem.why if isinstance(problem, Failed) else problem))

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(look_at, key)
        return found

    async def _note(self, found: Sequence[tuple[Mapping[str, Any], str | None]]) -> None:
        activated = False
        for key, problem in found:
            domain, selector = key["domain"], key["selector"]
            if problem is not None:
                log.debug("dkim_key_waits", domain=domain, selector=selector, reason=problem)
                await self._store.write(rows.note_check, domain, selector, self._now_us())
            elif await self._store.write(rows.activate_seen, domain, selector, self._now_us()):
                log.info("dkim_key_activated", domain=domain, selector=selector)
                activated = True
        if activated:
            await self._store.announce(TOPIC)
