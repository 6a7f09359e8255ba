# SPDX-License-Identifier: Apache-2.0
"""What the operator does to the queue and sees of it, on both engines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, event

from hepmaild.delivery.job import Result
from hepmaild.storage import claim, log, queue, stats
from hepmaild.storage import credits as money
from hepmaild.storage.queue import Where
from hepmaild.storage.unit import Mark
from tests.storage.books import HOUR_US, Books, open_books
from tests.storage.conftest import Opener
from tests.storage.mx_books import claimed, fill, job_of, mx_accept, report_on

MINUTE_US = 60_000_000


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        yield opened


async def states(books: Books, message_id: str) -> tuple[str, list[str]]:
    shown = await books.store.read(queue.show, message_id)
    return shown["state"], [r["state"] for r in shown["recipients"]]


async def in_steps(books: Books, step: Any, where: Where) -> tuple[int, int, int]:
    """All steps: how many, and what they did."""
    steps, messages, recipients, after = 0, 0, 0, ""
    while True:
        done = await books.store.write(step, where, books.clock.us, after)
        steps, messages, recipients = steps + 1, messages + done.messages, recipients + done.recipients
        if done.after is None:
            return steps, messages, recipients
        after = done.after


# Holding and releasing


async def test_what_is_held_waits_until_it_is_released(books: Books) -> None:
    member = mx_accept(books, "a@x.example", "b@y.example", left=("y.example",))
    await books.store.submit(member)
    held = await books.store.write(queue.hold, member.message_id, books.clock.us)
    assert (held["held"], held["expires_at"]) == (2, member.expires_at_us)
    assert await states(books, member.message_id) == ("held", ["held", "held"])
    # The attempt that was under way stops before its dot.
    assert not await books.store.submit(Mark(member.message_id, "x.example", 1))
    assert not await books.store.submit(report_on(job_of(member, "x.example"), books.clock.us, Result.FAILED))
    assert await claimed(books) == []
    with pytest.raises(ValueError, match=f"held already; `hepmaild queue release {member.message_id}`"):
        await books.store.write(queue.hold, member.message_id, books.clock.us)
    with pytest.raises(ValueError, match=f"is held; `hepmaild queue release {member.message_id}`"):
        await books.store.write(queue.retry, member.message_id, books.clock.us)
    books.clock.us += HOUR_US
    assert (await books.store.write(queue.release, member.message_id, books.clock.us))["released"] == 2
    assert await states(books, member.message_id) == ("queued", ["queued", "queued"])
    assert {job.destination for job in await claimed(books)} == {"x.example", "y.example"}
    with pytest.raises(ValueError, match="is not held"):
        await books.store.write(queue.release, member.message_id, books.clock.us)
    events = (await books.store.read(log.show, member.message_id))["events"]
    assert [e["kind"] for e in events] == ["accepted", "held", "released"]


async def test_what_is_past_the_dot_cannot_be_held(books: Books) -> None:
    member = mx_accept(books, "a@x.example", "b@y.example")
    await books.store.submit(member)
    await books.store.submit(Mark(member.message_id, "x.example", 1))
    with pytest.raises(ValueError, match="being handed to the next hop"):
        await books.store.write(queue.hold, member.message_id, books.clock.us)
    assert await states(books, member.message_id) == ("queued", ["queued", "queued"])
    # The other destination's lease is as it was: all or nothing.
    assert await books.store.submit(Mark(member.message_id, "y.example", 1))


async def test_a_deferred_message_that_was_held_is_deferred_again(books: Books) -> None:
    member = mx_accept(books, "a@x.example")
    await books.store.submit(member)
    await books.store.submit(report_on(job_of(member, "x.example"), books.clock.us, Result.DEFERRED))
    await books.store.write(queue.hold, member.message_id, books.clock.us)
    await books.store.write(queue.release, member.message_id, books.clock.us)
    assert await states(books, member.message_id) == ("deferred", ["deferred"])
    (job,) = await claimed(books)
    assert job.recipients[0].attempts == 1


async def test_what_is_final_is_refused(books: Books) -> None:
    member = mx_accept(books, "a@x.example")
    await books.store.submit(member)
    await books.store.submit(report_on(job_of(member, "x.example"), books.clock.us, Result.DELIVERED))
    for change in (queue.hold, queue.release, queue.retry, queue.cancel):
        with pytest.raises(ValueError, match="is final"):
            await books.store.write(change, member.message_id, books.clock.us)
        with pytest.raises(ValueError, match="there is no message"):
            await books.store.write(change, "0" * 16, books.clock.us)


async def test_cancel_ends_every_destination_and_refunds_each_once(books: Books) -> None:
    member = mx_accept(books, "a@x.example", "b@y.example", "c@z.example")
    await books.store.submit(member)
    await books.store.submit(report_on(job_of(member, "x.example"), books.clock.us, Result.DELIVERED))
    await books.store.submit(report_on(job_of(member, "y.example"), books.clock.us, Result.DEFERRED))
    done = await books.store.write(queue.cancel, member.message_id, books.clock.us)
    assert (done["cancelled"], done["refunded"]) == (2, 2)
    assert await states(books, member.message_id) == ("cancelled", ["sent", "cancelled", "cancelled"])
    assert not await books.store.submit(report_on(job_of(member, "z.example"), books.clock.us, Result.FAILED))
    assert await books.store.read(money.balance, books.account_id) == 99
    assert await books.store.read(money.verify, books.account_id) is None


# Many at once


async def test_many_are_retried_in_steps(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "AT_ONCE", 3)
    later = books.clock.us + HOUR_US
    await books.store.write(fill, "mx", {"a.example": 8, "b.example": 4}, books.clock.us, later)
    await books.store.write(fill, "up", {"": 4}, books.clock.us, later)
    assert await in_steps(books, queue.retry_some, Where("mx", "a.example")) == (3, 8, 8)
    assert {job.destination for job in await claimed(books)} == {"a.example"}
    # On a route with one next hop the domain of the address counts.
    assert await in_steps(books, queue.retry_some, Where(None, "one.example")) == (2, 4, 4)
    assert {job.route for job in await claimed(books)} == {"up"}
    assert await in_steps(books, queue.retry_some, Where("mx")) == (2, 4, 4)
    assert await in_steps(books, queue.retry_some, Where("mx")) == (1, 0, 0)


async def test_a_step_for_what_is_seldom_does_not_go_through_the_whole_queue(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "LOOK", 3)
    later = books.clock.us + HOUR_US
    await books.store.write(fill, "mx", {"a.example": 7, "b.example": 1, "c.example": 3}, books.clock.us, later)
    first = await books.store.write(queue.retry_some, Where("mx", "b.example"), books.clock.us)
    assert (first.messages, first.after is None) == (0, False)
    assert await in_steps(books, queue.retry_some, Where("mx", "b.example")) == (3, 1, 1)
    assert await in_steps(books, queue.retry_some, Where("mx")) == (3, 10, 10)


async def test_many_are_released_in_steps_and_messages_are_not_cut(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "AT_ONCE", 2)
    members = [mx_accept(books, "a@x.example", "b@y.example", "c@z.example", owner=None) for _ in range(5)]
    for member in members:
        await books.store.submit(member)
        await books.store.write(queue.hold, member.message_id, books.clock.us)
    assert await in_steps(books, queue.release_some, Where("mx", "x.example")) == (3, 5, 5)
    assert await states(books, members[0].message_id) == ("held", ["queued", "held", "held"])
    assert {job.destination for job in await claimed(books)} == {"x.example"}
    assert await in_steps(books, queue.release_some, Where("mx")) == (3, 5, 10)
    assert len(await claimed(books)) == 10
    # What is held is nothing to retry.
    await books.store.submit(held := mx_accept(books, "a@x.example", owner=None))
    await books.store.write(queue.hold, held.message_id, books.clock.us)
    assert await in_steps(books, queue.retry_some, Where("mx")) == (1, 0, 0)


async def test_a_retry_of_one_recipient_leaves_the_other_of_its_message(books: Books) -> None:
    member = books.accept("a@x.example", "b@y.example")
    await books.store.submit(member)
    due = books.clock.us + HOUR_US
    await books.store.submit(books.report(member, Result.DEFERRED, Result.DEFERRED, retry_at_us=due))
    assert await in_steps(books, queue.retry_some, Where("up", "y.example")) == (1, 1, 1)
    (job,) = await claimed(books)
    assert [r.address for r in job.recipients] == ["b@y.example"]


# Pauses


async def test_a_pause_stops_attempts_before_their_dot(books: Books) -> None:
    under_way, past = mx_accept(books, "a@x.example", "b@y.example"), mx_accept(books, "a@x.example")
    for member in (under_way, past):
        await books.store.submit(member)
    await books.store.submit(Mark(past.message_id, "x.example", 1))
    done = await books.store.write(queue.pause_route, "mx", "x.example", "their request", books.clock.us)
    assert done["stopped"] == 1
    assert not await books.store.submit(Mark(under_way.message_id, "x.example", 1))
    assert await books.store.submit(Mark(under_way.message_id, "y.example", 1))
    assert await books.store.submit(report_on(job_of(past, "x.example"), books.clock.us, Result.DELIVERED))
    assert await claimed(books) == []
    await books.store.write(queue.pause_route, "mx", "x.example", "still", books.clock.us + 5)
    (paused,) = await books.store.read(queue.pauses)
    assert (paused["note"], paused["since_at"]) == ("still", books.clock.us)
    _, known = await books.store.read(queue.learn)
    assert known == {("mx", "x.example")}
    assert (await books.store.write(queue.resume, "mx", "x.example"))["still_paused"] == []
    assert [job.destination for job in await claimed(books)] == ["x.example"]
    with pytest.raises(ValueError, match="is not paused"):
        await books.store.write(queue.resume, "mx", "x.example")


@pytest.mark.parametrize("where", ["", "x.example"])
async def test_what_was_leased_in_the_moment_of_a_pause_is_not_marked(books: Books, where: str) -> None:
    """A claim or an acceptance that was under way made the lease behind the pause, which did not see it."""
    await books.store.write(queue.pause_route, "mx", where, "", books.clock.us)
    await books.store.write(queue.pause_route, "up", "x.example", "", books.clock.us)
    member = mx_accept(books, "a@x.example", "b@y.example")
    await books.store.submit(member)
    books.clock.us += 5
    marks = [Mark(member.message_id, at, 1) for at in ("x.example", "y.example")]
    assert [await books.store.submit(mark) for mark in marks] == [False, where != ""]
    assert not await books.store.submit(report_on(job_of(member, "x.example"), books.clock.us, Result.DELIVERED))
    await books.store.write(queue.resume, "mx", where)
    jobs = await claimed(books)
    assert [(job.destination, job.token) for job in jobs][:1] == [("x.example", 3)]
    assert await books.store.submit(Mark(member.message_id, "x.example", 3))


async def test_a_paused_route_still_expires(books: Books) -> None:
    member = books.accept(owner=None)
    await books.store.submit(member)
    await books.store.write(queue.pause_route, "up", "", "", books.clock.us)
    assert await books.store.read(claim.next_due_at_us, books.clock.us) == member.expires_at_us
    books.clock.us = member.expires_at_us
    found = await books.store.write(claim.claim, "me", books.clock.us, 10, 0)
    assert (found.jobs, found.expired) == ([], 1)


# Looking


async def test_the_list_can_be_narrowed(books: Books) -> None:
    await books.store.write(fill, "mx", {"a.example": 3, "b.example": 2}, books.clock.us)
    await books.store.write(fill, "up", {"": 2}, books.clock.us - MINUTE_US)
    await books.store.write(queue.hold, f"{1:016x}", books.clock.us)
    (job, *_) = await claimed(books, 1)

    async def ids(*where: Any, limit: int = 100) -> list[int]:
        return [int(r["message_id"], 16) for r in await books.store.read(queue.list_waiting, limit, Where(*where))]

    assert await ids() == [7, 2, 4, 3, 5, 1, 6]  # the one under way comes last
    assert job.message_id == f"{6:016x}"
    assert await ids(limit=2) == [7, 2]
    assert await ids("mx") == [2, 4, 3, 5, 1]
    assert await ids("mx", "b.example") == [4, 5]
    assert await ids(None, "one.example") == [7, 6]
    assert await ids(None, None, "held") == [1]
    assert await ids("mx", "a.example", "queued") == [2, 3]
    (held,) = await books.store.read(queue.list_waiting, 10, Where(None, None, "held"))
    assert (held["route"], held["destination"], held["next_attempt_at"]) == ("mx", "a.example", None)


async def test_the_figures(books: Books) -> None:
    start = books.clock.us
    first = mx_accept(books, "a@x.example", "b@x.example", "c@y.example")
    await books.store.submit(first)
    books.clock.us += 10 * MINUTE_US
    await books.store.submit(books.accept("d@Y.example", owner=None))
    job = job_of(first, "x.example")
    report = report_on(job, books.clock.us, Result.DELIVERED, Result.IN_DOUBT)
    outcomes = [{"recipient": n, "result": r} for n, r in ((0, "delivered"), (1, "in_doubt"))]
    told = json.dumps({"route": "mx", "destination": "x.example", "outcomes": outcomes})
    await books.store.submit(replace(report, event=told))
    await books.store.write(queue.hold, first.message_id, books.clock.us)
    await books.store.write(queue.pause_route, "mx", "y.example", "", books.clock.us)
    books.clock.us += 10 * MINUTE_US
    found = await books.store.read(stats.stats, books.clock.us - 6 * MINUTE_US)
    assert found["by_state"] == {"queued": 1, "deferred": 0, "capped": 0, "held": 2}
    assert (found["in_doubt"], found["leased"], found["oldest_at"]) == (1, 0, start)
    assert found["by_route"] == {"mx": 2, "up": 1}
    assert found["by_destination"] == {"x.example": 1, "y.example": 2}
    assert [(p["route"], p["destination"]) for p in found["paused"]] == [("mx", "y.example")]
    mx, up = found["routes"]
    assert (mx["route"], mx["waiting"], mx["held"], mx["in_doubt"], mx["paused"]) == ("mx", 2, 2, 1, False)
    assert (mx["attempted_per_minute"], mx["delivered_per_minute"]) == (0.4, 0.2)  # 2 and 1 in 5 minutes
    assert mx["last_error"] == "250 2.0.0 said"
    assert 600 <= mx["wait_p50_s"] <= mx["wait_p95_s"] <= 14 * 60
    assert (up["waiting"], up["queued"], up["attempted_per_minute"]) == (1, 1, 0)
    x, y_mx, y_up = sorted(found["destinations"], key=lambda d: (d["destination"], d["route"]))
    assert (x["destination"], x["waiting"], x["delivered_per_minute"], x["paused"]) == ("x.example", 1, 0.2, False)
    assert (y_mx["route"], y_mx["paused"], y_up["route"], y_up["paused"]) == ("mx", True, "up", False)


async def test_the_figures_of_much(books: Books) -> None:
    """Percentiles are right within their bucket, and only the fullest destinations are described."""
    now_us = books.clock.us

    def crowd(conn: Connection) -> None:
        fill(conn, "mx", {f"d{n:03}.example": 1 + n for n in range(30)}, now_us)

    await books.store.write(crowd)
    found = await books.store.read(stats.stats, now_us, 5)
    assert len(found["by_destination"]) == 30
    assert [d["waiting"] for d in found["destinations"]] == [30, 29, 28, 27, 26]
    assert found["routes"][0]["wait_p50_s"] == 3600  # all were accepted an hour ago
    empty = await books.store.read(stats.stats, now_us, 0)
    assert empty["destinations"] == []


async def test_accounts_servers_are_looked_at_once_for_all_their_destinations(books: Books) -> None:
    """Each look may go through all that waits on them."""

    def asked(conn: Connection) -> tuple[int, Any]:
        statements = []
        note = lambda *given: statements.append(given[2])  # noqa: E731
        event.listen(conn, "before_cursor_execute", note)
        found = stats.stats(conn, books.clock.us)
        event.remove(conn, "before_cursor_execute", note)
        return len(statements), found

    counts = []
    for destinations in (range(2), range(2, 20)):
        for n in destinations:
            member = books.accept(f"a@d{n}.example", route=f"own:{n % 3}")
            await books.store.submit(member)
            await books.store.submit(books.report(member, Result.DEFERRED))
        count, found = await books.store.read(asked)
        counts.append(count)
    assert counts[0] == counts[1]
    assert [route["route"] for route in found["routes"]] == ["own:*"]
    assert [each["last_error"] for each in found["destinations"]] == ["250 2.0.0 fine"] * 20


def test_waiting_times_are_interpolated() -> None:
    group = stats.Group("up", None, {"queued": 100}, 0, 0, {0: 50, 3: 50})
    now_us = 90_000_000
    assert group.age_s(0.25, now_us) == 5.0
    assert group.age_s(0.5, now_us) == 10.0
    assert group.age_s(0.95, now_us) == 87.0  # the oldest has waited 90 s
    assert stats.Group("up").age_s(0.5, now_us) is None
