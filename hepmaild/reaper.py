# SPDX-License-Identifier: Apache-2.0
"""What is old goes: words, calls, kept content, orphaned pieces, logs past their plan's days.

Small batches, so that no sender waits behind one; a store that does not answer is asked again at the next round.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from hepmaild.config import Plan
from hepmaild.errors import StoreUnavailable
from hepmaild.outbox import Outbox
from hepmaild.storage import prune
from hepmaild.storage.sqlite import shrink
from hepmaild.storage.store import Store

log = structlog.get_logger()

INTERVAL_S = 60.0
WORD_LIFE_US = 86_400_000_000
DAY_US = 86_400_000_000
ORPHAN_AGE_US = 3_600_000_000
SHRINK_STEPS = 100  # of 1 MB each in a round, SQLite only
KEEP_FREE_PAGES = 1000  # 4 MB for what comes next


class Reaper:
    """plans: for how long each keeps the log; replaced on reload."""

    def __init__(self, store: Store, outbox: Outbox, plans: dict[str, Plan], now_us: Callable[[], int]) -> None:
        self._store = store
        self._outbox = outbox
        self.plans = plans
        self._now_us = now_us

    async def run(self) -> None:
        """A round every minute, until cancelled."""
        while True:
            try:
                await self.round()
            except StoreUnavailable:
                log.info("reaper_waits", reason="the store does not answer")
            await trio.sleep(INTERVAL_S)

    async def round(self) -> None:
        """Drop everything that is due.  Raises `StoreUnavailable`."""
        now_us = self._now_us()
        await self._all(prune.rate_calls, now_us)
        await self._all(prune.idempotency_words, now_us - WORD_LIFE_US)
        await self._all(prune.bodies, now_us)
        await self._all(prune.orphans, now_us - ORPHAN_AGE_US)
        for name, plan in self.plans.items():
            await self._all(prune.finished_messages, name, now_us - plan.log_days * DAY_US)
        for _ in range(SHRINK_STEPS):
            if await self._store.write(shrink) < KEEP_FREE_PAGES:
                break
        await self._outbox.recount()

    async def _all(self, step: Callable[..., int], *args: object) -> None:
        while await self._store.write(step, *args):
            pass
