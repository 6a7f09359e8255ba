# SPDX-License-Identifier: Apache-2.0
"""Keys, accounts and senders as this process knows them, never older than the question.

The store keeps a generation that moves with every change of a key, account or sender.  Each question first learns the
present generation, by a read that began after the question came; on PostgreSQL all questions that wait share one read.
On SQLite, where this process is the only one but for commands, the read is spared as long as nobody has announced
anything since the last one, which a look at a socket tells.  So a change that was confirmed anywhere is obeyed by the
next MAIL or request everywhere, and an unchanged world costs next to nothing.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import trio

from hepmaild.config import SenderSettings
from hepmaild.errors import StoreUnavailable
from hepmaild.mail.address import key_of
from hepmaild.policy import SenderBook, make_book
from hepmaild.storage import directory as rows
from hepmaild.storage.directory import KeyRow, SenderRow
from hepmaild.storage.store import Store

MAX_CACHED = 10_000
SPARED_S = 0.005  # a read may be spared for so long: somebody may have changed the database without a word
_K = TypeVar("_K")
_V = TypeVar("_V")


class Directory:
    """`run` must be running for the questions to be answered.

    Unknown keys are not cached: they would push out good ones.
    """

    def __init__(self, store: Store, senders: Sequence[SenderSettings]) -> None:
        self._store = store
        self._from_settings = settings_senders(senders)
        self._generation: int | None = -1
        self._changes: int | None = None  # of the store, when it was last read
        self._read_at = -math.inf  # Trio's clock
        self._keys: OrderedDict[bytes, KeyRow] = OrderedDict()
        self._books: OrderedDict[str, SenderBook] = OrderedDict()
        self._next = _Round()
        self._wanted = trio.Event()

    @property
    def generation(self) -> int | None:
        """As last validated: what is cached elsewhere under another one is to be read again."""
        return self._generation

    def replace_settings(self, senders: Sequence[SenderSettings]) -> None:
        """The settings were reloaded."""
        self._from_settings = settings_senders(senders)
        self._books.clear()

    async def key(self, secret_hash: bytes) -> KeyRow | None:
        """The key with this secret as it is now; None: there is none.  Raises `StoreUnavailable`.  Cancel-safe."""
        await self.validate()
        row = self._keys.get(secret_hash)
        if row is None:
            generation = self._generation
            row = await self._store.read(rows.key_by_hash, secret_hash)
            if row is not None and generation == self._generation:
                _remember(self._keys, secret_hash, row)
        return row

    async def book(self, account_id: str) -> SenderBook:
        """The senders of this account, as the last validated generation has them.  Raises `StoreUnavailable`."""
        book = self._books.get(account_id)
        if book is None:
            generation = self._generation
            book = make_book(await self._store.read(rows.senders_of, account_id), self._from_settings)
            if generation == self._generation:
                _remember(self._books, account_id, book)
        return book

    async def validate(self) -> None:
        """Wait for a read of the generation that begins after now.  Raises `StoreUnavailable`.  Cancel-safe."""
        if self._store.is_sqlite:
            changes, now = self._store.changes(), trio.current_time()
            if changes is None or changes != self._changes or now - self._read_at > SPARED_S:
                self._note(await self._store.glance(rows.GENERATION))
                self._changes, self._read_at = changes, now
            return
        shared = self._next
        self._wanted.set()
        await shared.done.wait()
        if not shared.is_read:
            raise StoreUnavailable("the keys could not be read")

    async def run(self) -> None:
        """Answer questions until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            shared, self._next = self._next, _Round()
            try:
                self._note(await self._store.glance(rows.GENERATION))
                shared.is_read = True
            except StoreUnavailable:
                pass  # who waits is told
            finally:
                shared.done.set()

    def _note(self, generation: int | None) -> None:
        if generation != self._generation:
            self._generation = generation
            self._keys.clear()
            self._books.clear()


class _Round:
    """One read of the generation and those who wait for it.  is_read: it succeeded; not so when it was cancelled."""

    __slots__ = ("done", "is_read")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.is_read = False


def settings_senders(senders: Sequence[SenderSettings]) -> tuple[SenderRow, ...]:
    """The global senders of the settings file as rows."""
    return tuple(SenderRow("", s.address, key_of(s.address), s.route, s.daily_cap, s.default) for s in senders)


def _remember(cache: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    cache[key] = value
    if len(cache) > MAX_CACHED:
        cache.popitem(last=False)
