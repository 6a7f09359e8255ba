# SPDX-License-Identifier: Apache-2.0
"""Two processes on one PostgreSQL want the same rows at the same moment: what both decide counts once.

Somebody else has the rows until both of them wait, so that the one decides while the other has already begun.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, func, select

from hepmaild.delivery.job import Job, Result
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.submission import RateState
from hepmaild.storage import claim, directory, leases, queue, schema
from hepmaild.storage import credits as money
from hepmaild.storage.accept import Taken
from hepmaild.storage.unit import Accept, Mark, UnitRunner
from tests.peers import postgres
from tests.storage.books import Books, open_books
from tests.storage.conftest import Opener
from tests.storage.test_units import until_waiting

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

KEYS = "SELECT 1 FROM api_key FOR NO KEY UPDATE"
ACCOUNTS = "SELECT 1 FROM account FOR NO KEY UPDATE"
QUEUE = "SELECT 1 FROM queue FOR UPDATE"


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener, credits_granted=2) as opened:
        yield opened


@pytest.fixture
async def other(books: Books, opener: Opener) -> AsyncIterator[Books]:
    """The second process."""
    async with opener(UnitRunner(books.clock.now_us), exclusive=False) as store:
        yield replace(books, store=store)


Deed = Callable[[], Awaitable[Any]]


async def both(url: str, rows: str, one: Deed, two: Deed) -> list[Any]:
    """Their results; of what raises ValueError its words."""
    results: list[Any] = [None, None]

    async def run(n: int, deed: Deed) -> None:
        try:
            results[n] = await deed()
        except ValueError as error:
            results[n] = str(error)

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            with postgres.open_transaction(url, rows):
                nursery.start_soon(run, 0, one)
                nursery.start_soon(run, 1, two)
                await until_waiting(url, 2)
    return results


async def refunds(books: Books) -> int:
    """What was given back; the ledger holds."""
    assert await books.store.read(money.verify, books.account_id) is None
    given = select(func.coalesce(func.sum(schema.ledger.c.amount), 0)).where(schema.ledger.c.reason == "refund")
    return int(await books.store.read(lambda conn: conn.execute(given).scalar_one()))


async def accepted(books: Books, *addresses: str, **changes: Any) -> Accept:
    member = books.accept(*addresses, **changes)
    assert isinstance(await books.store.submit(member), Taken)
    return member


async def test_the_last_credits_are_spent_once(books: Books, other: Books, database_url: str) -> None:
    send = [lambda at=at: at.store.submit(at.accept("a@x.test", "b@x.test")) for at in (books, other)]
    results = await both(database_url, ACCOUNTS, *send)
    assert sum(isinstance(r, Taken) for r in results) == 1
    assert [r.kind for r in results if isinstance(r, Refusal)] == [ErrorKind.INSUFFICIENT_CREDITS]
    assert await refunds(books) == 0


async def test_the_last_call_of_a_minute_passes_once(books: Books, other: Books, database_url: str) -> None:
    results = await both(
        database_url, KEYS, *[lambda at=at: at.store.submit(at.call(limit=1)) for at in (books, other)]
    )
    assert sum(isinstance(r, RateState) for r in results) == 1
    assert [r.kind for r in results if isinstance(r, Refusal)] == [ErrorKind.RATE_LIMITED]


@pytest.mark.parametrize("result", [Result.DELIVERED, Result.FAILED])
async def test_what_ends_while_it_is_cancelled_is_refunded_once_or_never(
    books: Books, other: Books, database_url: str, result: Result
) -> None:
    """A refusal waits for the account, which cancelling has first; what was delivered asks for no account."""
    member = await accepted(books, "a@x.test", "b@x.test")
    holds, cancelled = await both(
        database_url,
        ACCOUNTS if result is Result.FAILED else QUEUE,
        lambda: books.store.submit(books.report(member, result, result)),
        lambda: other.store.write(queue.cancel, member.message_id, books.clock.us),
    )
    if holds:
        assert "final" in cancelled
    else:
        assert cancelled["refunded"] == 2
    assert await refunds(books) == (0 if holds and result is Result.DELIVERED else 2)


async def test_what_two_processes_let_expire_is_refunded_once(books: Books, other: Books, database_url: str) -> None:
    member = await accepted(books, "a@x.test", "b@x.test", owner=None)
    ended = await both(
        database_url,
        ACCOUNTS,
        *[lambda at=at: at.store.write(claim.expire, member.expires_at_us, 0) for at in (books, other)],
    )
    assert sorted(ended) == [0, 2]
    assert await refunds(books) == 2


async def test_the_destinations_of_a_message_may_end_in_two_processes(
    books: Books, other: Books, database_url: str
) -> None:
    """Each sees the other's still waiting when it begins; the message is final all the same."""
    wheres = ("x.test", "y.test")
    member = await accepted(books, "a@x.test", "b@y.test", destinations=wheres)
    reports = []
    for n, where in enumerate(wheres):
        report = books.report(member, *[Result.DELIVERED] * 2)
        attempt = replace(report.attempt, job=replace(report.attempt.job, destination=where))
        attempt = replace(attempt, outcomes=(report.attempt.outcomes[n],))
        reports.append(replace(report, attempt=attempt, destination=where))
    one, two = reports
    results = await both(database_url, QUEUE, lambda: books.store.submit(one), lambda: other.store.submit(two))
    assert results == [True, True]
    shown = await books.store.read(queue.show, member.message_id)
    assert (shown["state"], shown["finished_at"]) == ("sent", books.clock.us)


