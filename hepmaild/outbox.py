# SPDX-License-Identifier: Apache-2.0
"""The queue as the delivery engine sees it; what callers wait for (`callers`) is told here.

Implements `delivery.job.Queue` on the store.  What an attempt reports is committed first and told to the waiting caller
afterwards, in the same process; a caller whose message another process delivers waits in vain and is told "queued".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

import structlog
import trio

from hepmaild.callers import Callers, FirstAttempt
from hepmaild.config import DAY_US, InDoubt
from hepmaild.delivery.job import Attempt, Claim, Job, Result
from hepmaild.errors import StoreUnavailable
from hepmaild.events import to_record
from hepmaild.mail.content import Content
from hepmaild.metrics import Meter
from hepmaild.receipts import Vain
from hepmaild.storage import cap_line, leases, messages, queue
from hepmaild.storage import claim as queue_claim
from hepmaild.storage.claim import EXPIRE_AT_ONCE, Look
from hepmaild.storage.reports import Mark, Report
from hepmaild.storage.store import Store
from hepmaild.storage.suppress import NEVER, Rule
from hepmaild.storage.unit import Answer, Answers, Used
from hepmaild.storage.writer import Haste

log = structlog.get_logger()

MAX_LATE = 100_000
MAX_NOTED = 10_000
FORSAKEN_UNIT = 100  # forsaken leases that are taken back in one unit
USES_UNIT = 1000  # uses written in one unit, which locks all their keys in one statement
USE_EVERY_US = 5_000_000
UNCERTAIN_US = 600_000_000  # twice the longest `database.unit_timeout_s`
LOOK_FOR_UNCERTAIN_US = 1_000_000
SET_BACK_US = 1_000_000  # a clock that is behind the last claim by less is only slow
LIVELY_S = 0.02  # after a message was accepted the next unit comes soon
CLAIM_ROUNDS = 8  # units of one claim at most, while it has not looked everywhere
CLAIM_S = 5  # after that a claim brings what it has
CLAIM_UNIT = 32  # jobs of one of them: what is accepted meanwhile waits for these, not for all

_FINAL = (Result.DELIVERED, Result.FAILED)


class _Uncertain(NamedTuple):
    """A lease that may have come to be.  since_us: it is looked for again and again for `UNCERTAIN_US`, since a unit
    that gave no answer may still be at it."""

    token: int
    since_us: int


class Outbox:
    """owner: this process's name in leases.  in_doubt: what becomes of a marked lease that ends without a report.

    rule: when an address that is refused for good is suppressed.
    """

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
        in_doubt: InDoubt = InDoubt.RETRY,
        rule: Rule = NEVER,
    ) -> None:
        self.in_doubt = in_doubt
        self.rule = rule
        self._meter = meter or Meter()
        self._store = store
        self.owner = owner
        self._now_us = now_us
        self._lease_us = int(lease_s * 1_000_000)
        self._body_keep_us = body_days * DAY_US
        self._spool_dir = spool_dir
        self._alone = store.is_sqlite
        self._renew_at = -math.inf  # Trio's clock
        self._callers = Callers(store, owner, self.is_paused)
        self._uncertain: dict[tuple[str, str], _Uncertain] = {}
        self._uncertain_claims: list[int] = []
        self._claimed_at_us = 0
        self._forsaken: dict[tuple[str, str], int] = {}
        self._paused: frozenset[tuple[str, str]] = frozenset()
        self._cursors: Mapping[str, str] = {}
        self._late_answers: dict[str, Answer] = {}  # by message, like those that are being written
        self._answers_under_way: dict[str, Answer] = {}
        self._late_uses: dict[str, Used] = {}
        self._noted: dict[str, Used] = {}
        self._late_wanted = trio.Event()
        self._accepted_at = -math.inf  # Trio's clock
        self.backlog = 0  # messages waiting (by destination), as far as this process knows

    # For the intake

    def expect(self, message_id: str, destinations: Collection[str] = ("",)) -> FirstAttempt:
        """Announce that a caller waits for the first attempt at every destination.  `forget` it afterwards."""
        return self._callers.expect(message_id, destinations)

    def forget(self, message_id: str) -> None:
        """The caller waits no longer."""
        self._callers.forget(message_id)

    def is_paused(self, route: str, destination: str) -> bool:
        """Whether nobody is to work on this now (`hepmaild queue pause`), as far as this process knows."""
        paused = self._paused
        return bool(paused) and ((route, "") in paused or (route, destination) in paused)

    def accepted(self, destinations: int = 1) -> None:
        """A message was committed here."""
        self.backlog += destinations
        self._accepted_at = trio.current_time()

    def doubt_accept(self, message_id: str, destination: str, token: int) -> None:
        """The commit of a message leased to us gave no answer in time (or the pool had no room after all): should it
        have happened, its lease must end."""
        self._uncertain[message_id, destination] = _Uncertain(token, self._now_us())

    def answer_later(self, answer: Answer) -> None:
        """Record what a caller was told, without anyone waiting for it."""
        if len(self._late_answers) < MAX_LATE:
            self._late_answers[answer.message_id] = answer
            self._late_wanted.set()

    def told(self, message_id: str) -> str | None:
        """What a caller was told (JSON) that the store does not have yet."""
        answer = self._late_answers.get(message_id) or self._answers_under_way.get(message_id)
        return None if answer is None else answer.answer

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
        is_all = False
        while not is_all:
            answers, self._late_answers = self._late_answers, {}
            uses = dict(islice(self._late_uses.items(), USES_UNIT))
            for key_id in uses:
                del self._late_uses[key_id]
            is_all = len(uses) < USES_UNIT
            if answers or uses:
                await self._flush(answers, uses)

    async def _flush(self, answers: dict[str, Answer], uses: dict[str, Used]) -> None:
        self._answers_under_way |= answers
        try:
            await self._store.submit(Answers(tuple(answers.values()), tuple(uses.values()), is_awaited=False))
        except BaseException:
            self._late_answers = answers | self._late_answers
            for key_id, use in uses.items():
                self._late_uses.setdefault(key_id, use)
            raise
        finally:
            for message_id in answers:
                del self._answers_under_way[message_id]

    async def recount(self) -> None:
        """Somebody changed the queue: learn from the store how many messages wait, and what is paused.

        Callers whose message is not tried now are told so.
        """
        self.backlog, self._paused = await self._store.read(queue.learn)
        await self.tell_callers()

    # For the engine (delivery.job.Queue)

    async def claim(
        self,
        limit: int,
        *,
        exclude: Collection[str] = (),
        full: Collection[tuple[str, str]] = (),
        most_of: Mapping[str, int] | None = None,
        patient: bool = False,
    ) -> Claim:
        """See `Queue.claim`.  Also ends what has expired, lets go what stood behind a daily cap, and takes over the
        work of dead processes.  Cancelled, what it had leased is due again with the next claim."""
        await self.stay_alive()
        await self._settle_uncertain()
        if not self._alone:
            await self._take_over()
        jobs: list[Job] = []
        try:
            due_at_us = await self._claim_all(jobs, limit, exclude, full, most_of or {}, patient=patient)
        except StoreUnavailable:
            if not jobs:
                raise
            due_at_us = self._now_us()  # what came before is ours
        except BaseException:
            for job in jobs:  # nobody hears of them, and the leases of a living process do not end
                self.forsake(job)
            raise
        return Claim(jobs, due_at_us)

    async def _claim_all(
        self,
        jobs: list[Job],
        limit: int,
        exclude: Collection[str],
        full: Collection[tuple[str, str]],
        most_of: Mapping[str, int],
        *,
        patient: bool,
    ) -> int | None:
        """Claim into `jobs`, a few at a time, of which only the first may be patient; when to come again."""
        line_at_us = None
        late_at = trio.current_time() + CLAIM_S
        for _ in range(CLAIM_ROUNDS):
            if jobs and trio.current_time() >= late_at:
                return self._claimed_at_us  # the store is slow: what it gave is not to wait for the rest
            most = min(limit - len(jobs), CLAIM_UNIT)
            found = await self._claim(most, exclude, full, _rest(most_of, jobs), patient=patient and not jobs)
            jobs += found.claimed.jobs
            line_at_us = found.line_at_us
            if line_at_us is not None and line_at_us <= self._claimed_at_us:
                await self._store.write(cap_line.let_go, self._claimed_at_us)
            elif found.is_all:
                return self._when(found.due_at_us, line_at_us)
            if len(jobs) >= limit:
                return None
        # There are more destinations than so many units step over, or many stand behind caps.
        due_at_us = await self._store.read(queue_claim.next_due_at_us, self._now_us(), tuple(exclude), tuple(full))
        return self._when(due_at_us, line_at_us)

    async def _claim(
        self,
        limit: int,
        exclude: Collection[str],
        full: Collection[tuple[str, str]],
        most_of: Mapping[str, int],
        *,
        patient: bool,
    ) -> Look:
        now_us = self._claimed_at_us = self._instant_us()
        self._uncertain_claims.append(now_us)  # until there is an answer
        arguments = (self._body_keep_us, tuple(exclude), tuple(full), self._cursors)
        # Leases need not outlive a power cut: the process that has them does not either.
        write = self._store.write_idly if patient else self._store.write_soon
        found = await write(queue_claim.claim_and_look, self.owner, now_us, limit, *arguments, most_of=most_of)
        self._uncertain_claims.remove(now_us)
        self._cursors, self._paused = found.claimed.cursors, found.claimed.paused
        self._note_expired(found.claimed.expired)
        return found

    def _instant_us(self) -> int:
        """Now, but no instant twice: by it the leases of a claim are known.

        A clock that was set back is followed, or everything would be due, and expire, by the time that it had before.
        """
        now_us = self._now_us()
        if 0 <= self._claimed_at_us - now_us < SET_BACK_US:
            now_us = self._claimed_at_us + 1
        while now_us in self._uncertain_claims:
            now_us += 1
        return now_us

    def _when(self, due_at_us: int | None, line_at_us: int | None) -> int | None:
        """When the next claim has something to do: the queue, the lines behind caps, or leases that may be ours."""
        if self._forsaken:
            return self._claimed_at_us
        times = [at_us for at_us in (due_at_us, line_at_us) if at_us is not None]
        if self._uncertain or self._uncertain_claims:
            # At growing distances: each look is a claim, which may lose its answer and be looked for in turn.
            now_us = self._now_us()
            newest_us = max(*(lease.since_us for lease in self._uncertain.values()), *self._uncertain_claims, 0)
            times.append(now_us + max(LOOK_FOR_UNCERTAIN_US, now_us - newest_us))
        return min(times, default=None)

    async def expire(self) -> None:
        """End what has expired, also when nothing is claimed since nobody has time.  Raises `StoreUnavailable`."""
        for _ in range(CLAIM_ROUNDS):
            expired = await self._store.write(queue_claim.expire, self._now_us(), self._body_keep_us)
            self._note_expired(expired)
            if expired < EXPIRE_AT_ONCE:
                break

    def _note_expired(self, recipients: int) -> None:
        if recipients:
            log.info("expired", recipients=recipients)
            self._meter.expired(recipients)

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
        if not holds:
            self._renew_at = -math.inf  # others may hold us for dead: a machine that slept did not notice
            await self._callers.lease_lost(job.message_id, job.destination)
        return holds

    async def report(self, attempt: Attempt) -> bool:
        """See `Queue.report`."""
        job = attempt.job
        told = _attempt_json(attempt)
        member = Report(attempt, job.destination, job.account_id, told, self._body_keep_us, self.rule)
        waiter = self._callers.find(job.message_id)
        haste = Haste.NOW if waiter is not None else self._haste_of(attempt)
        holds: bool = await self._store.submit(member, haste=haste)
        if not holds:
            log.warning("report_refused", message_id=job.message_id, reason="the lease was lost")
            await self._callers.lease_lost(job.message_id, job.destination)
            return False
        if all(o.result in _FINAL for o in attempt.outcomes):
            self.backlog = max(0, self.backlog - 1)
        if waiter is not None:
            waiter.hear(job.destination, attempt.outcomes)
        return True

    def _haste_of(self, attempt: Attempt) -> Haste:
        """Of a report that nobody waits to hear of.  While mail comes in, it is written with somebody else's commit.

        What is to be tried again is written when nobody else waits: there is more to ask and write, and next hops in
        trouble are to cost the others little.
        """
        if trio.current_time() - self._accepted_at >= LIVELY_S:
            return Haste.NOW
        return Haste.SOON if any(o.result in _FINAL for o in attempt.outcomes) else Haste.IDLE

    async def release(self, *jobs: Job) -> None:
        """See `Queue.release`.  Callers that wait are told "queued": nobody works on it now."""
        for job in jobs:
            self.nobody_there(job.message_id, job.destination)
        leased = [(job.message_id, job.destination, job.token) for job in jobs]
        await self._store.write(leases.release_all, leased, self._now_us())

    async def put_off(self, job: Job, until_us: int, why: str) -> None:
        """See `Queue.put_off`.  A caller that waits is told "queued"."""
        self.nobody_there(job.message_id, job.destination)
        where = (job.message_id, job.destination, job.token)
        await self._store.write(leases.put_off, *where, min(until_us, job.expires_at_us), why, self._now_us())

    def forsake(self, job: Job) -> None:
        """See `Queue.forsake`.  A caller that waits is told "queued"."""
        self.nobody_there(job.message_id, job.destination)
        self._forsaken[job.message_id, job.destination] = job.token

    async def tell_callers(self) -> None:
        """Somebody changed messages: who waits for one that is not tried now, or never will be, is told so."""
        await self._callers.look()

    async def no_more_claims(self) -> None:
        """The drain has begun: who waits for a message that nobody has is told so."""
        await self._callers.no_more_claims()

    def nobody_there(self, message_id: str, destination: str, vain: Vain | None = None) -> None:
        """Nothing goes to this destination, or not soon: a caller that waits need not wait for it."""
        self._callers.nobody_there(message_id, destination, vain)

    # Leases of this process

    async def stay_alive(self) -> None:
        """Renew the lease of this process when a third of it is over; without other processes there is none."""
        now = trio.current_time()
        if self._alone or now < self._renew_at:
            return
        await self._store.write(leases.stay_alive, self.owner, self._lease_us, self._now_us())
        self._renew_at = now + self._lease_us / 3_000_000

    async def run_heartbeat(self, wake: Callable[[], None]) -> None:
        """Keep the lease of this process alive and take over from dead ones, until cancelled.  Alone: nothing to do.

        wake: called when something was taken over, and is due now.
        """
        while not self._alone:
            await trio.sleep(self._lease_us / 4_000_000)
            self._renew_at = -math.inf  # however lately a claim or a mark did
            with suppress(StoreUnavailable):
                await self.stay_alive()
                if await self._take_over():
                    wake()
        await trio.sleep_forever()

    async def _take_over(self) -> int:
        taken = await self._store.write(leases.take_over, self._now_us(), alone=False, in_doubt=self.in_doubt)
        if taken:
            log.warning("leases_taken_over", messages=taken)
            self._meter.taken_over(taken)
        return taken

    async def take_back(self) -> int:
        """At start: take back what dead processes held."""
        taken = await self._store.write(leases.take_over, self._now_us(), alone=self._alone, in_doubt=self.in_doubt)
        self._meter.taken_over(taken)
        return taken

    async def say_goodbye(self) -> None:
        """At an orderly end: write what is late, release what is still held."""
        await self.flush()
        await self._store.write(leases.say_goodbye, self.owner, self._now_us(), self.in_doubt)

    async def _settle_uncertain(self) -> None:
        if self._uncertain or self._uncertain_claims:
            now_us = self._now_us()
            wanted = {key: found.token for key, found in self._uncertain.items()}
            claims = list(self._uncertain_claims)
            freed = await self._store.write(leases.free_uncertain, self.owner, wanted, claims, now_us)
            for message_id, destination in freed:
                log.warning("accepted_after_all", message_id=message_id)
                self._uncertain.pop((message_id, destination), None)
            for key, found in list(self._uncertain.items()):
                if found.since_us + UNCERTAIN_US < now_us:
                    del self._uncertain[key]
            self._uncertain_claims = [at_us for at_us in self._uncertain_claims if at_us + UNCERTAIN_US >= now_us]
        forsaken = list(self._forsaken.items())
        for n in range(0, len(forsaken), FORSAKEN_UNIT):
            some = dict(forsaken[n : n + FORSAKEN_UNIT])
            ended = await self._store.write(leases.forsake, some, self._now_us(), self.in_doubt)
            for key, is_back in ended.items():
                if is_back:
                    log.warning("attempt_forgotten", message_id=key[0])
                del self._forsaken[key]


def _rest(most_of: Mapping[str, int], jobs: Iterable[Job]) -> Mapping[str, int]:
    """What may still be claimed of these routes."""
    if not most_of:
        return most_of
    taken = Counter(job.route for job in jobs)
    return {route: most - taken[route] for route, most in most_of.items()}


def _attempt_json(attempt: Attempt) -> str:
    """The event record of an attempt."""
    return to_record(
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
        }
    )
