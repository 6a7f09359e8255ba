# SPDX-License-Identifier: Apache-2.0
"""Keeps the figures that charts are drawn from (`storage.tally`), a little at a time; called by the reaper."""

from __future__ import annotations

from hepmaild.storage import tally
from hepmaild.storage.store import Store

STEPS = 200  # of each kind in a round: 4,000,000 messages


class Tallier:
    """What is heavy is read on snapshots, so that no sender waits behind it; what is written is small."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def round(self, now_us: int) -> None:
        """Count what is due.  Raises `StoreUnavailable`.  Cancel-safe: what was written is true."""
        for _ in range(STEPS):
            if not await self._step(now_us):
                break
        for _ in range(STEPS):
            counted = await self._store.read(tally.recount, now_us)
            if not counted:
                break
            await self._store.write(tally.keep_recount, counted, now_us)
        while await self._store.write(tally.fold, now_us):
            pass
        while await self._store.write(tally.prune, now_us):
            pass

    async def _step(self, now_us: int) -> bool:
        """Count a stretch; whether there may be more."""
        stretch = await self._store.read(tally.next_stretch, now_us)
        if stretch is None:
            return False
        cursor, from_us, until_us = stretch
        counted = await self._store.read(tally.count, from_us, until_us) if from_us < until_us else {}
        return await self._store.write(tally.keep, cursor, until_us, counted, now_us)
