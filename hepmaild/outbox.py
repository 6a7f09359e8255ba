# SPDX-License-Identifier: Apache-2.0
"""The queue as the delivery engine sees it, and the place where callers wait for the first attempt.

Implements `delivery.job.Queue` on the store.  What an attempt reports is committed first and told to the waiting caller
afterwards, in the same process; a caller whose message another process delivers waits in vain and is told "queued".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import structlog
import trio

from hepmaild.delivery.job import Attempt, Job, Outcome, Result
from hepmaild.errors import StoreUnavailable
from hepmaild.mail.content import Content
from hepmaild.metrics import Meter
from hepmaild.storage import messages, queue
from hepmaild.storage.reports import Mark, Report
from hepmaild.storage.store import Store
from hepmaild.storage.unit import Answer, Answers, Used

log = structlog.get_logger()

DAY_US = 86_400_000_000
MAX_LATE = 100_000
MAX_NOTED = 10_000
USE_EVERY_US = 5_000_000

_FINAL = (Result.DELIVERED, Result.FAILED)


class FirstAttempt:
    """What a caller waits for: the outcomes of the first attempt at each destination of its message.

    done: every destination was heard of once, be it only that nobody works on it now.  outcomes: in the order of the
    recipients, of those destinations that were attempted.
    """

    __slots__ = ("_missing", "done", "outcomes")

    def __init__(self, destinations: Collection[str]) -> None:
        self.done = trio.Event()
        self.outcomes: tuple[Outcome, ...] = ()
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


class Outbox:
    """owner: this process's name in leases.  alone: no other process can share the store (SQLite)."""

    def __init__(
        self,
        store: Store,
        *,
        owner: str,
        now_us: Callable[[], int],
        lease_s: float,
        body_days: int,
        spool_dir: str | None,
        meter: Meter | None = None,
    ) -> None:
        self._meter = meter or Meter()
        self._store = store
        self.owner = owner
        self._now_us = now_us
        self._lease_us = int(lease_s * 1_000_000)
        self._body_keep_us = body_days * DAY_US
        self._spool_dir = spool_dir
        self._alone = store.is_sqlite
        self._alive_until_us = 0
        self._waiting_callers: dict[str, FirstAttempt] = {}
        self._uncertain: dict[tuple[str, str], int] = {}
        self._forsaken: dict[tuple[str, str], int] = {}
        self._paused: frozenset[tuple[str, str]] = frozenset()
        self._late_answers: list[Answer] = []
        self._late_uses: dict[str, Used] = {}
        self._noted: dict[str, Used] = {}
        self._late_wanted = trio.Event()
        self.backlog = 0  # messages waiting (by destination), as far as this process knows

    # For the intake

    def expect(self, message_id: str, destinations: Collection[str] = ("",)) -> FirstAttempt:
        """Announce that a caller waits for the first attempt at every destination.  `forget` it afterwards."""
        waiter = self._waiting_callers[message_id] = FirstAttempt(destinations)
        return waiter

    def forget(self, message_id: str) -> None:
        """The caller waits no longer."""
        self._waiting_callers.pop(message_id, None)

    def is_paused(self, route: str, destination: str) -> bool:
        """Whether nobody is to work on this now (`hepmaild queue pause`), as far as this process knows."""
        paused = self._paused
        return bool(paused) and ((route, "") in paused or (route, destination) in paused)

    def accepted(self, destinations: int = 1) -> None:
        """A message was committed here."""
        self.backlog += destinations

    def doubt_accept(self, message_id: str, destination: str, token: int) -> None:
        """The commit of a message leased to us gave no answer in time (or the pool had no room after all): should it
        have happened, its lease must end."""
        self._uncertain[message_id, destination] = token

    def answer_later(self, answer: Answer) -> None:
        """Record what a caller was told, without anyone waiting for it."""
        if len(self._late_answers) < MAX_LATE:
            self._late_answers.append(answer)
            self._late_wanted.set()

    def used(self, use: Used) -> None:
        """Note the use of a key; written with the next late answers, for each key every few seconds at most."""
        last = self._noted.get(use.key_id)
        if last is not None and use.at_us - last.at_us < USE_EVERY_US and (use.ip, use.door) == (last.ip, last.door):
            return
        if len(self._noted) >= MAX_NOTED:
            self._noted.clear()
        self._noted[use.key_id] = self._late_uses[use.key_id] = use
        self._late_wanted.set()

    async def run_late_writer(self) -> None:
        """Write what nobody waits for, until cancelled; then `flush`."""
        while True:
            await self._late_wanted.wait()
            await trio.sleep(0.05)  # let some gather: each unit costs the same however many it holds
            self._late_wanted = trio.Event()
            try:
                await self.flush()
            except StoreUnavailable:
                await trio.sleep(1)
                self._late_wanted.set()

    async def flush(self) -> None:
        """Write the late answers and uses of keys.  Raises `StoreUnavailable`; what was not written is kept."""
        answers, self._late_answers = self._late_answers, []
        uses, self._late_uses = self._late_uses, {}
        if not answers and not uses:
            return
        try:
            await self._store.submit(Answers(tuple(answers), tuple(uses.values())))
        except BaseException:
            self._late_answers[:0] = answers
            for key_id, use in uses.items():
                self._late_uses.setdefault(key_id, use)
            raise

    async def recount(self) -> None:
        """Learn from the store how many messages wait."""
        self.backlog = await self._store.read(queue.count_waiting)

    # For the engine (delivery.job.Queue)

    async def claim(
        self, limit: int, *, exclude: Collection[str] = (), full: Collection[tuple[str, str]] = ()
    ) -> Sequence[Job]:
        """See `Queue.claim`.  Also ends what has expired and takes over the work of dead processes."""
        await self.stay_alive()
        await self._settle_uncertain()
        now_us = self._now_us()
        if not self._alone:
            await self._take_over()
        claimed = await self._store.write(queue.claim, self.owner, now_us, limit, self._body_keep_us, tuple(exclude))
        if claimed.expired:
            log.info("expired", recipients=claimed.expired)
            self._meter.expired(claimed.expired)
        return claimed.jobs

    async def next_due_at_us(
        self, *, exclude: Collection[str] = (), full: Collection[tuple[str, str]] = ()
    ) -> int | None:
        """See `Queue.next_due_at_us`."""
        if self._uncertain or self._forsaken:
            return self._now_us()
        return await self._store.read(queue.next_due_at_us, tuple(exclude))

    async def load(self, job: Job) -> Content:
        """See `Queue.load`."""
        content = await self._store.read(messages.load_content, job.message_id, self._spool_dir)
        if content is None:
            raise LookupError(f"the content of message {job.message_id} is gone")
        return content

    async def mark_in_doubt(self, job: Job) -> bool:
        """See `Queue.mark_in_doubt`."""
        await self.stay_alive()
        holds: bool = await self._store.submit(Mark(job.message_id, job.destination, job.token))
        return holds

    async def report(self, attempt: Attempt) -> bool:
        """See `Queue.report`."""
        job = attempt.job
        member = Report(attempt, job.destination, job.account_id, _attempt_json(attempt), self._body_keep_us)
        holds: bool = await self._store.submit(member)
        if not holds:
            log.warning("report_refused", message_id=job.message_id, reason="the lease was lost")
            return False
        if all(o.result in _FINAL for o in attempt.outcomes):
            self.backlog = max(0, self.backlog - 1)
        waiter = self._waiting_callers.get(job.message_id)
        if waiter is not None:
            waiter.hear(job.destination, attempt.outcomes)
        return True

    async def release(self, job: Job) -> None:
        """See `Queue.release`.  A caller that waits is told "queued": nobody works on it now."""
        self._tell_nobody_works(job)
        await self._store.write(queue.release, job.message_id, job.destination, job.token, self._now_us())

    def forsake(self, job: Job) -> None:
        """See `Queue.forsake`.  A caller that waits is told "queued"."""
        self._tell_nobody_works(job)
        self._forsaken[job.message_id, job.destination] = job.token

    def _tell_nobody_works(self, job: Job) -> None:
        waiter = self._waiting_callers.get(job.message_id)
        if waiter is not None:
            waiter.hear(job.destination)

    # Leases of this process

    async def stay_alive(self) -> None:
        """Renew the lease of this process when a third of it is over; without other processes there is none."""
        now_us = self._now_us()
        if self._alone or self._alive_until_us - now_us > self._lease_us * 2 // 3:
            return
        until_us = now_us + self._lease_us
        await self._store.write(queue.stay_alive, self.owner, until_us)
        self._alive_until_us = until_us

    async def run_heartbeat(self, wake: Callable[[], None]) -> None:
        """Keep the lease of this process alive and take over from dead ones, until cancelled.  Alone: nothing to do.

        wake: called when something was taken over, and is due now.
        """
        while not self._alone:
            await trio.sleep(self._lease_us / 4_000_000)
            with suppress(StoreUnavailable):
                await self.stay_alive()
                if await self._take_over():
                    wake()
        await trio.sleep_forever()

    async def _take_over(self) -> int:
        taken = await self._store.write(queue.take_over, self._now_us(), alone=False)
        if taken:
            log.warning("leases_taken_over", messages=taken)
            self._meter.taken_over(taken)
        return taken

    async def take_back(self) -> int:
        """At start: take back what dead processes held."""
        taken = await self._store.write(queue.take_over, self._now_us(), alone=self._alone)
        self._meter.taken_over(taken)
        return taken

    async def say_goodbye(self) -> None:
        """At an orderly end: write what is late, release what is still held."""
        await self.flush()
        await self._store.write(queue.say_goodbye, self.owner, self._now_us())

    async def _settle_uncertain(self) -> None:
        for (message_id, destination), token in list(self._uncertain.items()):
            if await self._store.write(queue.release, message_id, destination, token, self._now_us()):
                log.warning("accepted_after_all", message_id=message_id)
            del self._uncertain[message_id, destination]
        for (message_id, destination), token in list(self._forsaken.items()):
            if await self._store.write(queue.forsake, message_id, destination, token, self._now_us()):
                log.warning("attempt_forgotten", message_id=message_id)
            del self._forsaken[message_id, destination]


def _attempt_json(attempt: Attempt) -> str:
    """The event record of an attempt."""
    return json.dumps(
        {
            "host": attempt.host,
            "tls": [attempt.tls_version, attempt.tls_cipher] if attempt.tls_version else None,
            "started_at": attempt.started_at_us,
            "route": attempt.job.route,
            "destination": attempt.job.destination,
            "outcomes": [
                {
                    "recipient": o.recipient_id,
                    "result": o.result.value,
                    "reply": None if o.reply is None else str(o.reply),
                    "retry_at": o.retry_at_us,
                }
                for o in attempt.outcomes
            ],
            "steps": attempt.steps,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )
