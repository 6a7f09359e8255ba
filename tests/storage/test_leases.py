# SPDX-License-Identifier: Apache-2.0
"""Leases at their very ends: one that is over now, whose it was, and which recipients an attempt was about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, text, update

from hepmaild.config import InDoubt
from hepmaild.delivery.job import Job, Result
from hepmaild.storage import claim, leases, queue, schema
from hepmaild.storage.accept import Taken
from hepmaild.storage.unit import Accept, Mark
from tests.storage.books import HOUR_US, START_US, Books, age_leases, open_books
from tests.storage.conftest import Opener
from tests.storage.mx_books import entries_read, fill

LEASE_US = 60_000_000
CLOCK_IS_OURS = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        yield opened


async def accepted(books: Books, *addresses: str, **changes: Any) -> Accept:
    member = books.accept(*addresses, **changes)
    assert isinstance(await books.store.submit(member), Taken)
    return member


async def claimed(books: Books, owner: str = "me") -> list[Job]:
    return (await books.store.write(claim.claim, owner, books.clock.us, 10, 0)).jobs


async def owners(books: Books) -> dict[str, str | None]:
    """By message, who has it."""
    rows = select(schema.queue.c.message_id, schema.queue.c.owner)
    return {r.message_id: r.owner for r in await books.store.read(lambda conn: conn.execute(rows).all())}


async def recipients(books: Books, member: Accept) -> list[tuple[str, int, int, int | None]]:
    """Of each its state, attempts, doubts, and when it is due."""
    shown = await books.store.read(queue.show, member.message_id)
    return [(r["state"], r["attempts"], r["in_doubt"], r["next_attempt_at"]) for r in shown["recipients"]]


async def processes(books: Books) -> list[str]:
    rows = select(schema.process.c.id).order_by(schema.process.c.id)
    return list(await books.store.read(lambda conn: conn.execute(rows).scalars().all()))


# Who is dead


@CLOCK_IS_OURS
async def test_a_process_is_dead_at_the_very_end_of_its_lease(books: Books) -> None:
    member = await accepted(books)
    await books.store.write(leases.stay_alive, "me", LEASE_US, START_US)
    ends_us = START_US + LEASE_US
    assert await books.store.read(claim.next_due_at_us, START_US) == ends_us
    assert await books.store.write(leases.take_over, ends_us - 1, alone=False) == 0
    assert (await processes(books), await owners(books)) == (["me"], {member.message_id: "me"})
    assert await books.store.write(leases.take_over, ends_us, alone=False) == 1
    assert (await processes(books), await owners(books)) == ([], {member.message_id: None})
    assert await books.store.write(leases.take_over, ends_us, alone=False) == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_to_look_for_the_dead_does_not_go_through_what_waits(books: Books) -> None:
    """When the planner last counted, the queue was empty: it believes that any way through it is short."""

    def look(conn: Connection) -> tuple[int, int, int]:
        fill(conn, "up", {"": 100}, books.clock.us)
        conn.execute(delete(schema.queue))
        conn.execute(text("ANALYZE queue"))
        fill(conn, "up", {"": 1000}, books.clock.us)
        before = entries_read(conn)
        nobody = leases.take_over(conn, books.clock.us, alone=False)
        read = entries_read(conn) - before
        conn.execute(update(schema.queue).where(schema.queue.c.message_id < f"{103:016x}").values(owner="dead"))
        return nobody, read, leases.take_over(conn, books.clock.us, alone=False)

    nobody, read, taken = await books.store.write(look)
    assert (nobody, taken) == (0, 2)
    assert read < 50


async def test_only_the_dead_lose_their_leases(books: Books) -> None:
    """Nobody doubts what a living process is about to be answered."""
    mine, theirs, free = await accepted(books), await accepted(books, owner="dead"), await accepted(books, owner=None)
    for member in (mine, theirs):
        assert await books.store.submit(Mark(member.message_id, "", 1))
    await books.store.write(leases.stay_alive, "dead", LEASE_US, books.clock.us)
    await books.store.write(age_leases, 2 * LEASE_US)
    await books.store.write(leases.stay_alive, "me", 24 * HOUR_US, books.clock.us)
    assert await books.store.write(leases.take_over, books.clock.us, alone=False) == 1
    assert await owners(books) == {mine.message_id: "me", theirs.message_id: None, free.message_id: None}
    assert await processes(books) == ["me"]
    assert await recipients(books, mine) == [("queued", 0, 0, START_US)]
    assert await recipients(books, theirs) == [("deferred", 1, 1, START_US)]
    assert await books.store.submit(books.report(mine, Result.DELIVERED))
    assert not await books.store.submit(books.report(theirs, Result.DELIVERED))


async def test_who_says_goodbye_leaves_what_others_hold(books: Books) -> None:
    mine, marked, theirs = await accepted(books), await accepted(books), await accepted(books, owner="other")
    for member in (marked, theirs):
        assert await books.store.submit(Mark(member.message_id, "", 1))
    for owner in ("me", "other"):
        await books.store.write(leases.stay_alive, owner, LEASE_US, books.clock.us)
    await books.store.write(leases.say_goodbye, "me", books.clock.us)
    assert await owners(books) == {mine.message_id: None, marked.message_id: None, theirs.message_id: "other"}
    assert await processes(books) == ["other"]
    assert await recipients(books, mine) == [("queued", 0, 0, START_US)]
    assert await recipients(books, marked) == [("deferred", 1, 1, START_US)]
    assert {job.message_id for job in await claimed(books)} == {mine.message_id, marked.message_id}


# Which recipients


async def three(books: Books) -> Accept:
    """One is due now, one in an hour, one is held; the row is leased for the first, and its dot may be out."""
    member = await accepted(books, "now@x.test", "later@x.test", "held@x.test")
    assert await books.store.submit(books.report(member, *[Result.DEFERRED] * 3, retry_at_us=START_US + HOUR_US))

    def spread(conn: Connection) -> None:
        here = schema.recipient.c.n
        conn.execute(update(schema.recipient).where(here == 0).values(due_at_us=START_US))
        conn.execute(update(schema.recipient).where(here == 2).values(state="held", due_at_us=START_US))
        conn.execute(update(schema.queue).values(due_at_us=START_US))

    await books.store.write(spread)
    (job,) = await claimed(books)
    assert [r.address for r in job.recipients] == ["now@x.test"]
    assert await books.store.submit(Mark(member.message_id, "", job.token))
    return member


@pytest.mark.parametrize("in_doubt", InDoubt)
async def test_only_who_was_in_the_attempt_is_in_doubt(books: Books, in_doubt: InDoubt) -> None:
    member = await three(books)
    books.clock.us += 1000
    assert await books.store.write(leases.take_over, books.clock.us, alone=True, in_doubt=in_doubt) == 1
    now, later, held = await recipients(books, member)
    if in_doubt is InDoubt.RETRY:
        assert now == ("deferred", 2, 1, books.clock.us)
    else:
        assert now == ("held", 2, 1, None)
    assert later == ("deferred", 1, 0, START_US + HOUR_US)
    assert held == ("held", 1, 0, None)


async def test_who_is_put_off_was_due_before(books: Books) -> None:
    member = await accepted(books, "a@x.test", "b@x.test", "c@x.test", "d@x.test")
    until_us = START_US + 1000

    def spread(conn: Connection) -> None:
        for n, values in enumerate(({"due_at_us": until_us + 1}, {"state": "held"}, {"state": "deferred"}), 1):
            conn.execute(update(schema.recipient).where(schema.recipient.c.n == n).values(**values))

    await books.store.write(spread)
    assert not await books.store.write(leases.put_off, member.message_id, "", 2, until_us, "why", START_US)
    assert await books.store.write(leases.put_off, member.message_id, "", 1, until_us, "why", START_US)
    assert [r[3] for r in await recipients(books, member)] == [until_us, until_us + 1, None, until_us]
    shown = await books.store.read(queue.show, member.message_id)
    assert [r["last_reply"] for r in shown["recipients"]] == ["why", None, None, "why"]
    assert await claimed(books) == []
    assert not await books.store.write(leases.put_off, member.message_id, "", 1, until_us, "why", START_US)


# Which leases


async def test_what_may_have_been_accepted_is_freed_only_if_it_is_that_lease(books: Books) -> None:
    """Not a newer one, nobody else's, and none whose dot may be out."""
    lost = await accepted(books)
    others = [await accepted(books, owner="other"), await accepted(books), await accepted(books)]
    assert await books.store.submit(Mark(others[1].message_id, "", 1))
    wanted = {(m.message_id, ""): 1 for m in (lost, *others)}
    wanted[others[2].message_id, ""] = 2
    freed = await books.store.write(leases.free_uncertain, "me", wanted, (), books.clock.us)
    assert freed == [(lost.message_id, "")]
    assert await owners(books) == {
        lost.message_id: None,
        others[0].message_id: "other",
        others[1].message_id: "me",
        others[2].message_id: "me",
    }
    assert not await books.store.submit(Mark(lost.message_id, "", 1))


