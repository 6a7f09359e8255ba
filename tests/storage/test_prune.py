# SPDX-License-Identifier: Apache-2.0
"""What is old goes, and only that; the disk shrinks."""

from __future__ import annotations

from sqlalchemy import Connection, select

from hepmaild.config import Plan
from hepmaild.delivery.job import Result
from hepmaild.outbox import Outbox
from hepmaild.reaper import Reaper
from hepmaild.storage import log, messages, schema
from tests.storage.books import HOUR_US, Books, open_books
from tests.storage.conftest import Opener

DAY_US = 24 * HOUR_US


def make_reaper(books: Books, *, log_days: int = 7) -> Reaper:
    outbox = Outbox(books.store, owner="me", now_us=books.clock.now_us, lease_s=60, body_days=0, spool_dir=None)
    return Reaper(books.store, outbox, {"standard": Plan(log_days=log_days)}, books.clock.now_us)


def ids(conn: Connection) -> set[str]:
    return set(conn.execute(select(schema.message.c.id)).scalars())


async def test_finished_messages_go_with_their_plan_and_the_ledger_stays(opener: Opener) -> None:
    async with open_books(opener) as books:
        reaper = make_reaper(books)
        old, waiting = books.accept(), books.accept()
        for member in (old, waiting):
            await books.store.submit(member)
        await books.store.submit(books.report(old, Result.DELIVERED))
        books.clock.us += 8 * DAY_US
        fresh = books.accept()
        await books.store.submit(fresh)
        await reaper.round()
        assert await books.store.read(ids) == {waiting.message_id, fresh.message_id}
        assert (await books.store.read(log.show, waiting.message_id))["state"] == "queued"
        rows = await books.store.read(lambda conn: len(conn.execute(select(schema.ledger)).all()))
        assert rows == 4


async def test_orphaned_pieces_words_and_calls_go(opener: Opener) -> None:
    async with open_books(opener) as books:
        reaper = make_reaper(books, log_days=30)
        await books.store.write(messages.stage_piece, "0" * 16, 0, b"piece", books.clock.us)
        member = books.accept(word="w:x", word_life_us=DAY_US, fingerprint=b"f" * 32, content=None)
        await books.store.submit(member)
        await books.store.write(messages.stage_piece, member.message_id, 0, b"piece", books.clock.us)
        await books.store.submit(books.call())
        books.clock.us += DAY_US + 1
        await reaper.round()

        def left(conn: Connection) -> list[int]:
            tables = (schema.body, schema.idempotency)
            return [len(conn.execute(select(table)).all()) for table in tables]

        assert await books.store.read(left) == [1, 0]


async def test_the_file_shrinks_when_content_goes(opener: Opener) -> None:
    async with open_books(opener) as books:
        if not books.store.is_sqlite:
            return
        members = [books.accept(content=b"x" * 500_000) for _ in range(40)]
        for member in members:
            await books.store.submit(member)
        for member in members:
            await books.store.submit(books.report(member, Result.DELIVERED))
        before = await books.store.read(pages)
        await make_reaper(books).round()
        after = await books.store.read(pages)
        assert before > 4000
        assert after < before - 3000


def pages(conn: Connection) -> int:
    """How large the file is once its log is taken in, in pages of 4 KB."""
    return int(conn.exec_driver_sql("PRAGMA page_count").scalar_one())
