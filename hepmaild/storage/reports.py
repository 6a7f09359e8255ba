# SPDX-License-Identifier: Apache-2.0
"""What delivery attempts leave behind: the mark before the final dot, and the outcome with its refund.

Both are believed only from the holder of the lease: a report with an older fencing token writes nothing.  Nothing is
marked that is paused: the unit that pauses takes back every lease it sees, and a claim or an acceptance that was under
way in that moment may have made others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, case, exists, literal, null, select, update

from hepmaild.delivery.job import Attempt, Outcome, Result
from hepmaild.mail import chaos
from hepmaild.storage import caps, messages, suppress
from hepmaild.storage.bulk import Bulk, Query, Row
from hepmaild.storage.credits import LedgerRow, Purse
from hepmaild.storage.schema import NEVER_US, message, pause, queue, recipient, suppression
from hepmaild.storage.settle import DROP_BODY, UNQUEUE, settle


@dataclass(slots=True)
class Mark:
    """The final dot of this lease is about to leave.

    Result: whether the lease still holds.  It does not when what it is for is paused, and then it is given back.
    """

    message_id: str
    destination: str
    token: int


@dataclass(slots=True)  # not frozen: its many fields would cost five times as much to set
class Report:
    """One attempt at what of a message goes to one destination.

    event: its record as JSON.  body_keep_us: how long a finished message's content stays.  rule: when an address that
    is refused for good is suppressed.  is_chaos: a chaos key's sandbox said it: nothing was charged, and it says
    nothing of any address.

    Result: whether the lease still held.
    """

    attempt: Attempt
    destination: str
    account_id: str
    event: str
    body_keep_us: int
    rule: suppress.Rule = suppress.NEVER
    message_id: str = field(init=False)
    is_chaos: bool = field(init=False)

    def __post_init__(self) -> None:
        self.message_id = self.attempt.job.message_id
        self.is_chaos = chaos.is_chaos(self.attempt.job.route)

    @property
    def may_refund(self) -> bool:
        """Whether a recipient failed for good."""
        return not self.is_chaos and any(o.result is Result.FAILED for o in self.attempt.outcomes)


_ROWS = Query(
    select(
        queue.c.message_id,
        queue.c.destination,
        queue.c.token,
        queue.c.owner,
        queue.c.route,
        message.c.waiting,
        queue.c.cap_key,
        # Asked for here, so that accounts of which nobody was refused need no statement of their own.
        exists().where(suppression.c.account_id == queue.c.account_id).label("counts_refusals"),
        exists(select(pause.c.route)).label("is_any_paused"),  # the same of what is paused
    )
    .join(message, message.c.id == queue.c.message_id)
    .where(queue.c.message_id.in_(bindparam("ids", expanding=True))),
    "ids",
)
# Every destination of the messages, not only those reported: whoever changes `message.waiting` comes this way.
_LOCK = (
    select(queue.c.message_id)
    .where(queue.c.message_id.in_(bindparam("ids", expanding=True)))
    .order_by(queue.c.message_id, queue.c.destination)
    .with_for_update()
)
_PAUSES = Query(select(pause.c.route, pause.c.destination))
# Due since it was leased.
_GIVE_BACK = Bulk(
    update(queue)
    .where(queue.c.message_id == bindparam("m"), queue.c.destination == bindparam("d"))
    .values(owner=null(), due_at_us=queue.c.due_at_us - NEVER_US, token=queue.c.token + 1),
    "m",
    "d",
)
_MARK = Bulk(
    update(queue)
    .where(queue.c.message_id == bindparam("m"), queue.c.destination == bindparam("d"))
    .values(marked=True),
    "m",
    "d",
)
_RECIPIENT = Bulk(
    update(recipient)
    .where(recipient.c.message_id == bindparam("m"), recipient.c.n == bindparam("r"))
    .values(
        state=bindparam("s"),
        attempts=recipient.c.attempts + 1,
        doubts=recipient.c.doubts + bindparam("doubt"),
        due_at_us=bindparam("due"),
        last_reply=bindparam("reply"),
        changed_at_us=bindparam("at"),
    ),
    "m",
    "r",
    "s",
    "doubt",
    "due",
    "reply",
    "at",
)
_FINISH = Bulk(
    update(message)
    .where(message.c.id == bindparam("m"))
    .values(
        waiting=0,
        failed=message.c.failed + bindparam("f"),
        state=case((message.c.failed + bindparam("f") > 0, literal("failed")), else_=literal("sent")),
        finished_at_us=bindparam("at"),
        body_until_us=bindparam("until"),
    ),
    "m",
    "f",
    "at",
    "until",
)
_PROGRESS = Bulk(
    update(message)
    .where(message.c.id == bindparam("m"))
    .values(waiting=message.c.waiting - bindparam("k"), failed=message.c.failed + bindparam("f")),
    "k",
    "f",
    "m",
)

_STATES = {
    Result.DELIVERED: "sent",
    Result.FAILED: "failed",
    Result.DEFERRED: "deferred",
    Result.IN_DOUBT: "deferred",
}


def run(
    conn: Connection, members: list[Mark | Report], purses: dict[str, Purse], ledger_rows: list[LedgerRow]
) -> list[bool]:
    """Write marks and reports of leases that still hold; whether each did."""
    ids = sorted({m.message_id for m in members})
    if conn.dialect.name == "postgresql":
        conn.execute(_LOCK, {"ids": ids})
    held = {(message_id, destination): rest for message_id, destination, *rest in _ROWS.ask(conn, ids)}
    results: list[bool] = []
    marks: list[Row] = []
    paused: list[Row] = []
    ends: dict[str, _End] = {}
    is_any_paused = any(rest[-1] for rest in held.values())
    pauses = {(p.route, p.destination) for p in _PAUSES.ask(conn)} if is_any_paused else set()
    for m in members:
        key = (m.message_id, m.destination)
        row = held.get(key)
        token = m.token if isinstance(m, Mark) else m.attempt.job.token
        if row is None:
            results.append(False)
            continue
        its_token, owner, route, waiting, cap_key, counts_refusals, _ = row
        holds = its_token == token and owner is not None
        if isinstance(m, Mark):
            may_leave = holds and pauses.isdisjoint(((route, ""), (route, m.destination)))
            results.append(may_leave)
            if holds:
                (marks if may_leave else paused).append(key)
            continue
        results.append(holds)
        if not holds:
            continue
        del held[key]  # the lease ends with its report
        end = ends.get(m.message_id)
        if end is None:
            end = ends[m.message_id] = _End(int(waiting), cap_key, bool(counts_refusals))
        end.add(m)
    _MARK.run(conn, marks)
    _GIVE_BACK.run(conn, paused)
    if ends:
        _write_reports(conn, ends.values(), purses, ledger_rows)
    return results


@dataclass(slots=True)
class _End:
    """What one unit learns of one message: the reports of some of its destinations."""

    waiting: int
    cap_key: str
    counts_refusals: bool
    reports: list[Report] = field(default_factory=list)
    final: int = 0
    failed: int = 0

    @property
    def is_chaos(self) -> bool:
        return self.reports[0].is_chaos

    def add(self, report: Report) -> None:
        for o in report.attempt.outcomes:
            if o.result is Result.DELIVERED:
                self.final += 1
            elif o.result is Result.FAILED:
                self.final += 1
                self.failed += 1
        self.reports.append(report)


def _write_reports(
    conn: Connection, ends: Collection[_End], purses: dict[str, Purse], ledger_rows: list[LedgerRow]
) -> None:
    reports = [r for end in ends for r in end.reports]
    _RECIPIENT.run(conn, [_recipient_row(r, o) for r in reports for o in r.attempt.outcomes])
    finished: list[_End] = []
    rest: list[_End] = []
    for end in ends:
        if end.failed and not end.is_chaos:
            _refund(end, purses, ledger_rows)
        (finished if end.final >= end.waiting else rest).append(end)
    if finished:
        _write_finished(conn, finished)
    if rest:
        # Some of the message still waits: here, or at another destination.
        _PROGRESS.run(conn, [(end.final, end.failed, end.reports[0].message_id) for end in rest])
        settle(conn, [(r.message_id, r.destination) for end in rest for r in end.reports])
    _note_refusals(conn, ends)
    _note_departures(conn, ends, finished)
    messages.insert_events(
        conn, [(r.message_id, r.account_id, r.attempt.ended_at_us, "attempt", r.event) for r in reports]
    )


def _note_refusals(conn: Connection, ends: Iterable[_End]) -> None:
    """Count addresses that were refused for good; forget the count of those that were delivered to."""
    ends = [end for end in ends if not end.is_chaos]
    for end in ends:
        for r in end.reports if end.failed else ():
            suppress.note(conn, r.attempt, r.rule)
    suppress.forget(conn, [delivered for end in ends if end.counts_refusals for delivered in _delivered(end)])


def _delivered(end: _End) -> Iterable[tuple[str, str]]:
    for r in end.reports:
        addresses = {to.recipient_id: to.address for to in r.attempt.job.recipients}
        yield from ((r.account_id, addresses[o.recipient_id]) for o in r.attempt.outcomes if o.result is _SENT)


def _note_departures(conn: Connection, ends: Iterable[_End], finished: Iterable[_End]) -> None:
    """Daily caps count from the end of the attempt in which a message left, or may have."""
    went = [
        (end.cap_key, r.message_id, r.attempt.ended_at_us)
        for end in ends
        if end.cap_key
        for r in end.reports
        if any(o.result in (_SENT, Result.IN_DOUBT) for o in r.attempt.outcomes)
    ]
    caps.went(conn, went)
    gone = {message_id for _, message_id, _ in went}
    ended = [(end.cap_key, end.reports[0].message_id) for end in finished if end.cap_key]
    caps.ended(conn, [row for row in ended if row[1] not in gone])


_SENT = Result.DELIVERED


def _refund(end: _End, purses: dict[str, Purse], ledger_rows: list[LedgerRow]) -> None:
    last = end.reports[-1]
    purse = purses[last.account_id]
    ledger_rows.append(purse.book(end.failed, "refund", last.attempt.ended_at_us, message_id=last.message_id))


def _recipient_row(r: Report, o: Outcome) -> Row:
    state, due = _STATES[o.result], None
    if o.result is Result.IN_DOUBT and o.retry_at_us is None:
        state, due = "held", r.attempt.job.expires_at_us
    elif o.result in (Result.DEFERRED, Result.IN_DOUBT):
        # Nothing waits past its expiry: there it is due for the last time, and expires.
        due = min(o.retry_at_us or r.attempt.ended_at_us, r.attempt.job.expires_at_us)
    reply = None if o.reply is None else str(o.reply)[:1000]
    in_doubt = int(o.result is Result.IN_DOUBT)
    return (r.message_id, o.recipient_id, state, in_doubt, due, reply, r.attempt.ended_at_us)


def _write_finished(conn: Connection, finished: list[_End]) -> None:
    _FINISH.run(conn, [_finish_row(end) for end in finished])
    UNQUEUE.run(conn, [(r.message_id, r.destination) for end in finished for r in end.reports])
    DROP_BODY.run(conn, [(r.message_id,) for r in (end.reports[-1] for end in finished) if not r.body_keep_us])


def _finish_row(end: _End) -> Row:
    r = end.reports[-1]
    at_us = r.attempt.ended_at_us
    return (r.message_id, end.failed, at_us, at_us + r.body_keep_us if r.body_keep_us else None)
