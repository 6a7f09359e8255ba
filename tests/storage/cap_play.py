# SPDX-License-Identifier: Apache-2.0
"""Random days of senders with daily caps, and what must hold whatever happens: on any connection, in simulated time."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from hepmaild.delivery.job import Attempt, Job, JobRecipient, Outcome, Result
from hepmaild.errors import Refusal
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import KeyIdentity, Recipient
from hepmaild.storage import cap_line, caps, claim, leases, queue
from hepmaild.storage import credits as money
from hepmaild.storage.accept import Accept, Taken
from hepmaild.storage.schema import NEVER_US, cap_use, recipient
from hepmaild.storage.schema import queue as queue_rows
from hepmaild.storage.suppress import Rule
from hepmaild.storage.unit import Mark, Report, UnitRunner
from tests.storage.books import HOUR_US, Clock, add_account

DAY_US = 24 * HOUR_US
MINUTE_US = 60_000_000
CAP_KEY = "account-1|app@example.com"
ACCOUNT = "account-1"
GRANTED = 100_000
SENDERS = (CAP_KEY, "|global@example.com", "")
KINDS = ("accept", "accept", "accept", "work", "work", "report", "wait", "cap", "cancel", "crash", "hold", "release")
UNKNOWN = Reply(550, "5.1.1", "no such user")
FULL = Reply(452, "4.2.2", "mailbox full")


class Step(NamedTuple):
    """Something that happens.  What the numbers mean depends on the kind."""

    kind: str
    a: int
    b: int
    c: int


def steps_of(st: Any) -> Any:
    """Steps as a strategy."""
    number = st.integers(0, 30)
    return st.builds(Step, st.sampled_from(KINDS), number, number, number)


@dataclass
class Play:
    """A store, and beside it what a bystander saw."""

    conn: Connection
    clock: Clock
    caps: dict[str, int] = field(default_factory=lambda: {CAP_KEY: 2, SENDERS[1]: 3})
    members: dict[str, tuple[Accept, str]] = field(default_factory=dict)
    under_way: list[Job] = field(default_factory=list)
    highest: dict[str, int] = field(default_factory=dict)  # of each leased message's sender, since the lease
    departures: list[tuple[str, str, int]] = field(default_factory=list)
    lined: list[str] = field(default_factory=list)
    left_the_line: list[str] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.unit = UnitRunner(self.clock.now_us)
        add_account(self.conn, 1, GRANTED, self.clock.us)
        for key, cap in self.caps.items():
            caps.set_cap(self.conn, key, cap)

    @staticmethod
    def any_step(dice: random.Random) -> Step:
        return Step(dice.choice(KINDS), dice.randint(0, 30), dice.randint(0, 30), dice.randint(0, 30))

    def do(self, step: Step) -> None:
        """One step, and a little time."""
        getattr(self, f"do_{step.kind}")(step)
        self.clock.us += 1000
        self.check()

    # What happens

    def do_accept(self, step: Step) -> None:
        sender = SENDERS[step.a % 3]
        cap = self.caps.get(sender, 0)
        us = self.clock.us
        member = Accept(
            message_id=f"{next(self._numbers):016x}",
            account_id=ACCOUNT,
            key=KeyIdentity("key-1", "app", "", ACCOUNT, "", "standard", 120),
            door="smtp",
            sender="x",
            route="up",
            reverse_path="x",
            subject="",
            header_message_id="<1@x>",
            size=1,
            smtputf8=False,
            recipients=tuple(Recipient(f"r{n}@example.net") for n in range(step.b % 3 + 1)),
            content=b"x",
            expires_at_us=us + 4 * DAY_US,
            at_us=us,
            messages_per_day=0,
            event="{}",
            answer="{}",
            owner="me" if step.c % 2 else None,
            cap_key=sender if cap else "",
            daily_cap=cap,
        )
        (taken,) = self.unit(self.conn, [member])
        if isinstance(taken, Refusal):
            assert taken.reply is not None
            assert "suppressed" in taken.reply.text
            return
        assert isinstance(taken, Taken)
        self.members[member.message_id] = (member, sender if cap else "")
        if taken.turn is not None:
            self.lined.append(member.message_id)
        elif member.owner is not None:
            to = [JobRecipient(n, r.address) for n, r in enumerate(member.recipients) if n not in taken.suppressed]
            self._lease(Job(member.message_id, ACCOUNT, "up", "x", tuple(to), 1, 1, False, us, member.expires_at_us))

    def do_wait(self, step: Step) -> None:
        self.clock.us += step.a * step.b * MINUTE_US

    def do_work(self, step: Step) -> None:
        self._claim(step.b % 6 + 1)
        self.do_report(step)

    def do_report(self, step: Step) -> None:
        """Every attempt under way ends, after a while."""
        dice = random.Random(step.c)
        jobs, self.under_way = self.under_way, []
        for job in jobs:
            self.clock.us += dice.choice((1, 1_000_000, 600_000_000))
            self._end(job, [self._outcome(dice, to) for to in job.recipients])

    def do_cap(self, step: Step) -> None:
        sender = SENDERS[step.a % 2]
        self.caps[sender] = step.b % 6
        caps.set_cap(self.conn, sender, self.caps[sender])
        for job in self.under_way:
            if self.members[job.message_id][1] == sender:
                before = self.highest[job.message_id]
                self.highest[job.message_id] = max(before, self.caps[sender] or 10**6)

    def do_cancel(self, step: Step) -> None:
        self._to_some(step, queue.cancel)

    def do_hold(self, step: Step) -> None:
        found = self._to_some(step, queue.hold)
        if found in self.lined:
            self.lined.remove(found)  # when it comes back it is not a first time any more

    def do_release(self, step: Step) -> None:
        self._to_some(step, queue.release)

    def do_crash(self, step: Step) -> None:
        """A process dies with what it claimed, some of it past the mark."""
        self._claim(step.b % 6 + 1)
        dice = random.Random(step.c)
        jobs, self.under_way = self.under_way, []
        for job in jobs:
            if dice.random() < 0.5 and self.unit(self.conn, [Mark(job.message_id, "", job.token)]) == [True]:
                self._depart(job, self.clock.us)
        self.clock.us += step.a * MINUTE_US
        leases.take_over(self.conn, self.clock.us, alone=True)

    # How

    def _to_some(self, step: Step, change: Any) -> str | None:
        if not self.members:
            return None
        chosen = list(self.members)[step.a * 31 % len(self.members)]
        try:
            change(self.conn, chosen, self.clock.us)
        except ValueError:
            return None
        self.under_way = [job for job in self.under_way if job.message_id != chosen or change is queue.release]
        return chosen

    def _claim(self, most: int) -> None:
        now_us = self.clock.us
        for _ in range(1000):
            at_us = cap_line.next_at_us(self.conn)
            if at_us is None or at_us > now_us:
                break
            cap_line.let_go(self.conn, now_us)
        else:
            raise AssertionError("the lines do not come to rest")
        for job in claim.claim(self.conn, "me", now_us, most, 0).jobs:
            self._lease(job)

    def _lease(self, job: Job) -> None:
        self.under_way.append(job)
        sender = self.members[job.message_id][1]
        self.highest[job.message_id] = self.caps.get(sender, 0) or 10**6
        if job.message_id in self.lined and job.message_id not in self.left_the_line:
            self.left_the_line.append(job.message_id)

    def _outcome(self, dice: random.Random, to: JobRecipient) -> Outcome:
        result = dice.choice(list(Result))
        if result is Result.FAILED:
            return Outcome(to.recipient_id, result, Reply(UNKNOWN.code, UNKNOWN.enhanced, UNKNOWN.text))
        if result is Result.DELIVERED:
            return Outcome(to.recipient_id, result, Reply(250, "2.0.0", "fine"))
        return Outcome(to.recipient_id, result, FULL, self.clock.us + dice.choice((1, 60, 3000)) * MINUTE_US)

    def _end(self, job: Job, outcomes: list[Outcome]) -> None:
        us = self.clock.us
        attempt = Attempt(job, us, us, "h", "", "", (), tuple(outcomes))
        (held,) = self.unit(self.conn, [Report(attempt, "", ACCOUNT, "{}", 0, Rule(3, DAY_US))])
        assert held
        if any(o.result in (Result.DELIVERED, Result.IN_DOUBT) for o in outcomes):
            self._depart(job, us)

    def _depart(self, job: Job, at_us: int) -> None:
        """No window of 24 hours that ends now holds more messages than the cap."""
        sender, highest = self.members[job.message_id][1], self.highest[job.message_id]
        if not sender or highest == 10**6:
            return
        others = {i for s, i, at in self.departures if s == sender and at >= at_us - DAY_US and i != job.message_id}
        assert len(others) < highest, (sender, highest, others)
        self.departures.append((sender, job.message_id, at_us))

    # What must hold

    def check(self) -> None:
        order = [i for i in self.lined if i in self.left_the_line]
        assert [i for i in self.left_the_line if i in self.lined] == order or self._by_sender_ordered()
        assert money.verify(self.conn, ACCOUNT) is None
        for key in SENDERS[:2]:
            shown = cap_line.usage(self.conn, key, self.clock.us)
            assert shown is not None
            if shown.waiting:
                at_us = cap_line.next_at_us(self.conn)
                assert at_us is not None
                assert at_us <= shown.frees_at_us[0]
        waits_or_left = select(recipient.c.message_id).where(
            recipient.c.due_at_us.is_not(None) | (recipient.c.state == "sent") | (recipient.c.doubts > 0)
        )
        lost = self.conn.execute(select(cap_use.c.message_id).where(cap_use.c.message_id.not_in(waits_or_left))).all()
        assert lost == [], "a slot that nobody needs was not given back"
        for row in self.conn.execute(select(queue_rows)):
            assert row.due_at_us < NEVER_US or row.owner == "me"

    def _by_sender_ordered(self) -> bool:
        for sender in SENDERS[:2]:
            mine = [i for i in self.left_the_line if self.members[i][1] == sender and i in self.lined]
            if mine != sorted(mine):
                return False
        return True


def check_at_the_end(play: Play) -> None:
    """Everything leaves or ends in time, and what was paid is what was delivered."""
    for job in play.under_way:
        play.clock.us += 1
        play._end(job, [Outcome(to.recipient_id, Result.DELIVERED, Reply(250, "2.0.0", "")) for to in job.recipients])
    play.under_way = []
    for _ in range(2000):
        dues = [claim.next_due_at_us(play.conn, play.clock.us), cap_line.next_at_us(play.conn)]
        times = [at for at in dues if at is not None]
        if not times:
            break
        play.clock.us = max(play.clock.us + 1, min(times))
        play._claim(100)
        jobs, play.under_way = play.under_way, []
        for job in jobs:
            delivered = [Outcome(to.recipient_id, Result.DELIVERED, Reply(250, "2.0.0", "")) for to in job.recipients]
            play._end(job, delivered)
        play.check()
    rows = play.conn.execute(select(recipient.c.state, recipient.c.due_at_us)).all()
    assert all(row.due_at_us is None for row in rows)
    assert play.conn.execute(select(queue_rows)).all() == []
    assert money.verify(play.conn, ACCOUNT) is None
    paid = sum(row.state == "sent" for row in rows)
    assert money.balance(play.conn, ACCOUNT) == GRANTED - paid
