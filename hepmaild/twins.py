# SPDX-License-Identifier: Apache-2.0
"""The same call again: what its caller is told, who did not hear, or did not believe, the first answer (RFC 1047)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio

from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.submission import Receipt
from hepmaild.outbox import Outbox
from hepmaild.receipts import receipt_from
from hepmaild.storage import words
from hepmaild.storage.accept import Twin
from hepmaild.storage.store import Store

TWIN_PATIENCE_S = 15
LATE_ANSWER_S = 2


class Pending:
    """A caller's answer in the making, for twins that come meanwhile."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Receipt | Refusal | None = None


class Twins:
    """The calls that run here, and the answers to those that were made before.  relay_wait_s: of the settings now."""

    def __init__(
        self, store: Store, outbox: Outbox, now_us: Callable[[], int], relay_wait_s: Callable[[], float]
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._now_us = now_us
        self._relay_wait_s = relay_wait_s
        self._pending: dict[str, Pending] = {}

    def begin(self, message_id: str) -> Pending:
        """A call runs; whoever makes it again waits for its answer until `end`."""
        pending = self._pending[message_id] = Pending()
        return pending

    def end(self, message_id: str) -> None:
        """The call has ended, with or without an answer."""
        self._pending.pop(message_id).done.set()

    async def told_before(self, key_id: str, word: str, fingerprint: bytes) -> Receipt | Refusal | None:
        """The answer to the very call that was accepted with this word; None: there is none, or not any more.

        Raises `StoreUnavailable`.
        """
        since_us = self._now_us() - words.WORD_LIFE_US
        twin = await self._store.read(words.twin_of, key_id, word, fingerprint, since_us)
        return None if twin is None else await self.answer(twin)

    async def answer(self, twin: Twin) -> Receipt | Refusal | None:
        """The first call's answer; if that is still in the making here, wait for it a while.

        None: everybody was refused, and its caller never heard so; the word is free, the call one like any other.
        Raises `StoreUnavailable`.
        """
        said = self._outbox.told(twin.message_id)
        receipt = receipt_from(twin.answer if said is None else said)
        if receipt is not None:
            return receipt
        pending = self._pending.get(twin.message_id)
        if pending is not None:
            with trio.move_on_after(self._relay_wait_s() + TWIN_PATIENCE_S):
                await pending.done.wait()
            if isinstance(pending.answer, Receipt):
                return replace(pending.answer, replayed=True)
            if pending.answer is not None:
                return pending.answer
        age_s = (self._now_us() - twin.at_us) / 1e6
        # Alone, a call that does not run here does not run at all.
        patience_s = LATE_ANSWER_S if self._store.is_sqlite else self._relay_wait_s() + TWIN_PATIENCE_S
        provisional = receipt_from(twin.answer, even_provisional=True)
        if age_s > patience_s and provisional is not None and said is None:
            # Its process, or its caller, went away before it was said: "queued" at the latest.
            return None if await self._store.write(words.free_if_refused, twin.message_id) else provisional
        text = "the first call with this idempotency key still runs: ask again in a few seconds"
        return Refusal(ErrorKind.IDEMPOTENCY_IN_PROGRESS, text, retry_after_s=5)


__all__ = ["Pending", "Twins"]
