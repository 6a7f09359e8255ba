# SPDX-License-Identifier: Apache-2.0
"""Accepting messages: message, recipients, debit, ledger row, idempotency record and queue entry, in one unit."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, bindparam, delete, select, update

from hepmaild.config import DAY_US
from hepmaild.counted import counted
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail import chaos
from hepmaild.mail.address import key_of
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import KeyIdentity, Recipient
from hepmaild.storage import caps, messages, suppress
from hepmaild.storage.bulk import Bulk, Query, Row, bulk_insert
from hepmaild.storage.caps import Turn, Wish
from hepmaild.storage.credits import LedgerRow, Purse
from hepmaild.storage.schema import NEVER_US, idempotency, message, queue, recipient


@dataclass(slots=True)  # not frozen: its many fields would cost five times as much to set
class Accept:
    """A message that passed every check but those that need the store.

    content: all of it, or None when its pieces were staged.  word: idempotency word with its namespace; it lives for
    `word_life_us`.  answer: what the caller is told unless the first attempt says otherwise (JSON).
    destinations: of each recipient in turn, on routes of kind `mx`; empty: one next hop takes them all.  owner: the
    process that delivers it at once, or None to leave it to whoever claims first, as what goes to destinations in
    `left` is.  cap_key, daily_cap: of its sender; "": it has no daily cap.  tell: the answer once the unit knows who is
    suppressed and what waits behind a cap.  price: credits for each recipient; what a chaos key sends goes nowhere, and
    costs nothing.
    Result: `Taken`, `Twin`, or a `Refusal`; RELAY_FAILED: every recipient is suppressed, and only the log has it.
    """

    message_id: str
    account_id: str
    key: KeyIdentity
    door: str
    sender: str
    route: str
    reverse_path: str
    subject: str
    header_message_id: str
    size: int
    smtputf8: bool
    recipients: tuple[Recipient, ...]
    content: bytes | None
    expires_at_us: int
    at_us: int
    messages_per_day: int
    event: str
    answer: str
    word: str | None = None
    word_life_us: int = 0
    fingerprint: bytes = b""
    owner: str | None = None
    destinations: tuple[str, ...] = ()
    left: Collection[str] = ()
    cap_key: str = ""
    daily_cap: int = 0
    tell: Callable[[Accept, Taken], str] | None = None
    price: int = field(init=False)

    def __post_init__(self) -> None:
        self.price = 0 if chaos.is_chaos(self.route) else 1

    @property
    def leased(self) -> list[str]:
        """The destinations that `owner` delivers to at once."""
        wheres = dict.fromkeys(self.destinations) if self.destinations else ("",)
        return [] if self.owner is None else [where for where in wheres if where not in self.left]


@dataclass(frozen=True, slots=True)
class Taken:
    """The message is ours.  token: the leases', when it was leased at once.

    turn: it waits behind the daily cap of its sender, and nothing of it was leased.  suppressed: the recipients, by
    their place, who are not sent to, and why; what only they go to was not leased.
    """

    token: int
    balance: int
    turn: Turn | None = None
    suppressed: Mapping[int, Reply] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Twin:
    """The same call was accepted before.  answer: what its caller was, or is to be, told (JSON)."""

    message_id: str
    answer: str
    at_us: int


_TWINS = Query(
    select(
        idempotency.c.key_id,
        idempotency.c.word,
        idempotency.c.fingerprint,
        idempotency.c.message_id,
        idempotency.c.at_us,
        message.c.answer,
    )
    .join(message, message.c.id == idempotency.c.message_id, isouter=True)
    .where(idempotency.c.word.in_(bindparam("words", expanding=True))),
    "words",
)
_FORGET = delete(idempotency).where(
    idempotency.c.key_id == bindparam("the_key"), idempotency.c.word == bindparam("the_word")
)


def check_day(purse: Purse, limit: int, now_us: int) -> Refusal | None:
    """The plan's messages a day (UTC); 0: no limit."""
    day = purse.day_at(now_us)
    if not limit or purse.messages_on(day) < limit:
        return None
    wait_s = ((day + 1) * DAY_US - now_us) // 1_000_000 + 1
    text = f"the plan allows {counted(limit, 'message')} a day, all used up: the next day begins at 00:00 UTC"
    return Refusal(ErrorKind.DAILY_LIMIT_REACHED, text, retry_after_s=wait_s)


