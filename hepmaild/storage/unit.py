# SPDX-License-Identifier: Apache-2.0
"""The unit of group commit: what arrived together is decided one by one and committed together.

A unit locks in one order (keys, accounts, queue rows, caps), decides each member on its own in the order of arrival,
collects the rows to write, and writes each table once.  A member that is refused leaves nothing behind and fails
nobody else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, update

from hepmaild.counted import counted
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.submission import RateState
from hepmaild.storage import accept, keys, rate, reports, words
from hepmaild.storage import credits as money
from hepmaild.storage.accept import Accept, Taken
from hepmaild.storage.bulk import Bulk
from hepmaild.storage.messages import insert_events
from hepmaild.storage.reports import Mark, Report
from hepmaild.storage.schema import idempotency, message
from hepmaild.storage.writer import Manner, Sync


@dataclass(slots=True)
class Call:
    """One call of a key, to be let through or not.  recipients > 0: refuse already what the balance cannot pay.

    Unless it may be a call that was made before: that costs nothing, which only its content shows.  word: the caller's
    own, with its namespace, where it is known by now.  replay_window_us: for how long SMTP's calls may come again.
    Result: `RateState` or `Refusal` (RATE_LIMITED, DAILY_LIMIT_REACHED, INSUFFICIENT_CREDITS).
    """

    key_id: str
    account_id: str
    calls_per_minute: int
    messages_per_day: int
    recipients: int
    replay_window_us: int = 0
    word: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller was told, as JSON.  free_word: it was an error, so its idempotency word may be used anew."""

    message_id: str
    account_id: str
    at_us: int
    answer: str
    free_word: bool


@dataclass(frozen=True, slots=True)
class Used:
    """A key was used."""

    key_id: str
    at_us: int
    ip: str
    door: str


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers and uses of keys.  is_awaited: not written behind everybody's back.  Result: None."""

    answers: tuple[Answer, ...]
    uses: tuple[Used, ...] = ()
    is_awaited: bool = True


@dataclass(frozen=True, slots=True)
class CallAndAccept:
    """A call whose message is there already: one commit instead of two.  Refused as a call, it is no message.

    Result: the call's, and the message's (None: it was refused as a call).
    """

    call: Call
    accept: Accept

    @property
    def account_id(self) -> str:
        """Whose it is."""
        return self.accept.account_id


Member = Call | Accept | CallAndAccept | Mark | Report | Answers

_ANSWER = Bulk(
    update(message).where(message.c.id == bindparam("the_id")).values(answer=bindparam("the_answer")),
    "the_id",
    "the_answer",
)
_FREE = Bulk(delete(idempotency).where(idempotency.c.message_id == bindparam("the_id")), "the_id")


LIGHT_MEMBERS = 64
LIGHT_OCTETS = 256 << 10


def judge(members: Sequence[Member]) -> Manner:
    """Heavy are many members, and large contents.

    A unit of calls only outlives the process, which is what the limit of calls is about: whatever a call led to is
    synced after it, and the log is one file.  An attempt that moves no money is synced soon: should a power cut
    come first, its mark is there, and the message is in doubt, as it would be had the power gone a moment before; or
    there was no mark, and it is tried again.
    """
    messages = [m.accept if isinstance(m, CallAndAccept) else m for m in members]
    octets = sum(len(m.content) for m in messages if isinstance(m, Accept) and m.content is not None)
    return Manner(is_light=len(members) <= LIGHT_MEMBERS and octets <= LIGHT_OCTETS, sync=max(map(_sync_of, members)))


def _sync_of(member: Member) -> Sync:
    if isinstance(member, Call):
        return Sync.WITH_NEXT
    if isinstance(member, Answers):
        return Sync.NOW if member.is_awaited else Sync.SOON
    return Sync.SOON if isinstance(member, Report) and not member.may_refund else Sync.NOW


