# SPDX-License-Identifier: Apache-2.0
"""What delivery attempts leave behind: the mark before the final dot, and the outcome with its refund.

Both are believed only from the holder of the lease: a report with an older fencing token writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, case, delete, func, literal, null, select, update

from hepmaild.delivery.job import Attempt, Outcome, Result
from hepmaild.storage import messages
from hepmaild.storage.bulk import Bulk, Row
from hepmaild.storage.credits import LedgerRow, Purse
from hepmaild.storage.schema import body, message, queue, recipient


@dataclass(frozen=True, slots=True)
class Mark:
    """The final dot of this lease is about to leave.  Result: whether the lease still holds."""

    message_id: str
    destination: str
    token: int


@dataclass(frozen=True, slots=True)
class Report:
    """One attempt.  event: its record as JSON.  body_keep_us: how long a finished message's content stays.

    Result: whether the lease still held.
    """

    attempt: Attempt
    destination: str
    account_id: str
    event: str
    body_keep_us: int

    @property
    def message_id(self) -> str:
        """The message the attempt was for."""
        return self.attempt.job.message_id

    @property
    def may_refund(self) -> bool:
        """Whether a recipient failed for good."""
        return any(o.result is Result.FAILED for o in self.attempt.outcomes)


_ROWS = (
    select(queue.c.message_id, queue.c.destination, queue.c.token, queue.c.owner, message.c.waiting)
    .join(message, message.c.id == queue.c.message_id)
    .where(queue.c.message_id.in_(bindparam("ids", expanding=True)))
)
_LOCK = (
    select(queue.c.message_id)
    .where(queue.c.message_id.in_(bindparam("ids", expanding=True)))
    .order_by(queue.c.message_id, queue.c.destination)
    .with_for_update()
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
_PROGRESS = (
    update(message)
    .where(message.c.id == bindparam("m"))
    .values(
        waiting=message.c.waiting - bindparam("k"),
        failed=message.c.failed + bindparam("f"),
        state=bindparam("s"),
    )
)
_UNQUEUE = Bulk(
    delete(queue).where(queue.c.message_id == bindparam("m"), queue.c.destination == bindparam("d")), "m", "d"
)
_DROP_BODY = Bulk(delete(body).where(body.c.message_id == bindparam("m")), "m")
_REQUEUE = (
    update(queue)
    .where(queue.c.message_id == bindparam("m"), queue.c.destination == bindparam("d"))
    .values(due_at_us=bindparam("due"), owner=null(), marked=False)
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
    held = {(r.message_id, r.destination): r for r in conn.execute(_ROWS, {"ids": ids})}
    results, marks, reports = [], [], []
    for m in members:
        row = held.get((m.message_id, m.destination))
        token = m.token if isinstance(m, Mark) else m.attempt.job.token
        holds = row is not None and row.token == token and row.owner is not None
        results.append(holds)
        if not holds:
            continue
        if isinstance(m, Mark):
            marks.append((m.message_id, m.destination))
        else:
            assert row is not None
            reports.append((m, int(row.waiting)))
    _MARK.run(conn, marks)
    if reports:
        _write_reports(conn, reports, purses, ledger_rows)
    return results


def _write_reports(
    conn: Connection,
    reports: list[tuple[Report, int]],
    purses: dict[str, Purse],
    ledger_rows: list[LedgerRow],
) -> None:
    _RECIPIENT.run(conn, [_recipient_row(r, o) for r, _ in reports for o in r.attempt.outcomes])
    finished: list[Report] = []
    for r, waiting in reports:
        failed = sum(o.result is Result.FAILED for o in r.attempt.outcomes)
        if failed:
            purse = purses[r.account_id]
            ledger_rows.append(purse.book(failed, "refund", r.attempt.ended_at_us, message_id=r.message_id))
        final = failed + sum(o.result is Result.DELIVERED for o in r.attempt.outcomes)
        if final == waiting:
            finished.append(r)
        else:
            _write_progress(conn, r, final, failed)
    if finished:
        _write_finished(conn, finished)
    messages.insert_events(
        conn, [(r.message_id, r.account_id, r.attempt.ended_at_us, "attempt", r.event) for r, _ in reports]
    )


def _recipient_row(r: Report, o: Outcome) -> Row:
    due = None
    if o.result in (Result.DEFERRED, Result.IN_DOUBT):
        # Nothing waits past its expiry: there it is due for the last time, and expires.
        due = min(o.retry_at_us or r.attempt.ended_at_us, r.attempt.job.expires_at_us)
    reply = None if o.reply is None else str(o.reply)[:1000]
    in_doubt = int(o.result is Result.IN_DOUBT)
    return (r.message_id, o.recipient_id, _STATES[o.result], in_doubt, due, reply, r.attempt.ended_at_us)


def _write_finished(conn: Connection, finished: list[Report]) -> None:
    _FINISH.run(conn, [_finish_row(r) for r in finished])
    _UNQUEUE.run(conn, [(r.message_id, r.destination) for r in finished])
    _DROP_BODY.run(conn, [(r.message_id,) for r in finished if not r.body_keep_us])


def _finish_row(r: Report) -> Row:
    at_us = r.attempt.ended_at_us
    failed = sum(o.result is Result.FAILED for o in r.attempt.outcomes)
    return (r.message_id, failed, at_us, at_us + r.body_keep_us if r.body_keep_us else None)


def _write_progress(conn: Connection, r: Report, final: int, failed: int) -> None:
    """Some of the message still waits: here, or at another destination."""
    doubt = any(o.result is Result.IN_DOUBT for o in r.attempt.outcomes)
    state = "in_doubt" if doubt else "deferred"
    conn.execute(_PROGRESS, {"m": r.message_id, "k": final, "f": failed, "s": state})
    due = conn.execute(
        select(func.min(recipient.c.due_at_us)).where(
            recipient.c.message_id == r.message_id, recipient.c.destination == r.destination
        )
    ).scalar_one()
    if due is None:
        _UNQUEUE.run(conn, [(r.message_id, r.destination)])
    else:
        conn.execute(_REQUEUE, {"m": r.message_id, "d": r.destination, "due": due})
