# SPDX-License-Identifier: Apache-2.0
"""The outbox: what callers wait for, leases that nobody heard of, pauses that are obeyed at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hepmaild.callers import FirstAttempt
from hepmaild.delivery.job import Outcome, Result
from hepmaild.errors import SpoolUnavailable, StoreUnavailable
from hepmaild.mail.content import SPOOL_OCTETS
from hepmaild.outbox import Outbox
from hepmaild.storage import credits as money
from hepmaild.storage import leases, log, messages, queue
from hepmaild.storage.claim import claim_and_look
from hepmaild.storage.store import Store
from tests.peers import postgres
from tests.storage.books import HOUR_US, Books, Clock, age_leases, open_books
from tests.storage.conftest import Opener
from tests.storage.mx_books import fill, job_of, mx_accept, report_on
from tests.storage.test_stay_alive import alive


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        yield opened


def outbox_of(books: Books, store: Any = None, **changes: Any) -> Outbox:
    settings: dict[str, Any] = {"owner": "me", "lease_s": 60, "body_days": 0, "spool_dir": None, **changes}
    return Outbox(store or books.store, now_us=books.clock.now_us, **settings)


class Flaky:
    """A store whose answer to some writes is lost, after they were committed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lose: list[Callable[..., Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write_soon(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = await self._store.write_soon(fn, *args, **kwargs)
        if fn in self.lose:
            self.lose.remove(fn)
            raise StoreUnavailable("the answer was lost")
        return result


def outcome(n: int, result: Result = Result.DELIVERED) -> Outcome:
    return Outcome(n, result, None)


async def test_a_caller_waits_for_every_destination_once() -> None:
    waiter = FirstAttempt(["x.example", "y.example", "z.example"])
    waiter.hear("y.example", (outcome(1),))
    waiter.hear("y.example", (outcome(1, Result.FAILED),))  # a second attempt is no news
    waiter.hear("elsewhere.example", (outcome(7),))
    assert not waiter.done.is_set()
    waiter.hear("x.example", (outcome(0), outcome(2)))
    waiter.hear("z.example")
    assert waiter.done.is_set()
    assert [(o.recipient_id, o.result) for o in waiter.outcomes] == [(n, Result.DELIVERED) for n in range(3)]


async def test_what_is_put_off_was_not_attempted_and_says_why_it_waits(books: Books) -> None:
    """It is due again soon, whoever claims it then; and it expires, which is refunded."""
    outbox = outbox_of(books)
    member = mx_accept(books, "a@x.example", "b@y.example")
    waiter = outbox.expect(member.message_id, member.destinations)
    await books.store.submit(member)
    left = await books.store.read(money.balance, books.account_id)
    why = "451 4.3.0 there is no route"
    for where in ("x.example", "y.example"):
        await outbox.put_off(job_of(member, where), books.clock.us + 60_000_000, why)
    assert waiter.done.is_set()
    assert waiter.outcomes == ()
    shown = (await books.store.read(log.show, member.message_id))["recipients"]
    assert [(r["state"], r["attempts"], r["last_reply"]) for r in shown] == [("queued", 0, why)] * 2
    assert (await outbox.claim(10)).jobs == []
    books.clock.us += 60_000_000
    jobs = (await outbox.claim(10)).jobs
    assert [[r.attempts for r in job.recipients] for job in jobs] == [[0], [0]]
    await outbox.put_off(job_of(member, "x.example"), books.clock.us, why)  # with the token of before
    for job in jobs:
        await outbox.put_off(job, member.expires_at_us + 1, why)
    books.clock.us = member.expires_at_us
    await outbox.expire()
    assert await books.store.read(queue.count_waiting) == 0
    assert await books.store.read(money.balance, books.account_id) == left + 2


async def test_reports_and_releases_reach_the_caller(books: Books) -> None:
    outbox = outbox_of(books)
    member = mx_accept(books, "a@x.example", "b@y.example")
    waiter = outbox.expect(member.message_id, member.destinations)
    await books.store.submit(member)
    outbox.accepted(2)
    report = report_on(job_of(member, "x.example"), books.clock.us, Result.IN_DOUBT, hold=True)
    assert await outbox.report(report.attempt)
    assert outbox.backlog == 2  # held is not gone
    assert not waiter.done.is_set()
    await outbox.release(job_of(member, "y.example"))
    assert waiter.done.is_set()
    assert [o.result for o in waiter.outcomes] == [Result.IN_DOUBT]
    (job,) = (await outbox.claim(10)).jobs
    assert await outbox.report(report_on(job, books.clock.us, Result.DELIVERED).attempt)
    assert outbox.backlog == 1


async def test_many_are_given_back_together(books: Books) -> None:
    """Those whose lease was lost meanwhile stay as they are."""
    outbox = outbox_of(books)
    jobs = []
    for n in range(5):
        member = mx_accept(books, f"a@d{n}.example")
        await books.store.submit(member)
        outbox.accepted(1)
        jobs.append(job_of(member, f"d{n}.example"))
    lost = replace(jobs[2], token=jobs[2].token - 1)
    await outbox.release(*jobs[:2], lost, *jobs[3:])
    again = (await outbox.claim(10)).jobs
    assert {job.message_id for job in again} == {job.message_id for job in jobs} - {lost.message_id}


async def test_a_claim_brings_no_more_of_a_route_than_it_may(books: Books) -> None:
    """The oldest of it; what is left is due still, and the others have their share."""
    await books.store.write(fill, "slow", {"": 100}, books.clock.us)
    await books.store.write(fill, "mx", {"x.example": 300, "y.example": 300}, books.clock.us)
    outbox = outbox_of(books)
    jobs, again_at_us = await outbox.claim(200, most_of={"slow": 40})
    assert Counter(job.route for job in jobs)["slow"] == 40
    assert [job.message_id for job in jobs if job.route == "slow"] == [f"{n:016x}" for n in range(1, 41)]
    assert again_at_us is not None
    assert again_at_us <= books.clock.us
    jobs, _ = await outbox.claim(200, exclude=("slow",))
    assert Counter(job.route for job in jobs) == {"mx": 200}


@pytest.mark.parametrize("back_us", [HOUR_US, 5 * 24 * HOUR_US])
async def test_a_clock_that_is_set_back_is_followed(books: Books, back_us: int) -> None:
    """By the time of before every retry would be due at once, and after some days everything would have expired."""
    outbox = outbox_of(books)
    assert (await outbox.claim(10)).jobs == []
    books.clock.us -= back_us
    await books.store.write(fill, "up", {"": 1}, books.clock.us)
    (job,) = (await outbox.claim(10)).jobs
    due_us = books.clock.us + 60_000_000
    assert await outbox.report(report_on(job, books.clock.us, Result.DEFERRED, due_us=due_us).attempt)
    assert (await outbox.claim(10)).jobs == []
    books.clock.us = due_us
    assert [again.message_id for again in (await outbox.claim(10)).jobs] == [job.message_id]


async def test_one_claim_looks_at_all_destinations(books: Books) -> None:
    """The ring is longer than one unit visits; only its last destination has something to do."""
    later = books.clock.us + 3_600_000_000
    await books.store.write(fill, "mx", {"aa.example": 600}, books.clock.us)
    await books.store.write(fill, "mx", {f"d{n:04}.example": 1 for n in range(700)}, books.clock.us, later)
    await books.store.write(fill, "mx", {"zz.example": 1}, books.clock.us)
    full = {("mx", "aa.example")}
    outbox = outbox_of(books)
    assert [job.destination for job in (await outbox.claim(5, full=full)).jobs] == ["zz.example"]
    jobs, again_at_us = await outbox.claim(5, full=full)
    assert jobs == []
    # On PostgreSQL, when the lease of this process would end by the server's clock.
    lease_ends_us = later if books.store.is_sqlite else books.clock.us + 60_000_000
    assert again_at_us == pytest.approx(lease_ends_us, abs=0 if books.store.is_sqlite else 50_000_000)


async def test_leases_of_a_claim_whose_answer_was_lost_are_found(books: Books) -> None:
    store = Flaky(books.store)
    outbox = outbox_of(books, store)
    await books.store.write(fill, "up", {"": 3}, books.clock.us)
    store.lose.append(claim_and_look)
    with pytest.raises(StoreUnavailable):
        await outbox.claim(2)
    books.clock.us += 1_000_000
    jobs, soon = await outbox.claim(10)
    assert sorted(job.token for job in jobs) == [2, 4, 4]
    assert soon == books.clock.us + 1_000_000
    books.clock.us += 61_000_000
    jobs, soon = await outbox.claim(10)
    assert not jobs
    assert soon is None or soon > books.clock.us + 2_000_000  # nothing is uncertain any more


async def test_what_a_claim_brought_before_the_store_failed_is_kept(books: Books) -> None:
    store = Flaky(books.store)
    outbox = outbox_of(books, store)
    later = books.clock.us + 3_600_000_000
    await books.store.write(fill, "mx", {"aa.example": 600}, books.clock.us)
    await books.store.write(fill, "mx", {f"d{n:04}.example": 1 for n in range(700)}, books.clock.us, later)
    await books.store.write(fill, "mx", {"b.example": 1, "zz.example": 1}, books.clock.us)
    done = 0

    async def second_fails(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += fn is claim_and_look
        if fn is claim_and_look and done == 2:
            raise StoreUnavailable("no")
        return await books.store.write_soon(fn, *args, **kwargs)

    store.write_soon = second_fails  # type: ignore[method-assign]
    full = {("mx", "aa.example")}
    assert [job.destination for job in (await outbox.claim(5, full=full)).jobs] == ["b.example"]
    assert [job.destination for job in (await outbox.claim(5, full=full)).jobs] == ["zz.example"]


class Watched(Flaky):
    """A store that does something before the second unit of a claim."""

    def __init__(self, store: Store, before_second: Callable[[], None]) -> None:
        super().__init__(store)
        self._before_second = before_second
        self._claims = 0

    async def write_soon(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._claims += fn is claim_and_look
        if self._claims == 2:
            self._before_second()
        return await super().write_soon(fn, *args, **kwargs)


async def test_a_claim_that_is_cut_keeps_no_lease(books: Books) -> None:
    """The scheduler's time for a look ends between two units of its claim: what the first one leased is due again."""
    with trio.CancelScope() as scope:
        outbox = outbox_of(books, Watched(books.store, scope.cancel))
        await books.store.write(fill, "up", {"": 100}, books.clock.us)
        await outbox.claim(100)
    assert scope.cancelled_caught
    books.clock.us += 1
    jobs, _ = await outbox.claim(100)
    assert len(jobs) == 100
    assert sorted({job.token for job in jobs}) == [2, 4]  # never leased before, or taken back


async def test_a_claim_that_takes_long_brings_what_it_has(books: Books, mock_clock: MockClock) -> None:
    outbox = outbox_of(books, Watched(books.store, lambda: mock_clock.jump(5)))
    await books.store.write(fill, "up", {"": 100}, books.clock.us)
    jobs, again_at_us = await outbox.claim(100)
    assert len(jobs) == 64
    assert again_at_us is not None
    assert again_at_us <= outbox._claimed_at_us
    jobs, _ = await outbox.claim(100)
    assert len(jobs) == 36


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_forsaken_lease_that_is_locked_is_not_forgotten(books: Books, database_url: str) -> None:
    """Any report on another destination of its message locks the row.  (SQLite has no locks of rows.)"""
    outbox = outbox_of(books)
    member, other = mx_accept(books, "a@x.example"), mx_accept(books, "b@y.example")
    for m in (member, other):
        await books.store.submit(m)
    outbox.forsake(job_of(member, "x.example"))
    outbox.forsake(job_of(other, "y.example", token=7))  # lost long ago
    lock = f"SELECT 1 FROM queue WHERE message_id = '{member.message_id}' FOR UPDATE"
    with postgres.open_transaction(database_url, lock):
        jobs, again_at_us = await outbox.claim(10)
        assert not jobs
        assert again_at_us is not None
        assert again_at_us <= books.clock.us  # it is looked for at once
    (job,) = (await outbox.claim(10)).jobs
    assert (job.message_id, job.token) == (member.message_id, 3)
    assert await outbox.mark_in_doubt(job)
    jobs, again_at_us = await outbox.claim(10)
    assert not jobs
    assert again_at_us is not None
    assert again_at_us > books.clock.us  # nothing forsaken is left


async def test_an_accept_whose_answer_was_lost_leaves_soon(books: Books) -> None:
    outbox = outbox_of(books)
    member = mx_accept(books, "a@x.example", "b@y.example", left=("y.example",))
    await books.store.submit(member)
    outbox.doubt_accept(member.message_id, "x.example", 1)
    jobs, _ = await outbox.claim(10)
    assert {job.destination: job.token for job in jobs} == {"x.example": 3, "y.example": 2}
    held = await outbox.mark_in_doubt(jobs[0])
    assert held


async def test_content_that_finds_no_room_in_the_spool_is_no_failure_of_the_store(books: Books, tmp_path: Path) -> None:
    """On PostgreSQL it was taken for one: claims paused for everybody, again and again."""
    member = mx_accept(books, "a@x.example", content=None, size=2 * SPOOL_OCTETS)
    for n in range(2):
        await books.store.write(messages.stage_piece, member.message_id, n, bytes(SPOOL_OCTETS), books.clock.us)
    await books.store.submit(member)
    outbox = outbox_of(books, spool_dir=str(tmp_path / "spool"))
    with pytest.raises(SpoolUnavailable, match="No such file"):
        await outbox.load(job_of(member, "x.example"))
    (tmp_path / "spool").mkdir()
    content = await outbox.load(job_of(member, "x.example"))
    assert content.size == sum(map(len, content.chunks())) == 2 * SPOOL_OCTETS
    content.close()


async def test_a_pause_is_known_at_once(books: Books) -> None:
    outbox = outbox_of(books)
    await books.store.write(queue.pause_route, "mx", "x.example", "", books.clock.us)
    await books.store.write(queue.pause_route, "up", "", "", books.clock.us)
    assert not outbox.is_paused("up", "")
    await outbox.recount()
    assert outbox.is_paused("up", "")
    assert outbox.is_paused("mx", "x.example")
    assert not outbox.is_paused("mx", "y.example")
    await books.store.write(queue.resume, "up", "")
    await outbox.claim(1)  # also when nobody was told
    assert not outbox.is_paused("up", "")
    assert outbox.is_paused("mx", "x.example")


async def test_several_tasks_may_say_at_once_that_the_process_lives(books: Books) -> None:
    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(books.store.write, leases.stay_alive, "me", HOUR_US + n, books.clock.us)
    member = mx_accept(books, "a@x.example")
    await books.store.submit(member)
    assert await books.store.write(leases.take_over, books.clock.us, alone=False) == 0
    await books.store.write(age_leases, HOUR_US + 8)
    assert await books.store.write(leases.take_over, books.clock.us, alone=False) == 1


SEVERAL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@SEVERAL
@pytest.mark.parametrize("behind_s", [-120, 120])
async def test_processes_whose_clocks_differ_leave_each_other_their_leases(books: Books, behind_s: int) -> None:
    """One machine slept for two minutes, or its clock was set: nobody takes over what it works on, and sends it too."""
    slow = outbox_of(books, owner="slow")
    other = Outbox(
        books.store,
        owner="other",
        now_us=Clock(books.clock.us + behind_s * 1_000_000).now_us,
        lease_s=60,
        body_days=0,
        spool_dir=None,
    )
    member = mx_accept(books, "a@x.example", owner="slow")
    await books.store.submit(member)
    await slow.stay_alive()
    job = job_of(member, "x.example")
    assert await slow.mark_in_doubt(job)
    assert not (await other.claim(10)).jobs
    assert await slow.report(report_on(job, books.clock.us, Result.DELIVERED).attempt)


@SEVERAL
async def test_a_clock_that_is_set_back_does_not_keep_a_process_from_saying_that_it_lives(
    books: Books, mock_clock: MockClock
) -> None:
    outbox = outbox_of(books)
    await outbox.stay_alive()
    await books.store.submit(mx_accept(books, "a@x.example"))
    mock_clock.jump(59)
    await books.store.write(age_leases, 59_000_000)
    others_us = books.clock.us
    books.clock.us -= HOUR_US
    await outbox.stay_alive()
    await books.store.write(age_leases, 30_000_000)  # the server's clock goes on, and this machine may be busy
    assert await books.store.write(leases.take_over, others_us, alone=False) == 0


@SEVERAL
async def test_who_lost_a_lease_says_at_once_that_it_lives(books: Books) -> None:
    """It slept without noticing: what it leases now would be taken from it, too."""
    outbox = outbox_of(books)
    lost, member = mx_accept(books, "a@x.example"), mx_accept(books, "a@y.example")
    await outbox.stay_alive()
    await books.store.submit(lost)
    await books.store.write(age_leases, HOUR_US)
    assert await books.store.write(leases.take_over, books.clock.us, alone=False) == 1
    assert not await outbox.mark_in_doubt(job_of(lost, "x.example"))
    await books.store.submit(member)
    assert await outbox.mark_in_doubt(job_of(member, "y.example"))
    assert await books.store.write(leases.take_over, books.clock.us, alone=False) == 0


@SEVERAL
async def test_the_heartbeat_does_not_rely_on_what_a_mark_said(books: Books, mock_clock: MockClock) -> None:
    """Each quarter of the lease, or one that is not heard for a moment is dead for the others after half of it."""
    outbox = outbox_of(books)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run_heartbeat, lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(14)
        await outbox.stay_alive()
        before = await books.store.read(alive)
        mock_clock.jump(1)
        give_up_at = time.monotonic() + 60  # Trio's clock stands still
        while await books.store.read(alive) == before:
            assert time.monotonic() < give_up_at
        nursery.cancel_scope.cancel()


async def test_expiry_needs_no_claim(books: Books) -> None:
    outbox = outbox_of(books)
    member = mx_accept(books, "a@x.example", owner=None)
    await books.store.submit(member)
    books.clock.us = member.expires_at_us
    await outbox.expire()
    assert await books.store.read(queue.count_waiting) == 0
