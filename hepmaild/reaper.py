# SPDX-License-Identifier: Apache-2.0
"""What is old goes: words, calls, content, uploads, orphaned pieces, logs past their plan's days, slots, suppressions.

What stands behind a daily cap is looked at too, so that its timers stay true.

Small batches, so that no sender waits behind one; a store that does not answer is asked again at the next round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from hepmaild.config import DAY_US, STANDARD_PLAN, Plan, SenderSettings
from hepmaild.errors import StoreUnavailable
from hepmaild.mail.address import key_of
from hepmaild.outbox import Outbox
from hepmaild.storage import cap_line, caps, links, prune, sessions, sts, suppress, tries, uploads
from hepmaild.storage.sqlite import shrink
from hepmaild.storage.store import Store
from hepmaild.tallier import Tallier

log = structlog.get_logger()

INTERVAL_S = 60.0
WORD_LIFE_US = DAY_US
ORPHAN_AGE_US = 3_600_000_000
SHRINK_STEPS = 100  # of 1 MB each in a round, SQLite only
KEEP_FREE_PAGES = 1000  # 4 MB for what comes next


class Reaper:
    """plans: for how long each keeps the log; senders: those of the settings.  Both are replaced on reload.

    wake: called when something may leave.
    """

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        plans: dict[str, Plan],
        now_us: Callable[[], int],
        *,
        senders: Sequence[SenderSettings] = (),
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self.plans = plans
        self.senders = senders
        self._wake = wake
        self._now_us = now_us
        self._tallier = Tallier(store)
        self._looked_at = 0  # the last piece of content that was looked at for orphans

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
        await self._outbox.expire()  # also when no worker has had time to claim
        await self.take_caps()
        await self._lines(now_us)
        await self._all(prune.rate_calls, now_us)
        await self._all(prune.idempotency_words, now_us - WORD_LIFE_US)
        await self._all(prune.bodies, now_us)
        await self._orphans(now_us - ORPHAN_AGE_US)
        await self._all(uploads.prune, now_us)
        await self._all(uploads.prune_pieces)
        await self._all(cap_line.prune, now_us)
        await self._all(suppress.prune, now_us)
        await self._all(sts.prune, now_us)
        for prune_people in (sessions.prune, tries.prune, links.prune):
            await self._all(prune_people, now_us)
        for name, plan in self.plans.items():
            known = sorted(self.plans) if name == STANDARD_PLAN else []  # others count as it (`policy.plan_of`)
            before_us = now_us - plan.log_days * DAY_US
            while ids := await self._store.read(prune.finished_messages, name, before_us, known):
                await self._store.write(prune.drop_messages, ids)
        for _ in range(SHRINK_STEPS):
            if await self._store.write(shrink) < KEEP_FREE_PAGES:
                break
        await self._outbox.recount()
        await self._tallier.round(now_us)

    async def take_caps(self) -> None:
        """Have the store know the caps of the settings' senders.  Raises `StoreUnavailable`."""
        wanted: dict[str, int] = {}
        for sender in self.senders:
            wanted.setdefault(key_of(sender.address), sender.daily_cap)
        if wanted:
            changed: int = await self._store.write(caps.set_global_caps, wanted)
            if changed:
                self._wake()

    async def _lines(self, now_us: int) -> None:
        for cap_key in await self._store.read(cap_line.lines):
            cursor = await self._store.write(cap_line.refresh, cap_key, now_us)
            while cursor is not None:
                cursor = await self._store.write(cap_line.refresh, cap_key, now_us, cursor)

    async def _orphans(self, before_us: int) -> None:
        """Some of the pieces in a round, where there are very many: those behind the last round's."""
        lost, self._looked_at = await self._store.read(prune.orphans, self._looked_at, before_us)
        for n in range(0, len(lost), prune.BATCH):
            await self._store.write(prune.drop_orphans, lost[n : n + prune.BATCH], before_us)

    async def _all(self, step: Callable[..., int], *args: object) -> None:
        while await self._store.write(step, *args):
            pass
