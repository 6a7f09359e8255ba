# SPDX-License-Identifier: Apache-2.0
"""Random lives of messages with several destinations, in several processes, and what must hold whatever happens.

On any connection, in simulated time.  The bystander keeps what it was told and looks at the tables after every step.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from hepmaild.config import InDoubt
from hepmaild.delivery.job import Job, Result
from hepmaild.mail.chaos import route_of
from hepmaild.mail.submission import KeyIdentity, Recipient
from hepmaild.storage import claim, leases, queue, ring, schema
from hepmaild.storage import credits as money
from hepmaild.storage.accept import Accept, Taken
from hepmaild.storage.queue import Where
from hepmaild.storage.schema import NEVER_US
from hepmaild.storage.unit import Mark, Report, UnitRunner
from tests.storage.books import HOUR_US, START_US, Clock, add_account, age_leases
from tests.storage.mx_books import job_of, report_on

ACCOUNT = "account-1"
GRANTED = 100_000
WHERES = ("a.example", "b.example", "c.example")
OWNERS = ("one", "two")
LEASE_US = 60_000_000
FINAL = ("sent", "failed", "expired", "cancelled")
KINDS = (
    *("accept", "accept", "claim", "claim", "claim", "report", "report", "report", "mark", "mark", "together"),
    *("release", "forsake", "die", "take_over", "lose", "wait", "wait", "wait", "long_wait", "expire"),
    *("hold", "let_go", "cancel", "retry", "pause", "resume", "retry_some", "let_go_some", "goodbye"),
)


CHAOS = route_of("greylist")  # what goes this way is never paid for
ROUTES = ("mx", "up", CHAOS)


class Step(NamedTuple):
    """Something that happens.  What the numbers mean depends on the kind."""

    kind: str
    a: int
    b: int
    c: int


@dataclass
class Attempted:
    """A lease that somebody has, or thinks to have."""

    owner: str
    job: Job
    marked: bool = False

    @property
    def row(self) -> tuple[str, str]:
        return self.job.message_id, self.job.destination


@dataclass
class Play:
    """A store, and beside it what a bystander saw."""

    conn: Connection
    clock: Clock
    in_doubt: InDoubt = InDoubt.RETRY
    members: dict[str, Accept] = field(default_factory=dict)
    attempts: list[Attempted] = field(default_factory=list)  # of the living, also those that lost their lease
    ghosts: list[Attempted] = field(default_factory=list)  # of the dead
    jobs: dict[tuple[str, str, int], Job] = field(default_factory=dict)
    doubts: Counter[tuple[str, int]] = field(default_factory=Counter)
    cursors: Any = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    aged_at_us: int = START_US
    _numbers: Any = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.unit = UnitRunner(self.clock.now_us)
        add_account(self.conn, 1, GRANTED, self.clock.us)

    @staticmethod
    def any_step(dice: random.Random) -> Step:
        return Step(dice.choice(KINDS), dice.randint(0, 30), dice.randint(0, 30), dice.randint(0, 30))

    def do(self, step: Step) -> None:
        """One step, and a little time."""
        self.seen[step.kind] += bool(getattr(self, f"do_{step.kind}")(step))
        self.clock.us += 1000
        self.check()

    # What processes do

    def do_accept(self, step: Step) -> bool:
        wheres = [WHERES[n % 3] for n in range(step.a, step.a + step.b % 4 + 1)]
        is_mx = step.c % 4 != 0
        us = self.clock.us
        member = Accept(
            message_id=f"{next(self._numbers):016x}",
            account_id=ACCOUNT,
            key=KeyIdentity("key-1", "app", "", ACCOUNT, "", "standard", 120),
            door="smtp",
            sender="x",
            route="mx" if is_mx else "up" if step.a % 3 else CHAOS,
            reverse_path="x",
            subject="",
            header_message_id="<1@x>",
            size=1,
            smtputf8=False,
            recipients=tuple(Recipient(f"r{n}@{where}") for n, where in enumerate(wheres)),
            content=b"x",
            expires_at_us=us + 10 * HOUR_US,
            at_us=us,
            messages_per_day=0,
            event="{}",
            answer="{}",
            owner=OWNERS[step.c % 2] if step.c % 3 else None,
            destinations=tuple(wheres) if is_mx else (),
            left=(WHERES[0],) if step.c % 5 == 0 else (),
        )
        (taken,) = self.unit(self.conn, [member])
        assert isinstance(taken, Taken)
        self.members[member.message_id] = member
        self._stay_alive(OWNERS[step.c % 2])
        for where in member.leased:
            self._leased(OWNERS[step.c % 2], job_of(member, where))
        return True

    def _stay_alive(self, owner: str) -> None:
        self._age()
        leases.stay_alive(self.conn, owner, LEASE_US, self.clock.us)

    def _age(self) -> None:
        """On PostgreSQL processes live by the server's clock, and what the play's moved is told to their rows."""
        if self.conn.dialect.name == "postgresql":
            age_leases(self.conn, self.clock.us - self.aged_at_us)
        self.aged_at_us = self.clock.us

    def _leased(self, owner: str, job: Job) -> None:
        key = (job.message_id, job.destination, job.token)
        assert key not in self.jobs, "a token is used once"
        self.jobs[key] = job
        self.attempts.append(Attempted(owner, job))

    def do_claim(self, step: Step) -> bool:
        owner = OWNERS[step.a % 2]
        self._stay_alive(owner)
        full = {("mx", WHERES[step.c % 3])} if step.c % 4 == 0 else set()
        exclude = ("up",) if step.c % 5 == 0 else ()
        before = {(r.message_id, r.n): r for r in self.conn.execute(select(schema.recipient))}
        found = claim.claim(self.conn, owner, self.clock.us, step.b % 5 + 1, 0, exclude, full, self.cursors)
        self.cursors = found.cursors
        assert len(found.jobs) <= step.b % 5 + 1
        paused = {(p["route"], p["destination"]) for p in queue.pauses(self.conn)}
        for job in found.jobs:
            assert job.expires_at_us > self.clock.us
            assert job.route not in exclude
            assert (job.route, job.destination) not in full | paused
            assert (job.route, "") not in paused
            for r in job.recipients:
                was = before[job.message_id, r.recipient_id]
                assert was.state in ("queued", "deferred")
                assert was.due_at_us <= self.clock.us
                assert r.attempts == was.attempts
            self._leased(owner, job)
        if len(found.jobs) < step.b % 5 + 1 and found.is_complete:
            due_us = ring.first_due_at_us(self.conn, self.clock.us, ring.what_is_shut(self.conn, exclude, full))
            assert due_us is None or due_us > self.clock.us, "something due was left"
        return bool(found.jobs)

    def _pick(self, step: Step) -> Attempted | None:
        """Mostly an attempt of a living process; sometimes one of a dead one, that comes late."""
        crowd = self.ghosts if step.b % 7 == 0 and self.ghosts else self.attempts
        return crowd[step.a % len(crowd)] if crowd else None

    def _holds(self, attempted: Attempted) -> bool:
        row = self.conn.execute(
            select(schema.queue.c.token, schema.queue.c.owner).where(
                schema.queue.c.message_id == attempted.job.message_id,
                schema.queue.c.destination == attempted.job.destination,
            )
        ).one_or_none()
        return row is not None and row.token == attempted.job.token and row.owner is not None

    def _is_paused(self, job: Job) -> bool:
        paused = {(p["route"], p["destination"]) for p in queue.pauses(self.conn)}
        return not paused.isdisjoint({(job.route, ""), (job.route, job.destination)})

    def _gone(self, attempted: Attempted) -> None:
        if attempted in self.attempts:
            self.attempts.remove(attempted)

    def do_mark(self, step: Step) -> bool:
        attempted = self._pick(step)
        if attempted is None or attempted.marked:  # nobody marks a lease twice
            return False
        expected = self._holds(attempted) and not self._is_paused(attempted.job)
        mark = Mark(attempted.job.message_id, attempted.job.destination, attempted.job.token)
        assert self.unit(self.conn, [mark]) == [expected]
        attempted.marked = expected
        assert self._holds(attempted) is expected, "what is paused is given back"
        return expected

    def _report(self, attempted: Attempted, step: Step) -> Report:
        results = list(Result)
        each = [results[(step.c + n * (step.b % 2)) % 4] for n in range(len(attempted.job.recipients))]
        due_us = self.clock.us + (step.b % 5) * HOUR_US
        holds = self.in_doubt is InDoubt.HOLD
        return report_on(attempted.job, self.clock.us, *each, due_us=due_us, hold=holds, spread_us=HOUR_US)

    def _reported(self, report: Report) -> None:
        for o in report.attempt.outcomes:
            if o.result is Result.IN_DOUBT:
                self.doubts[report.message_id, o.recipient_id] += 1

    def do_report(self, step: Step) -> bool:
        attempted = self._pick(step)
        if attempted is None:
            return False
        expected = self._holds(attempted)
        report = self._report(attempted, step)
        assert self.unit(self.conn, [report]) == [expected]
        if expected:
            self._reported(report)
        self._gone(attempted)
        return expected

    def do_together(self, step: Step) -> bool:
        """Several report and mark in one unit; one says the same twice."""
        some = self.attempts[: step.a % 4 + 1]
        if not some:
            return False
        held = [self._holds(attempted) for attempted in some]
        reports = [self._report(attempted, step) for attempted in some]
        twice = self._report(some[0], step)
        last = Mark(some[0].job.message_id, some[0].job.destination, some[0].job.token)
        done = self.unit(self.conn, [*reports, twice, last])
        assert done == [*held, False, False]
        for attempted, holds, report in zip(some, held, reports, strict=True):
            if holds:
                self._reported(report)
            self._gone(attempted)
        return any(held)

    def do_release(self, step: Step) -> bool:
        attempted = self._pick(step)
        if attempted is None:
            return False
        expected = self._holds(attempted)
        job = attempted.job
        assert leases.release(self.conn, job.message_id, job.destination, job.token, self.clock.us) is expected
        self._gone(attempted)
        return expected

    def do_forsake(self, step: Step) -> bool:
        attempted = self._pick(step)
        if attempted is None:
            return False
        expected = self._holds(attempted)
        job = attempted.job
        marked = self._marked(lambda r: (r.message_id, r.destination) == attempted.row) if expected else []
        done = leases.forsake(self.conn, {attempted.row: job.token}, self.clock.us, self.in_doubt)
        assert done == {attempted.row: expected}
        self._doubt(marked)
        self._gone(attempted)
        return expected

    def _marked(self, chosen: Any) -> list[Job]:
        rows = self.conn.execute(select(schema.queue).where(schema.queue.c.marked)).all()
        return [self.jobs[r.message_id, r.destination, r.token] for r in rows if chosen(r)]

    def _doubt(self, jobs: list[Job]) -> None:
        for job in jobs:
            for r in job.recipients:
                self.doubts[job.message_id, r.recipient_id] += 1

    def do_die(self, step: Step) -> bool:
        """A process dies; what it had in hand may still come late."""
        owner = OWNERS[step.a % 2]
        mine = [attempted for attempted in self.attempts if attempted.owner == owner]
        self.attempts = [attempted for attempted in self.attempts if attempted.owner != owner]
        self.ghosts = (self.ghosts + mine)[-20:]
        return bool(mine)

    def do_goodbye(self, step: Step) -> bool:
        owner = OWNERS[step.a % 2]
        marked = self._marked(lambda r: r.owner == owner)
        leases.say_goodbye(self.conn, owner, self.clock.us, self.in_doubt)
        self._doubt(marked)
        return self.do_die(step)

    def do_take_over(self, step: Step) -> bool:
        self.clock.us += LEASE_US * (step.a % 3 == 0)
        now_us = self.clock.us
        self._age()
        clock_us = leases.clock_us(self.conn, now_us)
        alive = set(
            self.conn.execute(select(schema.process.c.id).where(schema.process.c.alive_until_us > clock_us)).scalars()
        )
        marked = self._marked(lambda r: r.owner not in alive)
        owned = self.conn.execute(select(schema.queue.c.owner).where(schema.queue.c.owner.is_not(None))).scalars()
        expected = sum(owner not in alive for owner in owned)
        assert leases.take_over(self.conn, now_us, alone=False, in_doubt=self.in_doubt) == expected
        self._doubt(marked)
        return bool(expected)

    def do_lose(self, step: Step) -> bool:
        """A claim whose answer is lost."""
        owner = OWNERS[step.a % 2]
        found = claim.claim(self.conn, owner, self.clock.us, 3, 0)
        for job in found.jobs:
            self.jobs[job.message_id, job.destination, job.token] = job
        leases.free_uncertain(self.conn, owner, {}, [self.clock.us], self.clock.us)
        for job in found.jobs:
            assert not self._holds(Attempted(owner, job))
        return bool(found.jobs)

    def do_wait(self, step: Step) -> bool:
        self.clock.us += step.a * 5_000_000
        return True

    def do_long_wait(self, step: Step) -> bool:
        self.clock.us += step.a * HOUR_US // 8
        return True

    def do_expire(self, step: Step) -> bool:
        return claim.expire(self.conn, self.clock.us, 0, step.a % 3 + 1) > 0

    # What the operator does

    def _try(self, change: Any, step: Step, state: str = "") -> bool:
        """Change a message: in some state, or any that waits, or sometimes any."""
        waiting = select(schema.recipient.c.message_id).where(schema.recipient.c.due_at_us.is_not(None)).distinct()
        if state:
            waiting = waiting.where(schema.recipient.c.state == state)
        ids = list(self.members) if step.b % 7 == 0 else sorted(self.conn.execute(waiting).scalars())
        if not ids:
            return False
        chosen = ids[step.a % len(ids)]
        try:
            change(self.conn, chosen, self.clock.us)
        except ValueError:
            return False
        return True

    def do_hold(self, step: Step) -> bool:
        return self._try(queue.hold, step)

    def do_let_go(self, step: Step) -> bool:
        return self._try(queue.release, step, "held")

    def do_cancel(self, step: Step) -> bool:
        return self._try(queue.cancel, step)

    def do_retry(self, step: Step) -> bool:
        return self._try(queue.retry, step)

    def do_retry_some(self, step: Step) -> bool:
        where = Where("mx", WHERES[step.a % 3]) if step.b % 2 else Where("up")
        return queue.retry_some(self.conn, where, self.clock.us).recipients > 0

    def do_let_go_some(self, step: Step) -> bool:
        where = Where(None, WHERES[step.a % 3]) if step.b % 2 else Where("mx")
        return queue.release_some(self.conn, where, self.clock.us).recipients > 0

    def do_pause(self, step: Step) -> bool:
        queue.pause_route(self.conn, "mx", WHERES[step.a % 3] if step.b % 2 else "", "", self.clock.us)
        return True

    def do_resume(self, step: Step) -> bool:
        paused = queue.pauses(self.conn)
        if paused:
            queue.resume(self.conn, paused[0]["route"], paused[0]["destination"])
        return bool(paused)

    # What must hold

    def check(self) -> None:
        """After every step."""
        rows = {(r.message_id, r.destination): r for r in self.conn.execute(select(schema.queue))}
        recipients = self.conn.execute(select(schema.recipient)).all()
        heads = {r.id: r for r in self.conn.execute(select(schema.message))}
        waiting: dict[tuple[str, str], list[Any]] = {}
        refunds: Counter[str] = Counter()
        for r in recipients:
            assert (r.due_at_us is None) == (r.state in FINAL)
            assert r.doubts == self.doubts[r.message_id, r.n], "doubts are counted"
            if r.state in ("failed", "expired", "cancelled") and heads[r.message_id].route != CHAOS:
                refunds[r.message_id] += 1
            if r.due_at_us is not None:
                waiting.setdefault((r.message_id, r.destination), []).append(r)
        assert rows.keys() == waiting.keys(), "what waits has a row, and nothing else has"
        for key, row in rows.items():
            self._check_row(row, waiting[key])
        self._check_messages(heads, waiting)
        self._check_money([r for r in recipients if heads[r.message_id].route != CHAOS], refunds)

    def _check_row(self, row: Any, waiting: list[Any]) -> None:
        if row.owner is None:
            first_us = min(r.due_at_us for r in waiting)
            assert first_us <= row.due_at_us <= max(first_us, self.clock.us), "due when the first of them is"
            assert first_us <= max(row.expires_at_us, self.clock.us)
            assert not row.marked
            return
        assert row.due_at_us >= NEVER_US
        job = self.jobs[row.message_id, row.destination, row.token]
        known = [a for a in (*self.attempts, *self.ghosts) if (a.job is job) and a.owner == row.owner]
        assert known, "a lease that nobody has"
        leased = {r.recipient_id for r in job.recipients}
        due = {r.n for r in waiting if r.due_at_us <= row.due_at_us - NEVER_US and r.state in ("queued", "deferred")}
        assert due == leased, "it is known which recipients an attempt is for"

    def _check_messages(self, heads: dict[str, Any], waiting: dict[tuple[str, str], list[Any]]) -> None:
        by_message: dict[str, list[Any]] = {}
        for (message_id, _), some in waiting.items():
            by_message.setdefault(message_id, []).extend(some)
        for message_id, head in heads.items():
            rest = by_message.get(message_id, [])
            assert head.waiting == len(rest)
            assert (head.finished_at_us is None) == bool(rest)
            if rest:
                states = {r.state for r in rest}
                doubt = any(r.doubts for r in rest)
                wanted = (
                    "held"
                    if "held" in states
                    else "in_doubt"
                    if doubt
                    else "deferred"
                    if "deferred" in states
                    else "queued"
                )
                assert head.state == wanted
            else:
                assert head.state in ("sent", "failed", "cancelled")

    def _check_money(self, paid: list[Any], refunds: Counter[str]) -> None:
        assert money.verify(self.conn, ACCOUNT) is None
        assert money.balance(self.conn, ACCOUNT) == GRANTED - len(paid) + refunds.total()
        booked = self.conn.execute(
            select(schema.ledger.c.message_id, func.sum(schema.ledger.c.amount))
            .where(schema.ledger.c.reason == "refund")
            .group_by(schema.ledger.c.message_id)
        )
        assert {m: int(amount) for m, amount in booked} == dict(refunds), "each is refunded once"

    def end(self) -> None:
        """Everybody dies, everything is let go: then nothing is left behind."""
        for owner in range(2):
            self.do_die(Step("die", owner, 0, 0))
        self.clock.us += LEASE_US
        self.do_take_over(Step("take_over", 0, 0, 0))
        self.check()
        assert self.conn.execute(select(schema.queue).where(schema.queue.c.owner.is_not(None))).first() is None
        due_us = claim.next_due_at_us(self.conn, self.clock.us, ROUTES)
        waiting = self.conn.execute(select(func.min(schema.queue.c.expires_at_us))).scalar()
        assert due_us == waiting, "what nobody claims still expires in time"
        if waiting is not None:
            self.clock.us += 11 * HOUR_US
            while claim.claim(self.conn, "one", self.clock.us, 5, 0, ROUTES).expired:
                self.check()
        assert self.conn.execute(select(schema.queue)).first() is None
        assert claim.next_due_at_us(self.conn, self.clock.us) is None
