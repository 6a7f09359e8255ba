# SPDX-License-Identifier: Apache-2.0
"""Money: balances and the append-only, hash-chained ledger (contract: money-and-limits.md "Credits").

A balance changes only together with a ledger row, in one unit, with the account's row locked.  `Purse` is an account
held that way: it books any number of amounts in memory and writes them at the end of the unit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, exists, select, text, update

from hepmaild.config import DAY_US
from hepmaild.storage.bulk import Bulk, Query, bulk_insert
from hepmaild.storage.schema import NO_DEBIT, account, ledger, suppression

GENESIS = "0" * 64
MAX_AMOUNT = 10**15

_LOCK = Query(
    select(
        account.c.id,
        account.c.balance,
        account.c.ledger_seq,
        account.c.ledger_head,
        account.c.day,
        account.c.day_messages,
        account.c.status,
        # Asked for here, so that accounts which suppress nobody need no statement of their own.
        exists()
        .where(suppression.c.account_id == account.c.id, suppression.c.suppressed_until_us.is_not(None))
        .label("suppresses"),
    )
    .where(account.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(account.c.id)
    .with_for_update(key_share=True),
    "ids",
)
_SAVE = Bulk(
    update(account)
    .where(account.c.id == bindparam("the_id"))
    .values(
        balance=bindparam("new_balance"),
        ledger_seq=bindparam("new_seq"),
        ledger_head=bindparam("new_head"),
        day=bindparam("new_day"),
        day_messages=bindparam("new_day_messages"),
    ),
    "the_id",
    "new_balance",
    "new_seq",
    "new_head",
    "new_day",
    "new_day_messages",
)
_COLUMNS = (
    "account_id",
    "seq",
    "amount",
    "balance_after",
    "reason",
    "message_id",
    "granted_by",
    "note",
    "at_us",
)
_APPEND = bulk_insert(ledger, *_COLUMNS, "hash")
LedgerRow = tuple[Any, ...]  # the columns above, and the hash


def row_hash(previous: str, row: LedgerRow) -> str:
    """The hash of a ledger row (its hash apart) over itself and the row before it.

    Every value is written with its length, so that no two rows have the same text.
    """
    parts = [previous]
    for value in row:
        text = "-" if value is None else f"={value}"
        parts.append(f"{len(text)}:{text}")
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


# SQLite would rather go through all rows of the account, which are in order too, than use the index of the few.
_SELDOM = text(
    "SELECT * FROM ledger INDEXED BY ix_ledger_account_id_reason_seq WHERE account_id = :account AND reason = :reason "
    "AND reason <> 'debit' AND seq < :before ORDER BY seq DESC LIMIT :most"
).columns(*ledger.c)


@dataclass(slots=True)
class Purse:
    """A locked account inside one unit.  suppresses: some addresses, perhaps."""

    account_id: str
    balance: int
    seq: int
    head: str
    day: int
    day_messages: int
    status: str
    suppresses: bool
    changed: bool = False

    def day_at(self, now_us: int) -> int:
        """The UTC day that messages count for now.

        A clock that is set back over midnight, or another process's that is behind, must not begin a day anew: the next
        day goes on.  Only the next: a clock that was years ahead must not keep an account's messages for years.
        """
        day = now_us // DAY_US
        return self.day if self.day == day + 1 else day

    def messages_on(self, day: int) -> int:
        """How many messages were accepted on this UTC day."""
        return self.day_messages if self.day == day else 0

    def count_message(self, day: int) -> None:
        """Count one accepted message."""
        if self.day != day:
            self.day, self.day_messages = day, 0
        self.day_messages += 1
        self.changed = True

    def book(
        self,
        amount: int,
        reason: str,
        at_us: int,
        *,
        message_id: str | None = None,
        granted_by: str | None = None,
        note: str | None = None,
    ) -> LedgerRow:
        """Change the balance and make the ledger row for it.  The caller has checked that it stays ≥ 0."""
        self.balance += amount
        if self.balance < 0:
            raise AssertionError("a balance must never go below zero")
        self.seq += 1
        self.changed = True
        row = (
            self.account_id,
            self.seq,
            amount,
            self.balance,
            reason,
            message_id,
            granted_by,
            note,
            at_us,
        )
        self.head = row_hash(self.head, row)
        return (*row, self.head)


def lock(conn: Connection, account_ids: Iterable[str]) -> dict[str, Purse]:
    """Lock these accounts' rows, in the order of their ids; unknown ones are left out."""
    return {row[0]: Purse(*row) for row in _LOCK.ask(conn, sorted(set(account_ids)))}


def save(conn: Connection, purses: Iterable[Purse], ledger_rows: list[LedgerRow]) -> None:
    """Write the changed purses and append their ledger rows."""
    _APPEND.run(conn, ledger_rows)
    _SAVE.run(conn, [(p.account_id, p.balance, p.seq, p.head, p.day, p.day_messages) for p in purses if p.changed])