async def test_a_mark_and_a_cancellation_exclude_each_other(books: Books, other: Books, database_url: str) -> None:
    """Either the dot may leave, and nothing is refunded, or it may not."""
    member = await accepted(books)
    holds, cancelled = await both(
        database_url,
        QUEUE,
        lambda: books.store.submit(Mark(member.message_id, "", 1)),
        lambda: other.store.write(queue.cancel, member.message_id, books.clock.us),
    )
    assert ("called back" in cancelled) if holds else (cancelled["refunded"] == 1)
    assert await refunds(books) == (0 if holds else 1)


async def test_what_a_claim_takes_while_it_is_paused_does_not_leave(
    books: Books, other: Books, database_url: str
) -> None:
    """The claim looked for pauses before there was one, and the pause did not see its lease, which came after it."""
    member = await accepted(books, owner=None)
    jobs: list[Job] = []

    def slow_claim(conn: Connection) -> None:
        jobs.extend(claim.claim(conn, "other", books.clock.us, 10, 0).jobs)
        conn.execute(select(func.pg_advisory_xact_lock(7)))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            with postgres.open_transaction(database_url, "SELECT pg_advisory_xact_lock(7)"):
                nursery.start_soon(other.store.write, slow_claim)
                await until_waiting(database_url, 1)
                done = await books.store.write(queue.pause_route, "up", "", "", books.clock.us)
                assert done["stopped"] == 0
    (job,) = jobs
    assert not await other.store.submit(Mark(member.message_id, "", job.token))
    await books.store.write(queue.resume, "up", "")
    (again,) = (await books.store.write(claim.claim, "me", books.clock.us, 10, 0)).jobs
    assert again.token > job.token


async def test_what_is_held_stays_so_when_its_lease_is_looked_for(
    books: Books, other: Books, database_url: str
) -> None:
    """The answer to its acceptance was lost, and somebody holds it just now."""
    member = await accepted(books)
    freed, held = await both(
        database_url,
        QUEUE,
        lambda: books.store.write(leases.free_uncertain, "me", {(member.message_id, ""): 1}, (), books.clock.us),
        lambda: other.store.write(queue.hold, member.message_id, books.clock.us),
    )
    assert freed in ([], [(member.message_id, "")])
    assert held["held"] == 1
    rows = select(schema.queue.c.due_at_us, schema.queue.c.owner)
    assert [tuple(r) for r in await books.store.read(lambda conn: conn.execute(rows).all())] == [
        (member.expires_at_us, None)
    ]


async def test_what_somebody_has_is_stepped_over(books: Books, other: Books, database_url: str) -> None:
    """Nobody waits for a row that another process is about to lease, to end or to report, and nobody takes it too."""
    here = await accepted(books, owner=None)
    late = await accepted(books, owner=None, at_us=books.clock.us + 1)
    await books.store.write(money.grant, books.account_id, 1, granted_by="a test", note=None, now_us=books.clock.us)
    dead = await accepted(books, owner="dead")
    rows = f"SELECT 1 FROM queue WHERE message_id <> '{late.message_id}' FOR UPDATE"
    with postgres.open_transaction(database_url, rows), trio.fail_after(120):
        claimed = await other.store.write(claim.claim, "other", late.at_us, 10, 0)
        assert [job.message_id for job in claimed.jobs] == [late.message_id]
        assert await other.store.write(claim.expire, late.expires_at_us, 0) == 0
        assert await other.store.write(leases.take_over, late.at_us, alone=False) == 1  # its own
    assert await other.store.write(leases.take_over, late.at_us, alone=False) == 1
    jobs = (await books.store.write(claim.claim, "me", late.at_us, 10, 0)).jobs
    assert {job.message_id for job in jobs} == {here.message_id, late.message_id, dead.message_id}


