# SPDX-License-Identifier: Apache-2.0
"""Calls, accepts, marks and reports: what one unit of group commit decides and leaves behind, on both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, func, select, text, update

from hepmaild.delivery.job import Result
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.submission import RateState
from hepmaild.outbox import USES_UNIT, Outbox
from hepmaild.storage import claim, leases, log, queue, schema, stats
from hepmaild.storage import credits as money
from hepmaild.storage.accept import Taken, Twin
from hepmaild.storage.store import Store
from hepmaild.storage.unit import Answer, Answers, CallAndAccept, Mark, UnitRunner, Used
from tests.peers import postgres
from tests.storage.books import HOUR_US, START_US, Books, age_leases, mint_key, open_books
from tests.storage.conftest import Opener


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        yield opened


def count(conn: Connection, table: str) -> int:
    return int(conn.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


async def counts(books: Books, *names: str) -> tuple[int, ...]:
    return tuple([await books.store.read(count, name) for name in names])


async def together(books: Books, members: list[Any]) -> list[Any]:
    """Submit all at once; their results in order."""
    results: list[Any] = [None] * len(members)

    async def one(n: int) -> None:
        results[n] = await books.store.submit(members[n])

    async with trio.open_nursery() as nursery:
        for n in range(len(members)):
            nursery.start_soon(one, n)
    return results


async def balance(books: Books) -> int:
    assert await books.store.read(money.verify, books.account_id) is None
    return await books.store.read(money.balance, books.account_id)


# Accepting


async def test_an_accepted_message_is_all_there_and_paid_for(books: Books) -> None:
    result = await books.store.submit(books.accept("a@example.net", "b@example.net"))
    assert result == Taken(token=1, balance=98)
    assert await balance(books) == 98
    assert await counts(books, "message", "recipient", "queue", "body", "event") == (1, 2, 1, 1, 1)


async def test_concurrent_accepts_never_overdraw(books: Books) -> None:
    results = await together(books, [books.accept() for _ in range(130)])
    assert sum(isinstance(r, Taken) for r in results) == 100
    refused = [r for r in results if isinstance(r, Refusal)]
    assert {r.kind for r in refused} == {ErrorKind.INSUFFICIENT_CREDITS}
    assert refused[0].extra == {"required": 1, "balance": 0}
    assert await balance(books) == 0
    assert await counts(books, "message", "queue") == (100, 100)


async def test_a_message_that_is_too_dear_leaves_the_cheaper_ones(books: Books) -> None:
    dear = books.accept(*[f"r{n}@example.net" for n in range(101)])
    results = await together(books, [dear, books.accept("a@x.test", "b@x.test"), books.accept()])
    assert [isinstance(r, Taken) for r in results] == [False, True, True]
    assert await balance(books) == 97


async def test_a_suspended_account_is_refused_inside_the_unit(books: Books) -> None:
    await books.store.write(lambda conn: conn.execute(update(schema.account).values(status="suspended")) and None)
    result = await books.store.submit(books.accept())
    assert isinstance(result, Refusal)
    assert result.kind is ErrorKind.ACCOUNT_SUSPENDED


async def test_the_daily_limit_counts_accepted_messages_and_starts_anew(books: Books) -> None:
    for _ in range(3):
        assert isinstance(await books.store.submit(books.accept(messages_per_day=3)), Taken)
    refused = await books.store.submit(books.accept(messages_per_day=3))
    assert isinstance(refused, Refusal)
    assert refused.kind is ErrorKind.DAILY_LIMIT_REACHED
    assert refused.retry_after_s is not None
    books.clock.us += refused.retry_after_s * 1_000_000
    assert isinstance(await books.store.submit(books.accept(messages_per_day=3)), Taken)


# Idempotency


async def test_the_same_word_again_gives_the_first_answer(books: Books) -> None:
    first = books.accept(word="w:order-1", word_life_us=24 * HOUR_US, fingerprint=b"f" * 32)
    assert isinstance(await books.store.submit(first), Taken)
    await books.store.submit(Answers((Answer(first.message_id, "account-1", START_US, '{"final":true}', False),)))
    twin = books.accept(word="w:order-1", word_life_us=24 * HOUR_US, fingerprint=b"f" * 32)
    assert await books.store.submit(twin) == Twin(first.message_id, '{"final":true}', START_US)
    assert await balance(books) == 99


async def test_twins_in_one_unit_are_accepted_once(books: Books) -> None:
    members = [books.accept(word="w:x", word_life_us=HOUR_US, fingerprint=b"f" * 32) for _ in range(20)]
    results = await together(books, members)
    assert sum(isinstance(r, Taken) for r in results) == 1
    assert sum(isinstance(r, Twin) for r in results) == 19
    assert await balance(books) == 99


async def test_the_same_word_with_another_body_is_a_mismatch(books: Books) -> None:
    await books.store.submit(books.accept(word="w:x", word_life_us=HOUR_US, fingerprint=b"f" * 32))
    result = await books.store.submit(books.accept(word="w:x", word_life_us=HOUR_US, fingerprint=b"g" * 32))
    assert isinstance(result, Refusal)
    assert result.kind is ErrorKind.IDEMPOTENCY_MISMATCH


async def test_a_word_is_free_after_its_life_and_after_an_error(books: Books) -> None:
    word = {"word": "w:x", "word_life_us": HOUR_US, "fingerprint": b"f" * 32}
    first = books.accept(**word)
    await books.store.submit(first)
    books.clock.us += HOUR_US
    second = books.accept(**word)
    assert isinstance(await books.store.submit(second), Taken)
    await books.store.submit(Answers((Answer(second.message_id, "account-1", books.clock.us, "{}", True),)))
    assert isinstance(await books.store.submit(books.accept(**word)), Taken)


# The shared rate limit


async def test_no_window_of_sixty_seconds_holds_more_than_the_limit(books: Books) -> None:
    results = await together(books, [books.call(limit=5) for _ in range(8)])
    assert [isinstance(r, RateState) for r in results].count(True) == 5
    refused = next(r for r in results if isinstance(r, Refusal))
    assert refused.kind is ErrorKind.RATE_LIMITED
    assert refused.retry_after_s in (60, 61)
    assert refused.rate is not None
    assert refused.rate.remaining == 0


async def test_a_call_and_its_message_are_one_commit_or_nothing(books: Books) -> None:
    """What is refused as a call leaves no message; what is refused as a message was a call all the same."""
    dear = books.accept(*[f"r{n}@example.net" for n in range(101)])
    state, refused = await books.store.submit(CallAndAccept(books.call(limit=3), dear))
    assert isinstance(state, RateState)
    assert isinstance(refused, Refusal)
    assert isinstance(await books.store.submit(books.call(limit=3)), RateState)
    results = await together(books, [CallAndAccept(books.call(limit=3), books.accept()) for _ in range(5)])
    assert [isinstance(taken, Taken) for state, taken in results if isinstance(state, RateState)] == [True]
    over = [(state.kind, taken) for state, taken in results if isinstance(state, Refusal)]
    assert over == [(ErrorKind.RATE_LIMITED, None)] * 4
    assert await balance(books) == 99
    assert await counts(books, "message", "queue") == (1, 1)


# On PostgreSQL the database's clock decides, and no test moves it.
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_retry_after_is_when_exactly_one_call_passes(opener: Opener) -> None:
    async with open_books(opener) as books:
        for _ in range(3):
            assert isinstance(await books.store.submit(books.call(limit=3)), RateState)
            books.clock.us += 7_500_000
        refused = await books.store.submit(books.call(limit=3))
        assert isinstance(refused, Refusal)
        assert refused.retry_after_s == 38  # 60 s after the first, seen 22.5 s later, rounded up
        books.clock.us = START_US + 60_000_000
        assert isinstance(await books.store.submit(books.call(limit=3)), Refusal)
        books.clock.us = START_US + 22_500_000 + 38_000_000
        assert isinstance(await books.store.submit(books.call(limit=3)), RateState)
        assert isinstance(await books.store.submit(books.call(limit=3)), Refusal)


async def test_a_clock_that_is_set_back_gives_no_second_window(opener: Opener) -> None:
    async with open_books(opener) as books:
        for _ in range(4):
            await books.store.submit(books.call(limit=4))
        books.clock.us -= 30_000_000
        assert isinstance(await books.store.submit(books.call(limit=4)), Refusal)


async def test_what_cannot_be_paid_is_refused_and_takes_no_call(books: Books) -> None:
    refused = await books.store.submit(books.call(recipients=101))
    assert isinstance(refused, Refusal)
    assert refused.kind is ErrorKind.INSUFFICIENT_CREDITS
    state = await books.store.submit(books.call(recipients=100))
    assert isinstance(state, RateState)
    assert state.remaining == 119


# Reports


async def test_a_delivered_message_leaves_the_queue_and_its_content(books: Books) -> None:
    member = books.accept()
    await books.store.submit(member)
    assert await books.store.submit(Mark(member.message_id, "", 1)) is True
    assert await books.store.submit(books.report(member, Result.DELIVERED)) is True
    assert await counts(books, "queue", "body") == (0, 0)
    shown = await books.store.read(log.show, member.message_id)
    assert shown["state"] == "sent"
    assert [e["kind"] for e in shown["events"]] == ["accepted", "attempt"]
    assert await balance(books) == 99


async def test_each_failed_recipient_is_refunded_once(books: Books) -> None:
    member = books.accept("a@x.test", "b@x.test", "c@x.test")
    await books.store.submit(member)
    report = books.report(member, Result.DELIVERED, Result.FAILED, Result.DEFERRED)
    assert await books.store.submit(report) is True
    assert await balance(books) == 98
    assert await books.store.submit(report) is False  # the lease went with the first one
    assert await balance(books) == 98
    shown = await books.store.read(log.show, member.message_id)
    assert [r["state"] for r in shown["recipients"]] == ["sent", "failed", "deferred"]
    assert shown["state"] == "deferred"


async def test_an_old_token_writes_nothing(books: Books) -> None:
    member = books.accept()
    await books.store.submit(member)
    await books.store.write(leases.take_over, books.clock.us, alone=True)
    assert await books.store.submit(Mark(member.message_id, "", 1)) is False
    assert await books.store.submit(books.report(member, Result.FAILED)) is False
    assert await balance(books) == 99


# The queue


async def test_claims_take_what_is_due_once_and_step_over_excluded_routes(books: Books) -> None:
    mine = [books.accept(owner=None, at_us=START_US - n) for n in range(3)]
    other = books.accept(owner=None, route="down")
    await together(books, [*mine, other])
    claimed = await books.store.write(claim.claim, "me", books.clock.us, 2, 0, ("down",))
    assert {j.message_id for j in claimed.jobs} == {mine[2].message_id, mine[1].message_id}
    rest = await books.store.write(claim.claim, "me", books.clock.us, 10, 0)
    assert {j.message_id for j in rest.jobs} == {mine[0].message_id, other.message_id}
    assert all(j.token == 2 for j in rest.jobs)
    assert (await books.store.write(claim.claim, "me", books.clock.us, 10, 0)).jobs == []


async def test_a_deferred_message_is_due_when_it_says(books: Books) -> None:
    member = books.accept()
    await books.store.submit(member)
    due = books.clock.us + 60_000_000
    await books.store.submit(books.report(member, Result.DEFERRED, retry_at_us=due))
    assert await books.store.read(claim.next_due_at_us, books.clock.us) == due
    assert (await books.store.write(claim.claim, "me", due - 1, 10, 0)).jobs == []
    (job,) = (await books.store.write(claim.claim, "me", due, 10, 0)).jobs
    assert job.recipients[0].attempts == 1
    assert job.token == 2


async def test_what_expires_is_refunded_and_gone(books: Books) -> None:
    member = books.accept("a@x.test", "b@x.test")
    await books.store.submit(member)
    late = member.expires_at_us + HOUR_US
    await books.store.submit(books.report(member, Result.DELIVERED, Result.DEFERRED, retry_at_us=late))
    assert await books.store.read(claim.next_due_at_us, books.clock.us) == member.expires_at_us
    claimed = await books.store.write(claim.claim, "me", member.expires_at_us, 10, 0)
    assert (claimed.jobs, claimed.expired) == ([], 1)
    assert await balance(books) == 99
    assert await counts(books, "queue", "body") == (0, 0)
    shown = await books.store.read(queue.show, member.message_id)
    assert [r["state"] for r in shown["recipients"]] == ["sent", "expired"]


async def test_a_dead_process_leaves_doubt_only_behind_the_mark(books: Books) -> None:
    safe, doubtful = books.accept(), books.accept()
    await together(books, [safe, doubtful])
    await books.store.submit(Mark(doubtful.message_id, "", 1))
    assert await books.store.write(leases.take_over, books.clock.us, alone=True) == 2
    states = {
        m: (await books.store.read(queue.show, m))["recipients"][0] for m in (safe.message_id, doubtful.message_id)
    }
    assert states[safe.message_id]["in_doubt"] == 0
    assert states[doubtful.message_id]["in_doubt"] == 1
    assert (await books.store.read(stats.stats, books.clock.us))["in_doubt"] == 1
    claimed = await books.store.write(claim.claim, "me", books.clock.us, 10, 0)
    assert {j.token for j in claimed.jobs} == {3}


async def test_a_living_process_keeps_its_leases_and_a_silent_one_loses_them(books: Books) -> None:
    await books.store.submit(books.accept())
    await books.store.write(leases.stay_alive, "me", HOUR_US, books.clock.us)
    assert await books.store.write(leases.take_over, books.clock.us, alone=False) == 0
    ends_at_us = await books.store.read(claim.next_due_at_us, books.clock.us)
    assert ends_at_us == pytest.approx(books.clock.us + HOUR_US, abs=60_000_000)  # PostgreSQL's clock goes on
    await books.store.write(age_leases, HOUR_US)
    assert await books.store.write(leases.take_over, books.clock.us, alone=False) == 1


async def test_cancel_refunds_and_stops_the_attempt_before_the_dot(books: Books) -> None:
    member = books.accept("a@x.test", "b@x.test")
    await books.store.submit(member)
    assert (await books.store.write(queue.cancel, member.message_id, books.clock.us))["refunded"] == 2
    assert await balance(books) == 100
    assert await books.store.submit(Mark(member.message_id, "", 1)) is False
    with pytest.raises(ValueError, match="final"):
        await books.store.write(queue.cancel, member.message_id, books.clock.us)


async def test_what_is_past_the_dot_cannot_be_cancelled(books: Books) -> None:
    member = books.accept()
    await books.store.submit(member)
    await books.store.submit(Mark(member.message_id, "", 1))
    with pytest.raises(ValueError, match="called back"):
        await books.store.write(queue.cancel, member.message_id, books.clock.us)


async def test_retry_makes_it_due_now(books: Books) -> None:
    member = books.accept()
    await books.store.submit(member)
    await books.store.submit(books.report(member, Result.DEFERRED))
    await books.store.write(queue.retry, member.message_id, books.clock.us)
    assert len((await books.store.write(claim.claim, "me", books.clock.us, 10, 0)).jobs) == 1


# Uses of keys


class Counted:
    """Runs units, and counts how often: a unit that lost against another one runs again."""

    def __init__(self, books: Books) -> None:
        self._run = UnitRunner(books.clock.now_us)
        self.runs = 0

    def __call__(self, conn: Connection, members: list[Any]) -> list[Any]:
        self.runs += 1
        return self._run(conn, members)


async def until_waiting(url: str, sessions: int) -> None:
    """Until so many sessions of the database wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while int(await trio.to_thread.run_sync(postgres.sql, url, query)) < sessions:
        pass


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_uses_of_keys_are_no_deadlock_between_processes(books: Books, opener: Opener, database_url: str) -> None:
    """Each process has calls of one key and notes the use of the other one."""
    await books.store.write(mint_key, books, "key-2")
    calls = {key_id: replace(books.call(recipients=1), key_id=key_id) for key_id in ("key-1", "key-2")}
    runners = Counted(books), Counted(books)

    async def unit(store: Store, called: str, used: str) -> None:
        use = Used(used, books.clock.us, "192.0.2.1", "smtp")
        result, _ = await together(replace(books, store=store), [calls[called], Answers((), (use,))])
        assert isinstance(result, RateState)

    async with opener(runners[0], exclusive=False) as one, opener(runners[1], exclusive=False) as two:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                # Whoever has its keys waits here, until both have what they can get.
                with postgres.open_transaction(database_url, "SELECT 1 FROM account FOR UPDATE"):
                    nursery.start_soon(unit, one, "key-1", "key-2")
                    nursery.start_soon(unit, two, "key-2", "key-1")
                    await until_waiting(database_url, 2)
        used = await one.read(lambda conn: conn.execute(select(schema.api_key.c.last_used_at_us)).scalars().all())
    assert [runner.runs for runner in runners] == [1, 1]
    assert used == [books.clock.us] * 2