def grant(conn: Connection, account_id: str, amount: int, *, granted_by: str, note: str | None, now_us: int) -> int:
    """Grant (or with a negative amount take back) credits; the new balance.

    Raises ValueError with a sentence when the amount is zero, absurd, or more than there is.
    """
    if not amount or abs(amount) > MAX_AMOUNT:
        raise ValueError(f"the number of credits must be a whole number other than 0, at most {MAX_AMOUNT:,}")
    purses = lock(conn, [account_id])
    purse = purses[account_id]
    if purse.balance + amount < 0:
        raise ValueError(f"the balance is {purse.balance:,}: it cannot go below zero")
    if purse.balance + amount > MAX_AMOUNT:
        raise ValueError(f"a balance holds at most {MAX_AMOUNT:,} credits")
    row = purse.book(amount, "grant", now_us, granted_by=granted_by, note=note)
    save(conn, [purse], [row])
    return purse.balance


def balance(conn: Connection, account_id: str) -> int:
    """The present balance."""
    return int(conn.execute(select(account.c.balance).where(account.c.id == account_id)).scalar_one())


def history(
    conn: Connection, account_id: str, *, limit: int = 1000, before_seq: int | None = None, reason: str = ""
) -> list[dict[str, Any]]:
    """Ledger rows, newest first; `before_seq` pages on.  reason: only those of one ("grant", "debit", "refund")."""
    query = select(ledger).where(ledger.c.account_id == account_id).order_by(ledger.c.seq.desc()).limit(limit)
    if before_seq is not None:
        query = query.where(ledger.c.seq < before_seq)
    if reason:
        query = query.where(ledger.c.reason == reason)
    if reason and reason != "debit":
        query = query.where(NO_DEBIT)  # as the index says it
        if conn.dialect.name == "sqlite":
            values = {
                "account": account_id,
                "reason": reason,
                "before": 2**62 if before_seq is None else before_seq,
                "most": limit,
            }
            return [dict(r) for r in conn.execute(_SELDOM, values).mappings()]
    return [dict(r) for r in conn.execute(query).mappings()]


@dataclass(frozen=True, slots=True)
class Fault:
    """A ledger that does not hold: which account, at which row (None: the account itself), and why."""

    account_id: str
    seq: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A ledger that holds up to here.  is_all: to its end."""

    seq: int = 0
    total: int = 0
    head: str = GENESIS
    is_all: bool = False


def verify(conn: Connection, account_id: str) -> Fault | None:
    """Check one account: every row's hash and arithmetic, no gap, and the balance being their sum."""
    found = verify_on(conn, account_id, Checked())
    return found if isinstance(found, Fault) else None


def verify_on(conn: Connection, account_id: str, behind: Checked, most: int = 2**62) -> Checked | Fault:
    """Check the `most` rows behind those that were; a large ledger can so be read in many short snapshots."""
    head = conn.execute(
        select(account.c.balance, account.c.ledger_seq, account.c.ledger_head).where(account.c.id == account_id)
    ).one()
    seq, total, previous = behind.seq, behind.total, behind.head
    # Also what stands before the first row, where nothing may be.
    for row in _rows(conn, account_id, after=seq or -(10**9)):
        if seq - behind.seq >= most:
            return Checked(seq, total, previous)
        seq += 1
        if row["seq"] != seq:
            return Fault(account_id, seq, f"row {seq} is missing")
        if not isinstance(row["amount"], int):  # SQLite keeps any value in any column
            return Fault(account_id, seq, f"row {seq} was changed: its amount is no number")
        total += row["amount"]
        if row["balance_after"] != total:
            return Fault(account_id, seq, f"the balance after row {seq} should be {total}, not {row['balance_after']}")
        if row_hash(previous, tuple(row[name] for name in _COLUMNS)) != row["hash"]:
            return Fault(account_id, seq, f"row {seq} was changed: its hash does not fit")
        previous = row["hash"]
    if (seq, previous) != (head.ledger_seq, head.ledger_head):
        return Fault(account_id, None, f"the account ends at row {head.ledger_seq}, its ledger at row {seq}")
    if total != head.balance:
        return Fault(account_id, None, f"the balance is {head.balance}, the ledger adds up to {total}")
    return Checked(seq, total, previous, is_all=True)


def _rows(conn: Connection, account_id: str, piece: int = 5000, *, after: int = -(10**9)) -> Iterator[dict[str, Any]]:
    """All ledger rows of an account, oldest first, in pieces so that memory stays bounded."""
    while True:
        rows = (
            conn.execute(
                select(ledger)
                .where(ledger.c.account_id == account_id, ledger.c.seq > after)
                .order_by(ledger.c.seq)
                .limit(piece)
            )
            .mappings()
            .all()
        )
        for row in rows:
            yield dict(row)
        if len(rows) < piece:
            return
        after = rows[-1]["seq"]