async def test_a_dead_process_is_taken_over_once(books: Books, other: Books, database_url: str) -> None:
    """One is in the middle of it when the other one looks: nothing is left to that, and the doubt is counted once."""
    dead = await accepted(books, owner="dead")
    assert await books.store.submit(Mark(dead.message_id, "", 1))
    taken: list[int] = []

    async def take_over(at: Books) -> None:
        taken.append(await at.store.write(leases.take_over, books.clock.us, alone=False))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            with postgres.open_transaction(database_url, "SELECT 1 FROM recipient FOR UPDATE"):
                nursery.start_soon(take_over, books)
                await until_waiting(database_url, 1)
                await take_over(other)
    assert taken == [0, 1]
    (row,) = (await books.store.read(queue.show, dead.message_id))["recipients"]
    assert (row["state"], row["in_doubt"], row["attempts"]) == ("deferred", 1, 1)
    (job,) = (await other.store.write(claim.claim, "other", books.clock.us, 10, 0)).jobs
    assert not await books.store.submit(books.report(dead, Result.DELIVERED))
    assert await other.store.submit(books.report(dead, Result.DELIVERED, token=job.token))


async def test_a_report_and_a_take_over_exclude_each_other(books: Books, other: Books, database_url: str) -> None:
    """The process is thought dead, and reports: either its report holds, or its work is another's."""
    member = await accepted(books, owner="slow")
    holds: list[bool] = []

    async def report() -> None:
        holds.append(await books.store.submit(books.report(member, Result.DELIVERED)))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            with postgres.open_transaction(database_url, "SELECT 1 FROM recipient FOR UPDATE"):
                nursery.start_soon(report)
                await until_waiting(database_url, 1)
                assert await other.store.write(leases.take_over, books.clock.us, alone=False) == 0
    assert holds == [True]
    assert (await books.store.read(queue.show, member.message_id))["state"] == "sent"


async def test_the_first_two_changes_that_are_announced_are_both_counted(
    books: Books, other: Books, database_url: str
) -> None:
    """Neither sees the other's row of the number that says so."""
    postgres.sql(database_url, "DELETE FROM counter")
    rows = "INSERT INTO counter (name, value) VALUES ('generation', 1)"
    await both(database_url, rows, *[lambda at=at: at.store.write(directory.bump) for at in (books, other)])
    assert await books.store.read(lambda conn: conn.execute(directory.GENERATION).scalar_one()) == 2


async def test_a_step_goes_on_when_somebody_took_one_of_its_messages(
    books: Books, other: Books, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has found as many as one step changes, and when it has the locks one of them is cancelled."""
    monkeypatch.setattr(queue, "AT_ONCE", 2)
    await books.store.write(money.grant, books.account_id, 3, granted_by="a test", note=None, now_us=books.clock.us)
    ids = sorted([(await accepted(books, owner=None)).message_id for _ in range(5)])
    for message_id in ids:
        await books.store.write(queue.hold, message_id, books.clock.us)
    steps: list[queue.Step] = []
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:

            async def release() -> None:
                steps.append(await other.store.write(queue.release_some, queue.Where("up"), books.clock.us))

            with postgres.open_transaction(database_url, QUEUE):
                nursery.start_soon(books.store.write, queue.cancel, ids[0], books.clock.us)
                await until_waiting(database_url, 1)  # it is the first one to have the row
                nursery.start_soon(release)
                await until_waiting(database_url, 2)
    assert steps == [queue.Step(1, 1, ids[1])]
    where: str | None = steps[0].after
    while where is not None:
        steps.append(await other.store.write(queue.release_some, queue.Where("up"), books.clock.us, where))
        where = steps[-1].after
    assert sum(step.messages for step in steps) == 4
