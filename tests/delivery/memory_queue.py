# SPDX-License-Identifier: Apache-2.0
"""A `Queue` in memory that keeps to the protocol: leases with tokens, due times, marks; breaks when told.

A message has one destination here; claims go round robin over them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import trio

from hepmaild.delivery.job import Attempt, Claim, Job, JobRecipient, Outcome, Result
from hepmaild.errors import StoreUnavailable
from hepmaild.mail.content import Content


@dataclass
class Waiting:
    """A message in the store: what is still due, when, and who leased it."""

    job: Job
    body: bytes
    due_us: int
    leased: bool = False
    marked: bool = False
    done: bool = False
    held: bool = False
    everybody: frozenset[int] = frozenset()


class MemoryQueue:
    """See the module's page.  `attempts` and `outcomes` are the record; `changed` is set at each report and release.

    load_s: how long a content takes to be read, mark_s: a mark to be written.  elsewhere: whose leases somebody else
    than the pool has.
    """

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.now_us = now_us
        self.messages: dict[str, Waiting] = {}
        self.attempts: list[Attempt] = []
        self.outcomes: dict[str, list[Outcome]] = {}
        self.released: list[str] = []
        self.units = 0
        self.put_offs: list[tuple[str, str]] = []
        self.forsaken: list[str] = []
        self.refused = 0
        self.elsewhere: set[str] = set()
        self.expired: list[str] = []
        self.most_full = 0
        self.claims = 0
        self.patient_claims = 0
        self.is_down = False
        self.load_s = 0.0
        self.mark_s = 0.0
        self.refuse_mark = False
        self.on_mark: Callable[[Job], None] | None = None
        self.changed = trio.Event()

    def add(
        self,
        message_id: str,
        recipients: Sequence[str] = ("a@example.net",),
        *,
        route: str = "upstream",
        body: bytes = b"Subject: x\r\n\r\nhello\r\n",
        leased: bool = False,
        reverse_path: str = "s@example.com",
        smtputf8: bool = False,
        due_us: int | None = None,
        attempts: int = 0,
        destination: str = "",
        life_s: float = 4 * 86_400,
    ) -> Job:
        now = self.now_us()
        job = Job(
            message_id=message_id,
            account_id="acc",
            route=route,
            reverse_path=reverse_path,
            recipients=tuple(JobRecipient(i + 1, address, attempts) for i, address in enumerate(recipients)),
            token=1,
            size=len(body),
            smtputf8=smtputf8,
            accepted_at_us=now,
            expires_at_us=now + int(life_s * 1_000_000),
            destination=destination,
        )
        everybody = frozenset(r.recipient_id for r in job.recipients)
        due = now if due_us is None else due_us
        self.messages[message_id] = Waiting(job, body, due, leased, everybody=everybody)
        return replace(job, content=Content(body)) if leased else job

    async def _unit(self) -> None:
        await trio.lowlevel.checkpoint()
        self.units += 1
        if self.is_down:
            raise StoreUnavailable

    def _waiting(self, exclude: Collection[str], full: Collection[tuple[str, str]]) -> list[Waiting]:
        """What may be claimed, by due time within a destination, the destinations in turn."""
        lanes: dict[tuple[str, str], list[Waiting]] = {}
        for w in self.messages.values():
            lane = (w.job.route, w.job.destination)
            if not w.done and not w.leased and not w.held and w.job.route not in exclude and lane not in full:
                lanes.setdefault(lane, []).append(w)
        rounds = [
            (n, w.due_us, w) for lane in lanes.values() for n, w in enumerate(sorted(lane, key=lambda w: w.due_us))
        ]
        return [w for _, _, w in sorted(rounds, key=lambda r: r[:2])]

    async def claim(
        self,
        limit: int,
        *,
        exclude: Collection[str] = (),
        full: Collection[tuple[str, str]] = (),
        most_of: Mapping[str, int] | None = None,
        patient: bool = False,
    ) -> Claim:
        await self._unit()
        self.claims += 1
        self.patient_claims += patient
        exclude, full = set(exclude), set(full)
        self.most_full = max(self.most_full, len(full))
        left = dict(most_of or {})
        due = [w for w in self._waiting(exclude, full) if w.due_us <= self.now_us()][:limit]
        for waiting in list(due):
            if waiting.job.route in left:
                left[waiting.job.route] -= 1
                if left[waiting.job.route] < 0:
                    due.remove(waiting)
                    continue
            if waiting.job.expires_at_us <= self.now_us():
                waiting.done = True
                self.expired.append(waiting.job.message_id)
                continue
            waiting.leased = True
            waiting.job = replace(waiting.job, token=waiting.job.token + 1)
        self._notify()
        jobs = [waiting.job for waiting in due if not waiting.done]
        return Claim(jobs, min((w.due_us for w in self._waiting(exclude, full)), default=None))

    async def load(self, job: Job) -> Content:
        await self._unit()
        if self.load_s:
            await trio.sleep(self.load_s)
        return Content(self.messages[job.message_id].body)

    def _mine(self, job: Job) -> Waiting | None:
        waiting = self.messages[job.message_id]
        return waiting if waiting.leased and waiting.job.token == job.token and not waiting.done else None

    async def mark_in_doubt(self, job: Job) -> bool:
        await self._unit()
        if self.mark_s:
            await trio.sleep(self.mark_s)
        waiting = self._mine(job)
        if waiting is None or self.refuse_mark:
            self.elsewhere.add(job.message_id)
            return False
        waiting.marked = True
        if self.on_mark is not None:
            self.on_mark(job)
        return True

    async def report(self, attempt: Attempt) -> bool:
        await self._unit()
        waiting = self._mine(attempt.job)
        if waiting is None:
            self.refused += 1
            return False
        assert [o.recipient_id for o in attempt.outcomes] == [r.recipient_id for r in attempt.job.recipients]
        self.attempts.append(attempt)
        self.outcomes.setdefault(attempt.job.message_id, []).extend(attempt.outcomes)
        again = {o.recipient_id: o for o in attempt.outcomes if o.result in {Result.DEFERRED, Result.IN_DOUBT}}
        for outcome in again.values():
            assert outcome.retry_at_us is not None or outcome.result is Result.IN_DOUBT
        waiting.leased = waiting.marked = False
        waiting.held = any(outcome.retry_at_us is None for outcome in again.values())
        waiting.done = not again
        if again:
            waiting.due_us = min(o.retry_at_us or 0 for o in again.values())
            recipients = tuple(
                replace(r, attempts=r.attempts + 1) for r in attempt.job.recipients if r.recipient_id in again
            )
            waiting.job = replace(waiting.job, recipients=recipients)
        self._notify()
        return True

    async def release(self, *jobs: Job) -> None:
        await self._unit()
        for job in jobs:
            waiting = self._mine(job)
            if waiting is not None:
                waiting.leased = waiting.marked = False
                self.released.append(job.message_id)
        self._notify()

    async def put_off(self, job: Job, until_us: int, why: str) -> None:
        await self._unit()
        waiting = self._mine(job)
        if waiting is not None:
            waiting.leased = waiting.marked = False
            waiting.due_us = min(until_us, job.expires_at_us)
            self.put_offs.append((job.message_id, why))
        self._notify()

    def forsake(self, job: Job) -> None:
        waiting = self._mine(job)
        if waiting is not None:
            waiting.leased = waiting.marked = False
            self.forsaken.append(job.message_id)
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds after some report or release."""
        while not condition():
            await self.changed.wait()

    def check_books(self, contents: int) -> None:
        """What must hold once a pool has ended, whatever was tried: nobody keeps a lease; each recipient has one end at
        most, for which it is paid or refunded; what is sent has left, no more often than was said.  contents: how many
        of them next hops were given.
        """
        leased = {message_id for message_id, waiting in self.messages.items() if waiting.leased}
        assert leased <= self.elsewhere, "a lease was left"
        for message_id, waiting in self.messages.items():
            ends: dict[int, Result] = {}
            for outcome in self.outcomes.get(message_id, []):
                assert outcome.recipient_id not in ends, f"{message_id}: an outcome behind the end"
                if outcome.result in {Result.DELIVERED, Result.FAILED}:
                    ends[outcome.recipient_id] = outcome.result
            if waiting.done and message_id not in self.expired:
                assert set(ends) == waiting.everybody, f"{message_id}: done, but not for all"
        past = [a for a in self.attempts if a.host]
        sent = [a for a in past if any(o.result is Result.DELIVERED for o in a.outcomes)]
        assert len(sent) <= contents, "said to be sent, but never left"
        unsaid = len(self.forsaken) + self.refused + len(self.elsewhere)
        assert contents <= len(past) + unsaid, "left more often than attempts say"

    def results(self, message_id: str) -> list[Result]:
        return [outcome.result for outcome in self.outcomes.get(message_id, [])]
