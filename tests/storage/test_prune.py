# SPDX-License-Identifier: Apache-2.0
"""What is old goes, and only that; the disk shrinks."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection, select, update

from hepmaild.config import Plan
from hepmaild.delivery.job import Result
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.outbox import Outbox
from hepmaild.reaper import Reaper
from hepmaild.storage import accounts, claim, log, messages, prune, queue, schema
from tests.storage.books import HOUR_US, Books, open_books
from tests.storage.conftest import Opener, outside
from tests.storage.mx_books import entries_read
from tests.storage.mx_books import fill as fill_queue

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


async def test_kept_content_stays_as_long_as_is_said_however_its_message_ended(opener: Opener) -> None:
    async with open_books(opener, credits_granted=100) as books:
        reaper = make_reaper(books, log_days=30)
        delivered, failed, expired, cancelled, waiting = [books.accept(owner=None) for _ in range(5)]
        waiting.expires_at_us += DAY_US * 30
        delivered.owner = failed.owner = "me"
        for member in (delivered, failed, expired, cancelled, waiting):
            await books.store.submit(member)

        def kept(conn: Connection) -> set[str]:
            return set(conn.execute(select(schema.body.c.message_id)).scalars())

        books.clock.us = end_us = expired.expires_at_us
        keep_us = 3 * DAY_US
        for member, result in ((delivered, Result.DELIVERED), (failed, Result.FAILED)):
            await books.store.submit(replace(books.report(member, result), body_keep_us=keep_us))
        await books.store.write(queue.cancel, cancelled.message_id, end_us, keep_us)
        assert await books.store.write(claim.expire, end_us, keep_us) == 1
        books.clock.us = end_us + keep_us - 1
        await reaper.round()
        everything = {m.message_id for m in (delivered, failed, expired, cancelled, waiting)}
        assert await books.store.read(kept) == everything
        books.clock.us += 1
        await reaper.round()
        assert await books.store.read(kept) == {waiting.message_id}
        assert await books.store.read(ids) == everything


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_old_messages_are_found_without_the_rest_also_before_anybody_counted(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After pg_upgrade there are no figures for the planner until somebody runs ANALYZE, which may be never."""
    monkeypatch.setattr(prune, "BATCH", 5)

    def look(conn: Connection) -> tuple[list[str], int, int]:
        fill_queue(conn, "up", {"": 5000}, books.clock.us)
        conn.execute(update(schema.message).values(waiting=0, state="sent"))
        before = entries_read(conn, "message")
        found = prune.finished_messages(conn, "standard", books.clock.us, ["standard"])
        read = entries_read(conn, "message") - before
        before = entries_read(conn, "recipient")
        prune.drop_messages(conn, sorted(ids(conn))[:500])
        return found, read, entries_read(conn, "recipient") - before

    async with open_books(opener) as books:
        found, read, of_recipients = await books.store.write(look)
        assert len(found) == 5
        assert not (set(found) & await books.store.read(ids))
    assert read < 500
    assert of_recipients < 1000


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


async def test_calls_go_by_the_clock_of_their_windows(opener: Opener, database_url: str, tmp_path: Path) -> None:
    """On PostgreSQL that is the server's: a process whose clock is minutes ahead must not empty everybody's windows."""
    async with open_books(opener) as books:
        books.clock.us = time.time_ns() // 1000
        for _ in range(3):
            await books.store.submit(books.call(limit=3))
        ahead_us = books.clock.us + (0 if books.store.is_sqlite else 5 * 60_000_000)
        assert await books.store.write(prune.rate_calls, ahead_us) == 0
        refused = await books.store.submit(books.call(limit=3))
        assert isinstance(refused, Refusal)
        assert refused.kind is ErrorKind.RATE_LIMITED
        outside(database_url, tmp_path, "UPDATE rate_call SET at_us = at_us - 121000000")
        assert await books.store.write(prune.rate_calls, ahead_us) == 3