class UnitRunner:
    """Runs units.  `now_us` is the process's clock."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us

    def __call__(self, conn: Connection, members: Sequence[Member]) -> list[Any]:
        """Decide and write all members; their results in the same order."""
        now_us = self._now_us()
        kinds = _Kinds(members)
        calls, attempts = kinds.calls, kinds.attempts
        uses = [(use.key_id, use.at_us, use.ip, use.door) for m in kinds.late for use in m.uses]
        if uses:
            # Written last, but locked with the windows' keys, in one order: other processes would wait for each other.
            rate.lock_keys(conn, [*(c.key_id for c in calls), *(use[0] for use in uses)])
        windows = rate.open_windows(conn, (c.key_id for c in calls), now_us) if calls else {}
        purses = self._lock_accounts(conn, kinds)
        results: dict[int, Any] = {}
        ledger_rows: list[money.LedgerRow] = []
        for call in calls:
            results[id(call)] = _decide_call(conn, call, windows.get(call.key_id), purses.get(call.account_id), now_us)
        rate.save_windows(conn, windows.values())
        if attempts:
            done = reports.run(conn, attempts, purses, ledger_rows)
            results.update(zip(map(id, attempts), done, strict=True))
        accepts = kinds.to_accept(results)
        if accepts:
            taken = accept.run(conn, accepts, purses, ledger_rows, now_us)
            results.update(zip(map(id, accepts), taken, strict=True))
        money.save(conn, purses.values(), ledger_rows)
        _write_answers(conn, [answer for m in kinds.late for answer in m.answers])
        keys.note_use(conn, uses)
        return [
            (results[id(m.call)], results.get(id(m.accept))) if isinstance(m, CallAndAccept) else results.get(id(m))
            for m in members
        ]

    @staticmethod
    def _lock_accounts(conn: Connection, kinds: _Kinds) -> dict[str, money.Purse]:
        ids = {m.account_id for m, _ in kinds.accepts}
        ids.update(call.account_id for call in kinds.calls if call.recipients or call.messages_per_day)
        ids.update(m.account_id for m in kinds.attempts if isinstance(m, Report) and m.may_refund)
        return money.lock(conn, ids) if ids else {}


class _Kinds:
    """The members of a unit by what they are, each kind in the order of arrival.

    calls: also those that came with a message.  accepts: messages, each with the call that it came with, if any.
    attempts: marks and reports.  late: answers.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.calls: list[Call] = []
        self.accepts: list[tuple[Accept, Call | None]] = []
        self.attempts: list[Mark | Report] = []
        self.late: list[Answers] = []
        for m in members:
            if isinstance(m, Accept):
                self.accepts.append((m, None))
            elif isinstance(m, Call):
                self.calls.append(m)
            elif isinstance(m, CallAndAccept):
                self.calls.append(m.call)
                self.accepts.append((m.accept, m.call))
            elif isinstance(m, Answers):
                self.late.append(m)
            else:
                self.attempts.append(m)

    def to_accept(self, results: dict[int, Any]) -> list[Accept]:
        """The messages to decide: those that came with a call only if it was let through."""
        return [m for m, call in self.accepts if call is None or not isinstance(results[id(call)], Refusal)]


def _decide_call(
    conn: Connection, call: Call, window: rate.Window | None, purse: money.Purse | None, now_us: int
) -> RateState | Refusal:
    if window is None:
        return Refusal(ErrorKind.INVALID_KEY, "this API key does not exist any more: use another one")
    limit = call.calls_per_minute
    if window.inside >= limit:
        wait_s = max(1, -(-(rate.passes_at_us(conn, window, limit) - window.clock_us) // 1_000_000))
        text = f"more than {counted(limit, 'call')} in a minute with this key: try again in {counted(wait_s, 'second')}"
        return Refusal(ErrorKind.RATE_LIMITED, text, retry_after_s=wait_s, rate=window.state(limit))
    if purse is not None:
        refusal = accept.check_day(purse, call.messages_per_day, now_us) or (
            # Some of them may be suppressed, and cost nothing: then the content is waited for.
            accept.check_balance(purse, call.recipients) if call.recipients and not purse.suppresses else None
        )
        if refusal is not None and not _may_be_again(conn, call, now_us):
            return dataclasses.replace(refusal, rate=window.state(limit))
    window.take()
    return window.state(limit)


def _may_be_again(conn: Connection, call: Call, now_us: int) -> bool:
    if call.recipients:
        args = (call.account_id, call.key_id, call.recipients, call.replay_window_us, now_us)
        return words.may_be_again(conn, *args)
    return call.word is not None and words.is_stored(conn, call.key_id, call.word, now_us - words.WORD_LIFE_US)


def _write_answers(conn: Connection, answered: list[Answer]) -> None:
    if not answered:
        return
    _ANSWER.run(conn, [(a.message_id, a.answer) for a in answered])
    insert_events(conn, [(a.message_id, a.account_id, a.at_us, "replied", a.answer) for a in answered])
    _FREE.run(conn, [(a.message_id,) for a in answered if a.free_word])


__all__ = [
    "Accept",
    "Answer",
    "Answers",
    "Call",
    "CallAndAccept",
    "Mark",
    "Member",
    "Report",
    "Taken",
    "UnitRunner",
    "Used",
]
