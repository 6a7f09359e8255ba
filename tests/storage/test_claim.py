# SPDX-License-Identifier: Apache-2.0
"""Claims: every destination gets its share, nothing is looked at in vain, and what expires is found wherever it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Connection, event, select, text, update

from hepmaild.config import InDoubt
from hepmaild.delivery.job import Result
from hepmaild.storage import claim, leases, log, queue, schema
from hepmaild.storage import credits as money
from hepmaild.storage.ring import VISITS
from hepmaild.storage.schema import NEVER_US
from hepmaild.storage.unit import Mark, UnitRunner
from tests.storage.books import HOUR_US, Books, age_leases, open_books
from tests.storage.conftest import Opener
from tests.storage.mx_books import claimed, fill, job_of, mx_accept, report_on


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        yield opened


async def balance(books: Books) -> int:
    assert await books.store.read(money.verify, books.account_id) is None
    return await books.store.read(money.balance, books.account_id)


# Fairness


async def test_a_backlog_of_one_destination_leaves_the_others_their_share(books: Books) -> None:
    others = {f"d{n:02}.example": 2 for n in range(20)}
    await books.store.write(fill, "mx", {"dead.example": 2000, **others}, books.clock.us)
    counts = Counter(job.destination for job in await claimed(books, 42))
    assert counts == {"dead.example": 2, **others}
    counts = Counter(job.destination for job in await claimed(books, 42))
    assert counts == {"dead.example": 42}  # what the others leave is its


async def test_a_destination_has_its_oldest_leave_first(books: Books) -> None:
    await books.store.write(fill, "mx", {"a.example": 600, "b.example": 3}, books.clock.us)
    first = (await books.store.write(claim.claim, "me", books.clock.us, 6, 0)).jobs
    assert [job.message_id for job in first if job.destination == "a.example"] == [f"{n:016x}" for n in (1, 2, 3)]


async def test_few_slots_go_round_until_everybody_had_one(books: Books) -> None:
    wheres = {f"d{n:03}.example": 1 for n in range(100)}
    await books.store.write(fill, "mx", {"a-dead.example": 600, **wheres}, books.clock.us)
    seen: Counter[str] = Counter()
    cursors: Any = {}
    for _ in range(34):
        found = await books.store.write(claim.claim, "me", books.clock.us, 3, 0, cursors=cursors)
        cursors = found.cursors
        seen.update(job.destination for job in found.jobs)
    assert set(seen) == {"a-dead.example", *wheres}
    assert max(seen[where] for where in wheres) == 1
    assert seen["a-dead.example"] <= 2


async def test_what_is_full_excluded_or_paused_is_stepped_over(books: Books) -> None:
    await books.store.write(fill, "mx", {"full.example": 600, "held.example": 600, "open.example": 1}, books.clock.us)
    await books.store.write(fill, "up", {"": 5}, books.clock.us)
    await books.store.write(fill, "down", {"": 5}, books.clock.us)
    await books.store.write(queue.pause_route, "mx", "held.example", "", books.clock.us)
    shut: Any = {"exclude": ("down",), "full": {("mx", "full.example")}}
    jobs = await claimed(books, 100, **shut)
    assert Counter((j.route, j.destination) for j in jobs) == {("mx", "open.example"): 1, ("up", ""): 5}
    assert await claimed(books, 100, **shut) == []
    later = await books.store.read(claim.next_due_at_us, books.clock.us, **shut)
    assert later == books.clock.us + 96 * HOUR_US  # their expiry, and nothing before it
    assert (await books.store.read(claim.next_due_at_us, books.clock.us) or 0) <= books.clock.us
    await books.store.write(queue.pause_route, "mx", "", "", books.clock.us)
    jobs = await claimed(books, 100)
    assert {job.route for job in jobs} == {"down"}


async def test_routes_share_a_claim(books: Books) -> None:
    await books.store.write(fill, "one", {"": 50}, books.clock.us - HOUR_US)
    await books.store.write(fill, "two", {"": 50}, books.clock.us)
    assert Counter(job.route for job in await claimed(books, 20)) == {"one": 10, "two": 10}


async def test_routes_with_one_next_hop_go_round_the_oldest_of_each_first(books: Books) -> None:
    now_us = books.clock.us
    for route, count, before_us in (("one", 4, 3000), ("two", 1, 1000), ("three", 9, 2000)):
        await books.store.write(fill, route, {"": count}, now_us - before_us)
    await books.store.write(fill, "later", {"": 1}, now_us, now_us + 1)
    await books.store.write(fill, "shut", {"": 3}, now_us - 9000)
    jobs = await claimed(books, 7, full={("shut", "")})
    assert Counter(job.route for job in jobs) == {"one": 3, "two": 1, "three": 3}
    assert [job.message_id for job in jobs if job.route == "one"] == [f"{n:016x}" for n in (1, 2, 3)]
    assert Counter(job.route for job in await claimed(books, full={("shut", "")})) == {"one": 1, "three": 6}
    assert await books.store.read(claim.next_due_at_us, now_us, full={("shut", "")}) == now_us + 1


async def test_the_next_due_time_stands_behind_a_backlog_that_is_shut(books: Books) -> None:
    soon = books.clock.us + 5_000_000
    await books.store.write(fill, "mx", {"dead.example": 700}, books.clock.us)
    await books.store.write(fill, "mx", {f"d{n}.example": 1 for n in range(30)}, books.clock.us, soon + 1000)
    await books.store.write(fill, "mx", {"first.example": 1}, books.clock.us, soon)
    full = {("mx", "dead.example")}
    assert await books.store.read(claim.next_due_at_us, books.clock.us, full=full) == soon
    assert await claimed(books, full=full) == []
    books.clock.us = soon
    assert [job.destination for job in await claimed(books, full=full)] == ["first.example"]


async def test_the_next_due_time_may_be_that_of_the_last_of_many_destinations(books: Books) -> None:
    """Those before it are more than are stepped over at once."""
    now_us, soon = books.clock.us, books.clock.us + 5_000_000
    await books.store.write(fill, "mx", {"dead.example": 100}, now_us)
    await books.store.write(fill, "mx", {f"d{n}.example": 1 for n in range(VISITS + 30)}, now_us, soon + 1000)
    await books.store.write(fill, "mx", {"z.example": 1}, now_us, soon)
    assert await books.store.read(claim.next_due_at_us, now_us, full={("mx", "dead.example")}) == soon


# Cost, counted and not timed


def steps_of(conn: Connection, *arguments: Any, **shut: Any) -> int:
    """What a claim costs: on SQLite in steps of its machine, on PostgreSQL in rows and index entries that it read."""
    if conn.dialect.name == "sqlite":
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        link: Any = conn.connection.driver_connection
        link.set_progress_handler(count, 100)
        try:
            claim.claim(conn, *arguments, **shut)
            claim.next_due_at_us(conn, arguments[1], **shut)
        finally:
            link.set_progress_handler(None, 0)
        return steps
    conn.execute(text("ANALYZE"))
    read = text(
        "SELECT coalesce(sum(pg_stat_get_xact_tuples_returned(indexrelid)), 0) FROM pg_index"
        " WHERE indrelid = 'queue'::regclass"
    )
    scanned = text("SELECT pg_stat_get_xact_tuples_returned('queue'::regclass)")

    def read_so_far() -> int:
        return int(conn.execute(read).scalar_one() + conn.execute(scanned).scalar_one())

    before = read_so_far()
    claim.claim(conn, *arguments, **shut)
    claim.next_due_at_us(conn, arguments[1], **shut)
    return read_so_far() - before


@pytest.mark.parametrize(
    "shut",
    [{}, {"full": {("mx", "dead.example")}}, {"exclude": ("mx",)}],
    ids=["open", "full", "excluded"],
)
async def test_a_claim_costs_the_same_however_much_waits(books: Books, shut: Any) -> None:
    others = {f"d{n:03}.example": 1 for n in range(300)}
    arguments = ("me", books.clock.us, 16, 0)

    def cost(conn: Connection) -> tuple[int, int]:
        fill(conn, "mx", {"dead.example": 1000, **others}, books.clock.us)
        small = steps_of(conn, *arguments, **shut)
        fill(conn, "mx", {"dead.example": 19_000}, books.clock.us)
        return small, steps_of(conn, *arguments, **shut)

    small, large = await books.store.write(cost)
    assert large < 1.5 * small + 300, (small, large)


async def test_a_single_backlog_costs_the_same_however_long(books: Books) -> None:
    def cost(conn: Connection) -> tuple[int, int]:
        fill(conn, "up", {"": 1000}, books.clock.us)
        small = steps_of(conn, "me", books.clock.us, 16, 0)
        fill(conn, "up", {"": 19_000}, books.clock.us)
        return small, steps_of(conn, "me", books.clock.us, 16, 0)

    small, large = await books.store.write(cost)
    assert large < 1.5 * small + 300, (small, large)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_servers_of_many_accounts_cost_no_statements_of_their_own(books: Books) -> None:
    """Each of them is a route: with a thousand there, a claim took seconds of round trips."""

    def statements(conn: Connection) -> int:
        asked: list[str] = []

        def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
            asked.append(statement)

        event.listen(conn, "before_cursor_execute", note)
        found = claim.claim(conn, "me", books.clock.us, 1, 0)
        claim.next_due_at_us(conn, books.clock.us)
        event.remove(conn, "before_cursor_execute", note)
        assert len(found.jobs) == 1
        return len(asked)

    for n in range(2):
        await books.store.write(fill, f"own:{n}", {"": 1}, books.clock.us)
    few = await books.store.write(statements)
    for n in range(2, 30):
        await books.store.write(fill, f"own:{n}", {"": 1}, books.clock.us)
    assert await books.store.write(statements) == few


# Several destinations of one message


async def test_each_destination_is_a_job_of_its_own(books: Books) -> None:
    member = mx_accept(books, "a@x.example", "b@y.example", "c@x.example", left=("y.example",))
    assert member.leased == ["x.example"]
    await books.store.submit(member)
    (job,) = await claimed(books)
    assert (job.destination, job.token, [r.recipient_id for r in job.recipients]) == ("y.example", 2, [1])
    assert await books.store.submit(report_on(job, books.clock.us, Result.DELIVERED))
    shown = await books.store.read(queue.show, member.message_id)
    assert [r["state"] for r in shown["recipients"]] == ["queued", "sent", "queued"]
    assert shown["state"] == "queued"
    first = job_of(member, "x.example")
    assert await books.store.submit(report_on(first, books.clock.us, Result.DELIVERED, Result.FAILED))
    shown = await books.store.read(queue.show, member.message_id)
    assert (shown["state"], shown["finished_at"]) == ("failed", books.clock.us)
    assert await balance(books) == 98


async def test_two_destinations_report_in_one_unit(books: Books) -> None:
    member = mx_accept(books, "a@x.example", "b@y.example", "c@z.example")
    await books.store.submit(member)
    jobs = [job_of(member, where) for where in ("x.example", "y.example", "z.example")]

    def unit(conn: Connection, *reports: Any) -> list[bool]:
        return UnitRunner(books.clock.now_us)(conn, reports)

    failed = report_on(jobs[0], books.clock.us, Result.FAILED)
    deferred = report_on(jobs[1], books.clock.us, Result.DEFERRED)
    # The same report twice in one unit: the lease ends with the first.
    again = report_on(jobs[0], books.clock.us, Result.FAILED)
    assert await books.store.write(unit, failed, deferred, again) == [True, True, False]
    assert await balance(books) == 98
    head = await books.store.read(lambda conn: conn.execute(select(schema.message)).one())
    assert (head.waiting, head.failed, head.state, head.finished_at_us) == (2, 1, "deferred", None)
    books.clock.us += HOUR_US
    (retried,) = await claimed(books)
    last = report_on(retried, books.clock.us, Result.DELIVERED)
    other = report_on(jobs[2], books.clock.us, Result.DELIVERED)
    assert await books.store.write(unit, last, other) == [True, True]
    head = await books.store.read(lambda conn: conn.execute(select(schema.message)).one())
    assert (head.waiting, head.state) == (0, "failed")
    assert await books.store.read(queue.count_waiting) == 0


# Doubt


async def test_doubt_that_is_held_waits_for_somebody(books: Books) -> None:
    member = mx_accept(books, "a@x.example", "b@y.example")
    await books.store.submit(member)
    job = job_of(member, "x.example")
    await books.store.submit(report_on(job, books.clock.us, Result.IN_DOUBT, hold=True))
    await books.store.submit(report_on(job_of(member, "y.example"), books.clock.us, Result.DELIVERED))
    shown = await books.store.read(log.show, member.message_id)
    assert (shown["state"], shown["recipients"][0]["state"], shown["recipients"][0]["in_doubt"]) == ("held", "held", 1)
    books.clock.us += 90 * HOUR_US
    assert await claimed(books) == []
    assert await books.store.read(claim.next_due_at_us, books.clock.us) == member.expires_at_us
    await books.store.write(queue.release, member.message_id, books.clock.us)
    (job,) = await claimed(books)
    assert (job.destination, job.recipients[0].attempts) == ("x.example", 1)
    assert (await books.store.read(queue.show, member.message_id))["state"] == "in_doubt"


@pytest.mark.parametrize("policy", ["retry", "hold"])
async def test_the_marked_lease_of_a_dead_process_is_in_doubt(books: Books, policy: Any) -> None:
    member = mx_accept(books, "a@x.example", "b@x.example", "c@y.example")
    await books.store.submit(member)
    deferred = report_on(job_of(member, "x.example"), books.clock.us, Result.DEFERRED)
    await books.store.submit(deferred)

    def apart(conn: Connection) -> None:
        """b is due much later than a."""
        late = (schema.recipient.c.n == 1) & (schema.recipient.c.message_id == member.message_id)
        conn.execute(update(schema.recipient).where(late).values(due_at_us=books.clock.us + 9 * HOUR_US))

    await books.store.write(apart)
    books.clock.us += HOUR_US
    (job,) = await claimed(books)
    assert [r.recipient_id for r in job.recipients] == [0]
    assert await books.store.submit(Mark(member.message_id, "x.example", job.token))
    books.clock.us += 10 * HOUR_US  # b is due by now, but was not in that attempt
    taken = await books.store.write(leases.take_over, books.clock.us, alone=True, in_doubt=InDoubt(policy))
    assert taken == 2
    shown = await books.store.read(queue.show, member.message_id)
    held = policy == "hold"
    assert [r["state"] for r in shown["recipients"]] == ["held" if held else "deferred", "deferred", "queued"]
    assert [r["in_doubt"] for r in shown["recipients"]] == [1, 0, 0]
    assert shown["state"] == ("held" if held else "in_doubt")
    jobs = {job.destination: [r.recipient_id for r in job.recipients] for job in await claimed(books)}
    assert jobs == {"x.example": [1] if held else [0, 1], "y.example": [2]}
    events = (await books.store.read(log.show, member.message_id))["events"]
    doubts = [e["data"] for e in events if e["kind"] == "recovered"]
    assert {d["destination"]: d["in_doubt"] for d in doubts} == {"x.example": True, "y.example": False}


# Fencing


async def test_who_lost_a_lease_writes_nothing(books: Books) -> None:
    member = mx_accept(books, "a@x.example", "b@y.example", owner="old")
    await books.store.submit(member)
    await books.store.write(leases.stay_alive, "old", HOUR_US, books.clock.us)
    await books.store.write(leases.stay_alive, "new", 2 * HOUR_US, books.clock.us)
    # Others poll while the lease holds, and get nothing.
    assert await books.store.write(leases.take_over, books.clock.us, alone=False) == 0
    assert await claimed(books, owner="new") == []
    ends_at_us = await books.store.read(claim.next_due_at_us, books.clock.us)
    assert ends_at_us == pytest.approx(books.clock.us + HOUR_US, abs=60_000_000)  # PostgreSQL's clock goes on
    await books.store.write(age_leases, HOUR_US)
    assert await books.store.write(leases.take_over, books.clock.us, alone=False) == 2
    jobs = await claimed(books, owner="new")
    assert {(job.destination, job.token) for job in jobs} == {("x.example", 3), ("y.example", 3)}
    for where in ("x.example", "y.example"):
        for token in (1, 2):
            old = job_of(member, where, token)
            assert not await books.store.submit(Mark(member.message_id, where, token))
            assert not await books.store.submit(report_on(old, books.clock.us, Result.FAILED))
            gone = (member.message_id, where, token, books.clock.us)
            assert not await books.store.write(leases.release, *gone)
            row = (member.message_id, where)
            assert await books.store.write(leases.forsake, {row: token}, books.clock.us) == {row: False}
    # The token of one destination is nothing to another one.
    assert not await books.store.submit(Mark(member.message_id, "z.example", 3))
    assert await balance(books) == 98
    for job in jobs:
        assert await books.store.submit(report_on(job, books.clock.us, Result.DELIVERED))


async def test_a_claim_without_an_answer_leaves_no_lease(books: Books) -> None:
    await books.store.submit(mx_accept(books, "a@x.example", "b@y.example", left=("y.example",)))
    assert len(await claimed(books)) == 1  # of which the process heard nothing
    freed = await books.store.write(leases.free_uncertain, "me", {}, [books.clock.us], books.clock.us)
    assert freed == []
    jobs = await claimed(books)
    assert [(job.destination, job.token) for job in jobs] == [("y.example", 4)]  # and the first lease still holds


async def test_an_accept_without_an_answer_leaves_no_lease(books: Books) -> None:
    member = mx_accept(books, "a@x.example", "b@y.example")
    await books.store.submit(member)
    wanted = {(member.message_id, where): 1 for where in ("x.example", "y.example", "z.example")}
    freed = await books.store.write(leases.free_uncertain, "me", wanted, [], books.clock.us)
    assert sorted(where for _, where in freed) == ["x.example", "y.example"]
    assert len(await claimed(books)) == 2


# Expiry


async def test_what_expires_is_refunded_once_wherever_it_waits(books: Books) -> None:
    where = ("queued", "deferred", "held", "paused", "full", "excluded", "leased")
    members = {}
    for name in where:
        route = "down" if name == "excluded" else "mx"
        members[name] = mx_accept(books, f"a@{name}.example", route=route, owner="me" if name == "leased" else None)
        await books.store.submit(members[name])
    await books.store.write(queue.hold, members["held"].message_id, books.clock.us)
    await books.store.write(queue.pause_route, "mx", "paused.example", "", books.clock.us)
    others = {("mx", f"{name}.example") for name in where if name != "deferred"}
    (job,) = await claimed(books, full=others, exclude=("down",))
    await books.store.submit(report_on(job, books.clock.us, Result.DEFERRED, due_us=NEVER_US - 1))
    leased = job_of(members["leased"], "leased.example")
    expires = members["queued"].expires_at_us
    shut: Any = {"exclude": ("mx", "down")}
    assert await books.store.read(claim.next_due_at_us, books.clock.us, **shut) == expires
    assert await balance(books) == 100 - len(where)
    books.clock.us = expires
    found = await books.store.write(claim.claim, "me", expires, 10, 0, **shut)
    assert (found.jobs, found.expired) == ([], len(where) - 1)
    assert await balance(books) == 99
    # The one under way first ends its attempt; then it expires.
    assert await books.store.submit(report_on(leased, books.clock.us, Result.DEFERRED))
    assert await books.store.write(claim.expire, expires, 0) == 1
    assert await books.store.write(claim.expire, expires, 0) == 0
    assert await balance(books) == 100
    assert await books.store.read(queue.count_waiting) == 0
    assert await books.store.read(claim.next_due_at_us, books.clock.us) is None
    for member in members.values():
        shown = await books.store.read(queue.show, member.message_id)
        assert [r["state"] for r in shown["recipients"]] == ["expired"]


async def test_expiry_leaves_the_destination_that_is_under_way(books: Books) -> None:
    member = mx_accept(books, "a@x.example", "b@y.example", left=("x.example",))
    await books.store.submit(member)
    books.clock.us = member.expires_at_us
    assert await books.store.write(claim.expire, books.clock.us, 0) == 1
    assert await balance(books) == 99
    assert await books.store.submit(report_on(job_of(member, "y.example"), books.clock.us, Result.DELIVERED))
    shown = await books.store.read(queue.show, member.message_id)
    assert ([r["state"] for r in shown["recipients"]], shown["state"]) == (["expired", "sent"], "failed")
    assert await balance(books) == 99


async def test_much_that_expires_at_once_goes_in_steps(books: Books) -> None:
    members = [mx_accept(books, "a@x.example", owner=None) for _ in range(9)]
    for member in members:
        await books.store.submit(member)
    books.clock.us = members[0].expires_at_us
    ended = [await books.store.write(claim.expire, books.clock.us, 0, 4) for _ in range(4)]
    assert ended == [4, 4, 1, 0]
    assert await balance(books) == 100


async def test_what_expired_does_not_leave_though_it_is_not_ended_yet(books: Books) -> None:
    await books.store.write(fill, "mx", {"x.example": claim.EXPIRE_AT_ONCE, "y.example": 9}, books.clock.us)
    books.clock.us += 96 * HOUR_US
    found = await books.store.write(claim.claim, "me", books.clock.us, 100, 0)
    assert (found.jobs, found.expired) == ([], claim.EXPIRE_AT_ONCE)
    assert await books.store.read(queue.count_waiting) == 9
    found = await books.store.write(claim.claim, "me", books.clock.us, 100, 0)
    assert (found.jobs, found.expired) == ([], 9)


async def test_a_row_that_is_due_before_its_recipients_is_put_back(books: Books) -> None:
    """Leased for nothing it would stay with a living process for ever."""
    member = mx_accept(books, "a@x.example")
    await books.store.submit(member)
    due_us = books.clock.us + HOUR_US
    await books.store.submit(report_on(job_of(member, "x.example"), books.clock.us, Result.DEFERRED, due_us=due_us))
    await books.store.write(lambda conn: conn.execute(update(schema.queue).values(due_at_us=books.clock.us)) and None)
    assert await claimed(books) == []
    assert await books.store.read(claim.next_due_at_us, books.clock.us) == due_us
    books.clock.us = due_us
    assert [job.message_id for job in await claimed(books)] == [member.message_id]