async def test_orphans_among_much_content_take_several_rounds(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round looks at some of it only, since all of it may be a million pieces."""
    monkeypatch.setattr(prune, "LOOK", 3)

    def left(conn: Connection) -> list[str]:
        return sorted(set(conn.execute(select(schema.body.c.message_id)).scalars()))

    async with open_books(opener) as books:
        reaper = make_reaper(books, log_days=30)
        for again in range(2):
            waiting = [books.accept() for _ in range(5)]
            for n, member in enumerate(waiting):
                await books.store.write(messages.stage_piece, f"{again}{n:015x}", 0, b"piece", books.clock.us)
                await books.store.submit(member)
            books.clock.us += HOUR_US + 1
            await books.store.write(messages.stage_piece, "f" * 16, 0, b"still arriving", books.clock.us)
            for _ in range(6):  # to the end, and once more from the beginning
                await reaper.round()
            kept = await books.store.read(left)
            assert kept == sorted([*(member.message_id for member in waiting), "f" * 16])
            for member in waiting:  # SQLite gives the numbers of their pieces to the next ones
                await books.store.submit(books.report(member, Result.DELIVERED))
            books.clock.us += HOUR_US + 1
            for _ in range(6):
                await reaper.round()
            assert await books.store.read(left) == []


async def test_logs_go_in_small_batches_and_leave_room_for_the_next(
    opener: Opener, database_url: str, tmp_path: Path
) -> None:
    """SQLite's file shrinks; PostgreSQL's tables use their room again, once autovacuum came by."""
    async with open_books(opener, credits_granted=10_000) as books:
        sizes = []
        for _ in range(1 if books.store.is_sqlite else 4):
            sizes.append(await fill(books, 700))
            books.clock.us += 8 * DAY_US
            taken: list[int] = []
            while not taken or taken[-1]:
                old = await books.store.read(prune.finished_messages, "standard", books.clock.us - 7 * DAY_US)
                await books.store.write(prune.drop_messages, old)
                taken.append(len(old))
            assert taken == [500, 200, 0]
            for table in () if books.store.is_sqlite else LOGGED:
                outside(database_url, tmp_path, f"VACUUM {table}")
        if books.store.is_sqlite:
            await make_reaper(books).round()
            assert await books.store.read(pages) < sizes[0] * 0.8  # the ledger stays, and a little room
        else:
            assert sizes[-1] < sizes[0] * 1.6, sizes  # four times as much went through


async def test_the_log_goes_by_the_plan_of_now_also_one_that_left_the_settings(opener: Opener) -> None:
    async with open_books(opener) as books:
        member = books.accept()
        await books.store.submit(member)
        await books.store.submit(books.report(member, Result.DELIVERED))
        books.clock.us += 8 * DAY_US
        reaper = make_reaper(books, log_days=30)
        reaper.plans["short"] = Plan(log_days=7)
        await reaper.round()
        assert await books.store.read(ids) == {member.message_id}
        await books.store.write(accounts.set_plan, "owner1@example.com", "short")
        del reaper.plans["short"]
        await reaper.round()
        assert await books.store.read(ids) == {member.message_id}, "it counts as standard"
        reaper.plans["standard"] = Plan(log_days=7)
        await reaper.round()
        assert await books.store.read(ids) == set()


LOGGED = ("message", "recipient", "event", "body")


async def fill(books: Books, count: int) -> int:
    """So many messages that were delivered; how large the database is then: pages, or octets of the log's tables."""
    for _ in range(count // 100):
        members = [books.accept(content=b"x" * 3000, event='{"steps": "' + "x" * 500 + '"}') for _ in range(100)]
        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(books.store.submit, member)
        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(books.store.submit, books.report(member, Result.DELIVERED))
    return await books.store.read(pages if books.store.is_sqlite else log_octets)


def log_octets(conn: Connection) -> int:
    """Tables with their indexes and what is kept beside them."""
    names = ", ".join(f"'{name}'" for name in LOGGED)
    return int(
        conn.exec_driver_sql(
            f"SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest(ARRAY[{names}]) AS name"
        ).scalar_one()
    )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL's autovacuum does it there
async def test_the_file_shrinks_when_content_goes(opener: Opener) -> None:
    async with open_books(opener) as books:
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