def check_balance(purse: Purse, required: int) -> Refusal | None:
    """One credit for every distinct recipient."""
    if purse.balance >= required:
        return None
    text = f"not enough credits: {required} required, {purse.balance} left; add credits and send again"
    return Refusal(ErrorKind.INSUFFICIENT_CREDITS, text, extra={"required": required, "balance": purse.balance})


def run(
    conn: Connection, members: list[Accept], purses: dict[str, Purse], ledger_rows: list[LedgerRow], now_us: int
) -> list[Taken | Twin | Refusal]:
    """Decide each member in turn, then write what was accepted.  The purses are locked; their owner saves them."""
    words = _find_twins(conn, members)
    spared = _find_suppressed(conn, members, purses, now_us)
    results: list[Taken | Twin | Refusal] = []
    accepted: dict[int, Accept] = {}
    failed: list[tuple[Accept, Mapping[int, Reply]]] = []
    stale: list[dict[str, str]] = []
    for m in members:
        suppressed = spared.get(m.message_id, _NOBODY)
        result = _decide(m, purses.get(m.account_id), words, stale, now_us, suppressed)
        results.append(result)
        if isinstance(result, Taken):
            purse = purses[m.account_id]
            purse.count_message(purse.day_at(now_us))
            if m.price:
                cost = m.price * (len(m.recipients) - len(suppressed))
                ledger_rows.append(purse.book(-cost, "debit", m.at_us, message_id=m.message_id))
            accepted[len(results) - 1] = m
            if m.word is not None:
                words[m.key.key_id, m.word] = (m.fingerprint, Twin(m.message_id, m.answer, m.at_us))
        elif isinstance(result, Refusal) and result.kind is ErrorKind.RELAY_FAILED:
            failed.append((m, suppressed))
    if stale:
        conn.execute(_FORGET, stale)
    if accepted:
        _take_turns(conn, accepted, results, now_us)
        _tell_better(accepted, results)
        _write(conn, [(m, results[n]) for n, m in accepted.items()])  # type: ignore[misc]  # Taken, each of them
    if failed:
        _write_failed(conn, failed)
    return results


_NOBODY: Mapping[int, Reply] = {}


def _find_suppressed(
    conn: Connection, members: list[Accept], purses: dict[str, Purse], now_us: int
) -> dict[str, Mapping[int, Reply]]:
    """The suppressed recipients of each message.  Accounts that suppress nobody are not asked for, and to the sandbox
    of a chaos key everybody may be sent."""
    found: dict[str, Mapping[int, Reply]] = {}
    for account_id, purse in purses.items():
        mine = [m for m in members if m.account_id == account_id and m.price] if purse.suppresses else []
        if not mine:
            continue
        hits = suppress.find(conn, account_id, [key_of(r.address) for m in mine for r in m.recipients], now_us)
        for m in mine if hits else ():
            places = {n: key_of(r.address) for n, r in enumerate(m.recipients)}
            found[m.message_id] = {n: hits[key].reply for n, key in places.items() if key in hits}
    return found


def _take_turns(
    conn: Connection, accepted: dict[int, Accept], results: list[Taken | Twin | Refusal], now_us: int
) -> None:
    """Who has a daily cap takes a slot, or a place in the line.  Without any cap there is nothing to ask."""
    wishes = [
        Wish(m.message_id, m.cap_key, m.daily_cap, m.at_us, m.expires_at_us) for m in accepted.values() if m.cap_key
    ]
    turns = caps.ask(conn, wishes, now_us) if wishes else {}
    for n, m in accepted.items() if turns else ():
        taken = results[n]
        if m.message_id in turns and isinstance(taken, Taken):
            results[n] = replace(taken, turn=turns[m.message_id])


def _tell_better(accepted: dict[int, Accept], results: list[Taken | Twin | Refusal]) -> None:
    """What twins are told says who is suppressed, and what waits behind a cap."""
    told: dict[str, str] = {}
    for n, m in accepted.items():
        taken = results[n]
        if m.tell is not None and isinstance(taken, Taken) and (taken.suppressed or taken.turn is not None):
            m.answer = told[m.message_id] = m.tell(m, taken)
    for n, result in enumerate(results) if told else ():
        if isinstance(result, Twin) and result.message_id in told:
            results[n] = replace(result, answer=told[result.message_id])


def _find_twins(conn: Connection, members: list[Accept]) -> dict[tuple[str, str], tuple[bytes, Twin]]:
    words = {m.word for m in members if m.word is not None}
    if not words:
        return {}
    rows = _TWINS.ask(conn, sorted(words))  # of any key: words of others do no harm
    return {
        (key_id, word): (fingerprint, Twin(message_id, answer or "{}", at_us))
        for key_id, word, fingerprint, message_id, at_us, answer in rows
    }


def _decide(
    m: Accept,
    purse: Purse | None,
    words: dict[tuple[str, str], tuple[bytes, Twin]],
    stale: list[dict[str, str]],
    now_us: int,
    suppressed: Mapping[int, Reply],
) -> Taken | Twin | Refusal:
    if purse is None:
        return Refusal(ErrorKind.INVALID_KEY, "the account of this API key does not exist any more")
    if purse.status != "active":
        return Refusal(ErrorKind.ACCOUNT_SUSPENDED, "the account is suspended: ask its operator")
    if m.word is not None and (m.key.key_id, m.word) in words:
        fingerprint, twin = words[m.key.key_id, m.word]
        if twin.at_us + m.word_life_us > now_us:
            if fingerprint == m.fingerprint:
                return twin
            text = "this idempotency key was used for another message in the last 24 hours: use a new one"
            return Refusal(ErrorKind.IDEMPOTENCY_MISMATCH, text)
        stale.append({"the_key": m.key.key_id, "the_word": m.word})
        del words[m.key.key_id, m.word]
    recipients = len(m.recipients) - len(suppressed)
    cost = m.price * recipients
    refusal = check_day(purse, m.messages_per_day, now_us) or check_balance(purse, cost)
    if refusal is not None:
        return refusal
    if not recipients:
        first = suppressed[0]
        text = (
            f"Every recipient is suppressed: {first}. Nothing was charged; lift the suppression to send all the same."
        )
        return Refusal(ErrorKind.RELAY_FAILED, text, reply=first)
    return Taken(token=1, balance=purse.balance - cost, suppressed=suppressed)


_MESSAGE = bulk_insert(
    message,
    "id",
    "account_id",
    "key_id",
    "key_name",
    "key_last_five",
    "door",
    "sender",
    "route",
    "reverse_path",
    "subject",
    "header_message_id",
    "size",
    "smtputf8",
    "recipients",
    "state",
    "waiting",
    "failed",
    "accepted_at_us",
    "expires_at_us",
    "answer",
)
_RECIPIENT = bulk_insert(
    recipient,
    "message_id",
    "n",
    "address",
    "kind",
    "destination",
    "state",
    "attempts",
    "doubts",
    "due_at_us",
    "last_reply",
    "changed_at_us",
)
_QUEUE = bulk_insert(
    queue,
    "message_id",
    "destination",
    "account_id",
    "route",
    "due_at_us",
    "owner",
    "token",
    "marked",
    "cap_key",
    "accepted_at_us",
    "expires_at_us",
    "line_us",
)
_WORD = bulk_insert(idempotency, "word", "key_id", "fingerprint", "message_id", "at_us")