async def test_any_number_of_leases_is_looked_for(books: Books) -> None:
    """A statement has room for some thousands; the claim that looks must not end the daemon."""
    lost = await accepted(books)
    wanted = {(f"{n:016x}", ""): 1 for n in range(40_000)} | {(lost.message_id, ""): 1}
    freed = await books.store.write(leases.free_uncertain, "me", wanted, (), books.clock.us)
    assert freed == [(lost.message_id, "")]
    assert await owners(books) == {lost.message_id: None}


async def test_leases_of_a_lost_claim_are_known_by_its_instant(books: Books) -> None:
    """What was accepted in the same microsecond is not one of them, nor what another process or a claim has."""
    accepted_then = await accepted(books)
    mine, theirs, later, marked = [await accepted(books, owner=None) for _ in range(4)]
    jobs = {job.message_id: job for job in await claimed(books)}
    assert await books.store.submit(Mark(marked.message_id, "", jobs[marked.message_id].token))
    for member, change in ((theirs, "owner = 'other'"), (later, "due_at_us = due_at_us + 1")):
        statement = text(f"UPDATE queue SET {change} WHERE message_id = '{member.message_id}'")
        await books.store.write(lambda conn, statement=statement: conn.execute(statement) and None)
    assert await books.store.write(leases.free_uncertain, "me", {}, [books.clock.us], books.clock.us) == []
    assert await owners(books) == {
        accepted_then.message_id: "me",
        mine.message_id: None,
        theirs.message_id: "other",
        later.message_id: "me",
        marked.message_id: "me",
    }
    (again,) = await claimed(books, "new")
    assert (again.message_id, again.token) == (mine.message_id, jobs[mine.message_id].token + 2)