async def test_many_uses_are_written_a_part_at_a_time(books: Books) -> None:
    outbox = Outbox(books.store, owner="me", now_us=books.clock.now_us, lease_s=60, body_days=0, spool_dir=None)
    for n in range(USES_UNIT):
        outbox.used(Used(f"gone-{n}", books.clock.us, "192.0.2.1", "smtp"))
    outbox.used(Used("key-1", books.clock.us, "192.0.2.1", "smtp"))
    await outbox.flush()
    used = await books.store.read(lambda conn: conn.execute(select(schema.api_key.c.last_used_at_us)).scalars().all())
    assert used == [books.clock.us]


# The ledger


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("UPDATE ledger SET amount = amount + 1 WHERE seq = 2", "balance after row 2"),
        ("UPDATE ledger SET note = 'forged' WHERE seq = 1", "row 1 was changed"),
        ("DELETE FROM ledger WHERE seq = 2", "row 2 is missing"),
        ("DELETE FROM ledger WHERE seq = 3", "the account ends at row 3"),
        ("UPDATE account SET balance = balance + 1", "the ledger adds up to"),
    ],
)
async def test_a_damaged_ledger_is_found(books: Books, damage: str, why: str) -> None:
    await books.store.submit(books.accept())
    await books.store.submit(books.accept())
    assert await books.store.read(money.verify, books.account_id) is None
    books.are_falsified = True
    await books.store.write(lambda conn: conn.execute(text(damage)) and None)
    fault = await books.store.read(money.verify, books.account_id)
    assert fault is not None
    assert why in fault.why


async def test_grants_keep_the_balance_in_bounds(books: Books) -> None:
    def give(conn: Connection, amount: int) -> int:
        return money.grant(conn, books.account_id, amount, granted_by="a test", note=None, now_us=START_US)

    assert await books.store.write(give, 50) == 150
    assert await books.store.write(give, -150) == 0
    for wrong in (-1, 0, 10**16):
        with pytest.raises(ValueError, match=r"balance|credits"):
            await books.store.write(give, wrong)
    total = await books.store.read(lambda conn: conn.execute(select(func.sum(schema.ledger.c.amount))).scalar_one())
    assert total == await balance(books) == 0
