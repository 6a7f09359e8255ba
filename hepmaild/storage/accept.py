# SPDX-License-Identifier: Apache-2.0
"""Accepting messages: message, recipients, debit, ledger row, idempotency record and queue entry, in one unit."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, select

from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.submission import KeyIdentity, Recipient
from hepmaild.storage import messages
from hepmaild.storage.bulk import Query, Row, bulk_insert
from hepmaild.storage.credits import LedgerRow, Purse
from hepmaild.storage.schema import NEVER_US, idempotency, message, queue, recipient

DAY_US = 86_400_000_000


@dataclass(slots=True)  # not frozen: its many fields would cost five times as much to set
class Accept:
    """A message that passed every check but those that need the store.

    content: all of it, or None when its pieces were staged.  word: idempotency word with its namespace; it lives for
    `word_life_us`.  answer: what the caller is told unless the first attempt says otherwise (JSON).
    destinations: of each recipient in turn, on routes of kind `mx`; empty: one next hop takes them all.  owner: the
    process that delivers it at once, or None to leave it to whoever claims first, as what goes to destinations in
    `left` is.
    Result: `Taken`, `Twin`, or a `Refusal`.
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

    @property
    def leased(self) -> list[str]:
        """The destinations that `owner` delivers to at once."""
        wheres = dict.fromkeys(self.destinations) if self.destinations else ("",)
        return [] if self.owner is None else [where for where in wheres if where not in self.left]


@dataclass(frozen=True, slots=True)
class Taken:
    """The message is ours.  token: the leases', when it was leased at once."""

    token: int
    balance: int


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
    if not limit or purse.messages_on(now_us // DAY_US) < limit:
        return None
    wait_s = (DAY_US - now_us % DAY_US) // 1_000_000 + 1
    text = f"the plan allows {limit:,} messages a day and they are used up: the next day begins at 00:00 UTC"
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
    results: list[Taken | Twin | Refusal] = []
    accepted: list[Accept] = []
    stale: list[dict[str, str]] = []
    for m in members:
        result = _decide(m, purses.get(m.account_id), words, stale, now_us)
        results.append(result)
        if isinstance(result, Taken):
            purse = purses[m.account_id]
            purse.count_message(now_us // DAY_US)
            ledger_rows.append(purse.book(-len(m.recipients), "debit", m.at_us, message_id=m.message_id))
            accepted.append(m)
            if m.word is not None:
                words[m.key.key_id, m.word] = (m.fingerprint, Twin(m.message_id, m.answer, m.at_us))
    if stale:
        conn.execute(_FORGET, stale)
    if accepted:
        _write(conn, accepted)
    return results


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
    refusal = check_day(purse, m.messages_per_day, now_us) or check_balance(purse, len(m.recipients))
    if refusal is not None:
        return refusal
    return Taken(token=1, balance=purse.balance - len(m.recipients))


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
)
_WORD = bulk_insert(idempotency, "word", "key_id", "fingerprint", "message_id", "at_us")


def _write(conn: Connection, accepted: list[Accept]) -> None:
    _MESSAGE.run(conn, [_message_row(m) for m in accepted])
    _RECIPIENT.run(conn, [row for m in accepted for row in _recipient_rows(m)])
    _QUEUE.run(conn, [row for m in accepted for row in _queue_rows(m)])
    messages.insert_bodies(conn, [(m.message_id, 0, m.at_us, m.content) for m in accepted if m.content is not None])
    _WORD.run(
        conn,
        [(m.word, m.key.key_id, m.fingerprint, m.message_id, m.at_us) for m in accepted if m.word is not None],
    )
    messages.insert_events(conn, [(m.message_id, m.account_id, m.at_us, "accepted", m.event) for m in accepted])


def _recipient_rows(m: Accept) -> Iterator[Row]:
    wheres = m.destinations or ("",) * len(m.recipients)
    for n, (r, where) in enumerate(zip(m.recipients, wheres, strict=True)):
        yield (m.message_id, n, r.address, r.kind.value, where, "queued", 0, 0, m.at_us, m.at_us)


def _queue_rows(m: Accept) -> Iterator[Row]:
    for where in dict.fromkeys(m.destinations) if m.destinations else ("",):
        owner = None if where in m.left else m.owner
        due_us = m.at_us if owner is None else NEVER_US + m.at_us
        ends_us = m.expires_at_us
        yield (m.message_id, where, m.account_id, m.route, due_us, owner, 1, False, "", m.at_us, ends_us)


def _message_row(m: Accept) -> Row:
    count = len(m.recipients)
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
        "queued",
        count,
        0,
        m.at_us,
        m.expires_at_us,
        m.answer,
    )