def _write(conn: Connection, accepted: list[tuple[Accept, Taken]]) -> None:
    _MESSAGE.run(conn, [_message_row(m, taken) for m, taken in accepted])
    _RECIPIENT.run(conn, [row for m, taken in accepted for row in _recipient_rows(m, taken)])
    _QUEUE.run(conn, [row for m, taken in accepted for row in _queue_rows(m, taken)])
    members = [m for m, _ in accepted]
    messages.insert_bodies(conn, [(m.message_id, 0, m.at_us, m.content) for m in members if m.content is not None])
    _WORD.run(
        conn,
        [(m.word, m.key.key_id, m.fingerprint, m.message_id, m.at_us) for m in members if m.word is not None],
    )
    messages.insert_events(conn, [(m.message_id, m.account_id, m.at_us, "accepted", m.event) for m in members])


def _recipient_rows(m: Accept, taken: Taken) -> Iterator[Row]:
    wheres = m.destinations or ("",) * len(m.recipients)
    turn, suppressed = taken.turn, taken.suppressed
    state, due_us, said = ("queued", m.at_us, None) if turn is None else ("capped", turn.due_at_us, turn.text)
    for n, (r, where) in enumerate(zip(m.recipients, wheres, strict=True)):
        if n in suppressed:
            yield (m.message_id, n, r.address, r.kind.value, where, "failed", 0, 0, None, str(suppressed[n]), m.at_us)
        else:
            yield (m.message_id, n, r.address, r.kind.value, where, state, 0, 0, due_us, said, m.at_us)


def destinations_of(m: Accept, taken: Taken) -> Collection[str]:
    """Where something of the message goes: not where all are suppressed."""
    if not m.destinations:
        return ("",)
    return dict.fromkeys(where for n, where in enumerate(m.destinations) if n not in taken.suppressed)


def _queue_rows(m: Accept, taken: Taken) -> Iterator[Row]:
    ends_us = m.expires_at_us
    line_us = None if taken.turn is None else m.at_us
    for where in destinations_of(m, taken):
        owner = None if where in m.left or line_us is not None else m.owner
        due_us = ends_us if line_us is not None else m.at_us if owner is None else NEVER_US + m.at_us
        yield (
            m.message_id,
            where,
            m.account_id,
            m.route,
            due_us,
            owner,
            1,
            False,
            m.cap_key,
            m.at_us,
            ends_us,
            line_us,
        )


_FAILED = Bulk(
    update(message)
    .where(message.c.id == bindparam("m"))
    .values(state="failed", finished_at_us=bindparam("at"), body_until_us=bindparam("at"), answer=bindparam("said")),
    "m",
    "at",
    "said",
)


def _write_failed(conn: Connection, failed: list[tuple[Accept, Mapping[int, Reply]]]) -> None:
    """Messages of which every recipient is suppressed: only for the log.  What was staged of them is swept at once."""
    every = [(m, Taken(0, 0, suppressed=suppressed)) for m, suppressed in failed]
    _MESSAGE.run(conn, [_message_row(m, taken) for m, taken in every])
    said = {
        m.message_id: json.dumps({"refused": ErrorKind.RELAY_FAILED.api_code, "reply": str(taken.suppressed[0])})
        for m, taken in every
    }
    _FAILED.run(conn, [(m.message_id, m.at_us, said[m.message_id]) for m, _ in every])
    _RECIPIENT.run(conn, [row for m, taken in every for row in _recipient_rows(m, taken)])
    messages.insert_events(conn, [(m.message_id, m.account_id, m.at_us, "suppressed", m.event) for m, _ in every])


def _message_row(m: Accept, taken: Taken) -> Row:
    count, failed = len(m.recipients), len(taken.suppressed)
    return (
        m.message_id,
        m.account_id,
        m.key.key_id,
        m.key.key_name,
        m.key.last_five,
        m.door,
        m.sender,
        m.route,
        m.reverse_path,
        m.subject,
        m.header_message_id,
        m.size,
        m.smtputf8,
        count,
        "queued" if taken.turn is None else "capped",
        count - failed,
        failed,
        m.at_us,
        m.expires_at_us,
        m.answer,
    )
