# SPDX-License-Identifier: Apache-2.0
"""The ledger at its very ends: bounds of grants, rows before the first one, checking piece by piece, paging back."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, func, select, text

from hepmaild.delivery.job import Result
from hepmaild.storage import credits as money
from hepmaild.storage import schema
from hepmaild.storage.credits import GENESIS, MAX_AMOUNT, Checked, Fault
from tests.storage.books import START_US, Books, add_account, open_books
from tests.storage.check_books import check_books
from tests.storage.conftest import Opener


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    """With seven rows: a grant, five debits, a refund."""
    async with open_books(opener) as opened:
        for _ in range(5):
            member = opened.accept("a@x.test", "b@x.test")
            await opened.store.submit(member)
        await opened.store.submit(opened.report(member, Result.DELIVERED, Result.FAILED))
        yield opened


async def change(books: Books, statement: str) -> None:
    books.are_falsified = True
    await books.store.write(lambda conn: conn.execute(text(statement)) and None)


async def in_pieces(books: Books, most: int) -> Checked | Fault:
    found: Checked | Fault = Checked()
    while isinstance(found, Checked) and not found.is_all:
        found = await books.store.read(money.verify_on, books.account_id, found, most)
    return found


async def test_a_grant_has_bounds(books: Books) -> None:
    async def give(amount: int) -> int:
        return await books.store.write(
            money.grant, books.account_id, amount, granted_by="a test", note=None, now_us=START_US
        )

    with pytest.raises(ValueError, match="a balance holds at most"):
        await give(MAX_AMOUNT - 90)
    with pytest.raises(ValueError, match="cannot go below zero"):
        await give(-92)
    with pytest.raises(ValueError, match="whole number other than 0"):
        await give(-MAX_AMOUNT - 1)
    assert await give(-91) == 0
    assert await give(MAX_AMOUNT) == MAX_AMOUNT
    with pytest.raises(ValueError, match="a balance holds at most"):
        await give(1)
    assert await give(-MAX_AMOUNT) == 0
    assert await in_pieces(books, 100) == await in_pieces(books, 3)
    rows = await books.store.read(lambda conn: conn.execute(select(func.count()).select_from(schema.ledger)).scalar())
    assert rows == 7 + 3  # what was refused left none


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8])
async def test_it_is_checked_piece_by_piece(books: Books, most: int) -> None:
    found = await in_pieces(books, most)
    assert isinstance(found, Checked)
    assert (found.seq, found.total, found.is_all) == (7, 91, True)
    for seq in (1, most, 7):
        await change(books, f"UPDATE ledger SET at_us = at_us + 1 WHERE seq = {min(seq, 7)}")
        assert await in_pieces(books, most) == Fault(
            books.account_id, min(seq, 7), f"row {min(seq, 7)} was changed: its hash does not fit"
        )
        await change(books, f"UPDATE ledger SET at_us = at_us - 1 WHERE seq = {min(seq, 7)}")
    await change(books, "UPDATE account SET balance = balance - 1")
    assert await in_pieces(books, most) == Fault(books.account_id, None, "the balance is 90, the ledger adds up to 91")


async def test_pieces_are_read_on(books: Books) -> None:
    """Also what is read at once is bounded."""

    def seqs(conn: Connection, piece: int) -> list[int]:
        return [row["seq"] for row in money._rows(conn, books.account_id, piece)]

    for piece in (1, 3, 7, 8):
        assert await books.store.read(seqs, piece) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("seq", [0, -5])
async def test_a_row_before_the_first_one_is_found(books: Books, seq: int) -> None:
    """Nobody can slip one in there, where no hash of another row covers it."""
    row = (books.account_id, seq, 0, 0, "grant", None, "a thief", None, START_US)
    values = (*row, money.row_hash(GENESIS, row))

    def slip(conn: Connection) -> None:
        names = (*money._COLUMNS, "hash")
        conn.execute(schema.ledger.insert(), dict(zip(names, values, strict=True)))

    books.are_falsified = True
    await books.store.write(slip)
    assert await in_pieces(books, 100) == Fault(books.account_id, 1, "row 1 is missing")


async def test_a_row_behind_the_last_one_is_found(books: Books) -> None:
    await change(books, "UPDATE account SET ledger_seq = 6")
    assert await in_pieces(books, 100) == Fault(
        books.account_id, None, "the account ends at row 6, its ledger at row 7"
    )


@pytest.mark.parametrize("reason", ["", "debit", "refund", "grant"])
async def test_paging_back(books: Books, reason: str) -> None:
    """And nothing is shown of another account."""
    await books.store.write(add_account, 2, 7, START_US)
    assert [await books.store.read(money.balance, account_id) for account_id in ("account-1", "account-2")] == [91, 7]
    assert await books.store.read(money.verify, "account-2") is None

    async def page(limit: int, before_seq: int | None) -> list[int]:
        rows = await books.store.read(
            lambda conn: money.history(conn, books.account_id, limit=limit, before_seq=before_seq, reason=reason)
        )
        return [row["seq"] for row in rows]

    wanted = {"": [7, 6, 5, 4, 3, 2, 1], "debit": [6, 5, 4, 3, 2], "refund": [7], "grant": [1]}[reason]
    assert await page(100, None) == wanted
    seen: list[int] = []
    while found := await page(2, seen[-1] if seen else None):
        assert len(found) <= 2
        seen += found
    assert seen == wanted


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("UPDATE account SET balance = balance + 1", "the ledger of account-1 does not hold"),
        ("UPDATE recipient SET state = 'sent' WHERE state = 'failed'", "1 refunded for 0 that were not delivered"),
        ("UPDATE recipient SET state = 'failed' WHERE state = 'sent'", "1 refunded for 2 that were not delivered"),
        ("UPDATE message SET account_id = 'account-2'", "booked on account-1 and account-1"),
        ("UPDATE message SET waiting = 0 WHERE waiting = 2", "say"),
        ("DELETE FROM recipient WHERE n = 1", "1 debits of 2 for 1 recipients"),
        ("DELETE FROM queue", "waits, but nothing will look at it"),
        ("UPDATE recipient SET state = 'sent', due_at_us = NULL", "nobody waits in this queue row"),
    ],
)
async def test_what_every_test_checks_at_its_end_is_seen(books: Books, damage: str, why: str) -> None:
    await books.store.read(check_books)
    await change(books, damage)
    with pytest.raises(AssertionError, match=why):
        await books.store.read(check_books)