async def test_an_old_token_gives_nothing_back(books: Books) -> None:
    member = await accepted(books, owner=None)
    (job,) = await claimed(books)
    row = (job.message_id, job.destination)
    for token in (job.token - 1, job.token + 1):
        assert not await books.store.write(leases.release, *row, token, START_US)
        assert await books.store.write(leases.forsake, {row: token}, START_US) == {row: False}
    assert await owners(books) == {member.message_id: "me"}
    assert await books.store.write(leases.forsake, {row: job.token}, START_US) == {row: True}
    assert await books.store.write(leases.forsake, {row: job.token}, START_US) == {row: False}
    assert not await books.store.write(leases.release, *row, job.token, START_US)
    (again,) = await claimed(books)
    assert (again.message_id, again.token, again.recipients) == (job.message_id, job.token + 2, job.recipients)


@pytest.mark.parametrize("deed", ["release", "put_off", "forsake", "report", "mark"])
async def test_what_is_said_of_one_lease_is_said_of_no_other(books: Books, deed: str) -> None:
    """Not of the message's other destination, nor of another message that goes to the same one, with the same token."""
    wheres = ("x.test", "y.test")
    here, other = [await accepted(books, "a@x.test", "b@y.test", destinations=wheres) for _ in range(2)]
    row = (here.message_id, "x.test")
    due_us = START_US
    if deed == "release":
        assert await books.store.write(leases.release, *row, 1, START_US)
    elif deed == "put_off":
        due_us += HOUR_US
        assert await books.store.write(leases.put_off, *row, 1, due_us, "why", START_US)
    elif deed == "forsake":
        assert await books.store.write(leases.forsake, {row: 1}, START_US) == {row: True}
    elif deed == "report":
        due_us += HOUR_US
        report = books.report(here, Result.DEFERRED, retry_at_us=due_us)
        attempt = replace(report.attempt, job=replace(report.attempt.job, destination="x.test"))
        assert await books.store.submit(replace(report, attempt=attempt, destination="x.test"))
    else:
        assert await books.store.submit(Mark(*row, 1))
    rows = select(schema.queue).where(schema.queue.c.owner.is_(None))
    idle = await books.store.read(lambda conn: conn.execute(rows).all())
    assert [(r.message_id, r.destination, r.due_at_us) for r in idle] == ([] if deed == "mark" else [(*row, due_us)])
    marked = select(schema.queue.c.message_id, schema.queue.c.destination).where(schema.queue.c.marked)
    assert [tuple(r) for r in await books.store.read(lambda conn: conn.execute(marked).all())] == (
        [row] if deed == "mark" else []
    )
    for member, n, where in ((here, 1, "y.test"), (other, 0, "x.test"), (other, 1, "y.test")):
        assert (await recipients(books, member))[n] == ("queued", 0, 0, START_US)
        assert await books.store.submit(Mark(member.message_id, where, 1))
