# SPDX-License-Identifier: Apache-2.0
"""What holds in every store after every test, whatever was tried in it: the money, and that nothing is lost.

`open_books` asks at its end, so each test of storage proves this beside its own point (contract: money-and-limits.md
"Credits").  Read from the tables with statements of our own; only the chain is checked by the code that customers use.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, Row, text

from hepmaild.mail.chaos import is_chaos
from hepmaild.storage import credits as money

FILLED = "<filled@example.com>"  # the Message-ID of what `mx_books.fill` put there, by the thousand, and nobody paid

_FILLED = text("SELECT 1 FROM message WHERE header_message_id = :filled LIMIT 1")
_RECIPIENTS = text("""
    SELECT message_id, count(*) AS recipients, sum(CASE WHEN due_at_us IS NOT NULL THEN 1 ELSE 0 END) AS waiting,
        sum(CASE WHEN (due_at_us IS NULL) <> (state IN ('sent', 'failed', 'expired', 'cancelled'))
            THEN 1 ELSE 0 END) AS neither,
        sum(CASE WHEN state IN ('failed', 'expired') THEN 1 ELSE 0 END) AS failed,
        sum(CASE WHEN state IN ('failed', 'expired', 'cancelled') THEN 1 ELSE 0 END) AS lost,
        sum(CASE WHEN state = 'failed' AND attempts = 0 THEN 1 ELSE 0 END) AS spared
    FROM recipient GROUP BY message_id""")
_BOOKED = text("""
    SELECT message_id, sum(CASE WHEN reason = 'debit' THEN 1 ELSE 0 END) AS debits,
        sum(CASE WHEN reason = 'debit' THEN -amount ELSE 0 END) AS paid,
        sum(CASE WHEN reason = 'refund' THEN amount ELSE 0 END) AS refunded,
        min(account_id) AS account_id, max(account_id) AS other_account_id
    FROM ledger WHERE message_id IS NOT NULL GROUP BY message_id""")
_UNSEEN = text("""
    SELECT r.message_id, r.address FROM recipient r WHERE r.due_at_us IS NOT NULL AND NOT EXISTS
        (SELECT 1 FROM queue q WHERE q.message_id = r.message_id AND q.destination = r.destination)""")
_ORPHANS = text("""
    SELECT q.message_id, q.destination FROM queue q WHERE NOT EXISTS (SELECT 1 FROM recipient r
        WHERE r.message_id = q.message_id AND r.destination = q.destination AND r.due_at_us IS NOT NULL)""")


def check_books(conn: Connection) -> None:
    """Fails with every fault there is."""
    faults = [*_chains(conn)]
    if conn.execute(_FILLED, {"filled": FILLED}).first() is None:
        faults += [*_money(conn), *_places(conn)]
    assert not faults, "\n".join(faults)


def _chains(conn: Connection) -> Iterator[str]:
    for (account_id,) in conn.execute(text("SELECT id FROM account")).all():
        fault = money.verify(conn, account_id)
        if fault is not None:
            yield f"the ledger of {account_id} does not hold: {fault.why}"


def _money(conn: Connection) -> Iterator[str]:
    """Each recipient was paid once, and each that was not delivered given back once."""
    booked = {row.message_id: row for row in conn.execute(_BOOKED)}
    recipients = {row.message_id: row for row in conn.execute(_RECIPIENTS)}
    for m in conn.execute(text("SELECT * FROM message ORDER BY id")):
        who, r, b = f"message {m.id} of {m.account_id}", recipients.pop(m.id), booked.pop(m.id, None)
        if (m.recipients, m.waiting) != (r.recipients, r.waiting) or r.neither:
            yield f"{who} says {m.recipients} recipients, {m.waiting} of them waiting; they say {tuple(r)}"
        if (m.finished_at_us is None) != bool(r.waiting):
            yield f"{who}, of which {r.waiting} wait, was finished at {m.finished_at_us}"
        if not r.waiting and m.failed != r.failed:
            yield f"{who} says that {m.failed} failed, but {r.failed} did"
        yield from _paid(who, m, r, b)
    yield from (f"{message_id} has recipients, but does not exist" for message_id in recipients)
    for b in booked.values():  # of those that were pruned
        if b.debits > 1 or b.refunded > b.paid:
            yield f"message {b.message_id}, now pruned: {tuple(b)}"


def _paid(who: str, m: Row, r: Row, b: Row | None) -> Iterator[str]:
    """One debit for all who are not suppressed, of its own account; chaos keys pay nothing."""
    if is_chaos(m.route):
        if b is not None:
            yield f"{who} is a chaos key's, and something was booked: {tuple(b)}"
        return
    debits, paid, refunded = (b.debits, b.paid, b.refunded) if b is not None else (0, 0, 0)
    price = r.recipients - r.spared
    if (debits, paid) != (int(price > 0), price):
        yield f"{who}: {debits} debits of {paid} for {r.recipients} recipients, {r.spared} of them suppressed"
    if refunded != r.lost - r.spared:
        yield f"{who}: {refunded} refunded for {r.lost - r.spared} that were not delivered"
    if b is not None and not b.account_id == b.other_account_id == m.account_id:
        yield f"{who}: booked on {b.account_id} and {b.other_account_id}"


def _places(conn: Connection) -> Iterator[str]:
    """Whoever waits has a queue row, and each row somebody who waits."""
    yield from (f"{r.message_id} {r.address} waits, but nothing will look at it" for r in conn.execute(_UNSEEN))
    yield from (f"{q.message_id} to {q.destination!r}: nobody waits in this queue row" for q in conn.execute(_ORPHANS))
