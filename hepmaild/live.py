# SPDX-License-Identifier: Apache-2.0
"""The live stream: which messages changed, told to whoever looks, within a fraction of a second.

The database is the only source: what this process commits and what others announce is merely a nudge to read the
events behind the last number.  So there is one order, nothing is told that was not committed, and a commit costs a
flag.  While nobody looks nothing is read.

A reader that is slow loses its place in a bounded buffer and is told to look anew; it never makes anybody wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from hepmaild.errors import StoreUnavailable
from hepmaild.storage import live as rows
from hepmaild.storage.live import News
from hepmaild.storage.store import Store

TOPIC = "log"
MAX_BATCHES = 16  # that one reader may have waiting
QUIET_S, BUSY_S = 0.15, 0.7  # between two looks
BUSY_EVENTS = 100  # in one look
ANNOUNCE_S = 0.25  # between two announcements to other processes
RETRY_S = 1.0
UNTOLD_S = 5.0  # after so long it is looked without a word: who dies between a commit and its word says none
GAP_S = 15.0  # so long a number that is missing may still come; longer than a unit may take
MAX_MISSING = 1_000
LOOK_BACK = 500  # numbers before the newest that may have been missing when we began


@dataclass(frozen=True, slots=True)
class Batch:
    """What happened in one account between two looks.

    number: the same for all readers that get this batch.  seq: everything up to this event number was told.
    """

    number: int
    seq: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resync:
    """Some was missed: look at everything anew, and go on from `seq`."""

    seq: int


class Feed:
    """What one reader has not taken yet.  account_id None: all accounts."""

    def __init__(self, account_id: str | None) -> None:
        self.account_id = account_id
        self.must_recheck = False  # who may see what has changed somewhere
        self._batches: deque[Batch | Resync] = deque()
        self._arrived = trio.Event()

    def put(self, batch: Batch | Resync) -> None:
        """Add one; never waits."""
        if len(self._batches) >= MAX_BATCHES:
            self._batches.clear()
            batch = Resync(batch.seq)
        self._batches.append(batch)
        self._arrived.set()

    def recheck(self) -> None:
        """Wake the reader, so that it asks whether it still may read."""
        self.must_recheck = True
        self._arrived.set()

    async def take(self) -> Batch | Resync | None:
        """The next one; None: there is none, but `must_recheck` was set.  Cancel-safe."""
        while not self._batches and not self.must_recheck:
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()
        return self._batches.popleft() if self._batches else None


class LiveHub:
    """`run` must be running for feeds to get anything."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._feeds: set[Feed] = set()
        self._nudged = trio.Event()
        self._committed = trio.Event()
        self._top = 0
        self._missing: dict[int, float] = {}
        self._follows = False
        self._lock = trio.Lock()
        self._batches = 0
        self._generation: int | None = None

    @property
    def readers(self) -> int:
        """How many look."""
        return len(self._feeds)

    def committed(self) -> None:
        """This process has committed something.  Called for every unit: costs a flag."""
        self._committed.set()
        self._nudged.set()

    def nudge(self) -> None:
        """Another process has."""
        self._nudged.set()

    @asynccontextmanager
    async def listen(self, account_id: str | None, since: int | None = None) -> AsyncIterator[tuple[Feed, int]]:
        """A feed from now on, and the number up to which everything is older than it.

        since: the number that the reader had before; what it missed comes first.  Raises `StoreUnavailable`.
        """
        feed = Feed(account_id)
        await self._follow()
        self._feeds.add(feed)
        try:
            if since is not None:
                await self._catch_up(feed, since)
            yield feed, self._seq
        finally:
            self._feeds.discard(feed)
            if not self._feeds:
                self._follows = False
                self._missing.clear()

    @property
    def _seq(self) -> int:
        """Everything up to here was told."""
        return min(self._missing) - 1 if self._missing else self._top

    async def _follow(self) -> None:
        """Begin at the end, when the first reader comes."""
        async with self._lock:
            if self._follows:
                return
            top = await self._store.read(rows.newest)
            begin = top if self._store.is_sqlite else max(0, top - LOOK_BACK)
            news = await self._store.read(rows.news, begin)
            self._generation = news.generation
            found = {seq for seq, _, _ in news.events}
            top = max(found, default=top)
            now = trio.current_time()
            self._missing = {
                seq: now for seq in range(begin + 1, top) if seq not in found and not self._store.is_sqlite
            }
            self._top = top
            self._follows = True

    async def _catch_up(self, feed: Feed, since: int) -> None:
        news = await self._store.read(rows.news, max(0, since))
        ids = tuple(dict.fromkeys(m for _, account_id, m in news.events if feed.account_id in (None, account_id)))
        if not news.is_all or since > self._top:
            feed.put(Resync(self._seq))
        elif ids:
            feed.put(self._batch(ids))

    def _batch(self, ids: tuple[str, ...]) -> Batch:
        self._batches += 1
        return Batch(self._batches, self._seq, ids)

    async def run(self) -> None:
        """Read and tell, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear)
            if not self._store.is_sqlite:
                nursery.start_soon(self._announce)
            while True:
                with trio.move_on_after(UNTOLD_S):
                    await self._nudged.wait()
                self._nudged = trio.Event()
                pause_s = QUIET_S
                if self._feeds:
                    try:
                        pause_s = BUSY_S if await self._look() else QUIET_S
                    except StoreUnavailable:
                        pause_s = RETRY_S
                        self._nudged.set()
                await trio.sleep(pause_s)

    async def _look(self) -> bool:
        """Read what is new and tell it; whether it was much."""
        async with self._lock:
            if not self._follows:
                return False
            news = await self._store.read(rows.news, self._top, tuple(self._missing))
            self._note(news)
        accounts: dict[str, dict[str, None]] = {}
        for _, account_id, message_id in news.events:
            accounts.setdefault(account_id, {})[message_id] = None
        batches = {account_id: self._batch(tuple(ids)) for account_id, ids in accounts.items()}
        everything = tuple(m for ids in accounts.values() for m in ids)
        of_all = self._batch(everything) if everything and any(f.account_id is None for f in self._feeds) else None
        changed = self._generation is not None and news.generation != self._generation
        self._generation = news.generation
        for feed in self._feeds:
            batch = of_all if feed.account_id is None else batches.get(feed.account_id)
            if batch is not None:
                feed.put(batch)
            if changed:
                feed.recheck()
        if not news.is_all:
            self._nudged.set()
        return len(news.events) > BUSY_EVENTS

    def _note(self, news: News) -> None:
        """Keep in mind which numbers are missing, and for how long."""
        now = trio.current_time()
        seen = {seq for seq, _, _ in news.events}
        top = max(seen, default=self._top)
        if not self._store.is_sqlite:
            before = self._top
            for seq in sorted(seen):
                for lost in range(max(before + 1, seq - MAX_MISSING), seq):
                    self._missing[lost] = now
                before = max(before, seq)
            missing = {seq: at for seq, at in self._missing.items() if seq not in seen and at > now - GAP_S}
            self._missing = dict(list(missing.items())[-MAX_MISSING:])
        self._top = max(self._top, top)

    async def _hear(self) -> None:
        """What other processes and the command line announce."""
        async with self._store.announcements() as topics:
            async for _topic in topics:
                self.nudge()

    async def _announce(self) -> None:
        """Tell other processes that there is something to read."""
        while True:
            await self._committed.wait()
            self._committed = trio.Event()
            await self._store.announce(TOPIC)
            await trio.sleep(ANNOUNCE_S)


__all__ = ["Batch", "Feed", "LiveHub", "Resync"]
