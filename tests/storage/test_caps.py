# SPDX-License-Identifier: Apache-2.0
"""Daily caps: no window of 24 hours holds more, the oldest leaves first, as soon as there is room, on both engines."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, insert, select, text

from hepmaild.delivery.job import Result
from hepmaild.mail.submission import Recipient
from hepmaild.storage import cap_line, caps, claim, log, queue, schema, senders
from hepmaild.storage import credits as money
from hepmaild.storage.accept import Accept, Taken
from hepmaild.storage.unit import UnitRunner
from tests.peers import postgres
from tests.storage.books import HOUR_US, START_US, Books, Clock, open_books
from tests.storage.cap_play import CAP_KEY, DAY_US, Play, Step, check_at_the_end, steps_of
from tests.storage.conftest import Opener
from tests.storage.mx_books import job_of, report_on

NEXT_DAY_US = DAY_US + 1


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener, credits_granted=1000) as opened:
        yield opened


def capped(books: Books, *addresses: str, cap: int = 2, key: str = CAP_KEY, **changes: Any) -> Accept:
    return books.accept(*addresses, cap_key=key, daily_cap=cap, **changes)


async def send(books: Books, count: int, **changes: Any) -> list[tuple[Accept, Taken]]:
    """Accept so many messages, a millisecond apart."""
    found = []
    for _ in range(count):
        member = capped(books, **changes)
        result = await books.store.submit(member)
        assert isinstance(result, Taken)
        found.append((member, result))
        books.clock.us += 1000
    return found


async def deliver(books: Books, *members: Accept, result: Result = Result.DELIVERED, token: int = 1) -> None:
    for member in members:
        assert await books.store.submit(books.report(member, result, token=token))


async def claimed(books: Books, most: int = 100) -> list[str]:
    """What may leave now, in order."""
    while (at_us := await books.store.read(cap_line.next_at_us)) is not None and at_us <= books.clock.us:
        await books.store.write(cap_line.let_go, books.clock.us)
    found = await books.store.write(claim.claim, "me", books.clock.us, most, 0)
    return [job.message_id for job in found.jobs]


async def usage(books: Books, key: str = CAP_KEY) -> cap_line.Usage:
    found = await books.store.read(cap_line.usage, key, books.clock.us)
    assert found is not None
    return found


async def recipient(books: Books, member: Accept) -> dict[str, Any]:
    shown = await books.store.read(queue.show, member.message_id)
    return dict(shown["recipients"][0])


async def test_over_the_cap_a_message_is_charged_and_waits_with_a_visible_timer(books: Books) -> None:
    first, second, third = await send(books, 3)
    assert first[1].turn is None
    assert second[1].turn is None
    turn = third[1].turn
    assert turn is not None
    assert turn.due_at_us == START_US + NEXT_DAY_US
    assert turn.text == (
        "the daily cap of 2 messages of app@example.com is used up: leaves at about 2027-01-16T08:00:00Z"
    )
    assert await books.store.read(money.balance, books.account_id) == 997
    row = await recipient(books, third[0])
    assert (row["state"], row["next_attempt_at"], row["last_reply"]) == ("capped", turn.due_at_us, turn.text)
    assert await usage(books) == cap_line.Usage(2, 2, 1, (await usage(books)).frees_at_us)
    assert (await usage(books)).frees_at_us[:2] == (START_US + NEXT_DAY_US, START_US + 1000 + NEXT_DAY_US)
    assert await claimed(books) == []
    assert await books.store.read(cap_line.next_at_us) == turn.due_at_us


async def test_it_counts_from_when_the_next_hop_took_it(books: Books) -> None:
    (first, _), (second, _), (third, _) = await send(books, 3)
    books.clock.us = START_US + HOUR_US
    await deliver(books, first)
    books.clock.us = START_US + 2 * HOUR_US
    await deliver(books, second)
    books.clock.us = START_US + NEXT_DAY_US  # when it was accepted, that was the estimate
    assert await claimed(books) == []
    assert await books.store.read(cap_line.next_at_us) == START_US + HOUR_US + NEXT_DAY_US
    assert (await recipient(books, third))["next_attempt_at"] == START_US + HOUR_US + NEXT_DAY_US
    books.clock.us = START_US + HOUR_US + NEXT_DAY_US - 1
    assert await claimed(books) == []
    books.clock.us += 1
    assert await claimed(books) == [third.message_id]


async def test_nobody_overtakes_the_line(books: Books) -> None:
    """Also not when the window has room already and the line was not looked at yet."""
    (first, _), (second, _), (third, _) = await send(books, 3)
    await deliver(books, first, second)
    books.clock.us = START_US + 2 * DAY_US
    ((fourth, taken),) = await send(books, 1)
    assert taken.turn is not None
    assert await claimed(books) == [third.message_id, fourth.message_id]


async def test_a_capped_sender_blocks_nobody_else(books: Books) -> None:
    await send(books, 5)
    other = books.accept(owner=None)
    third = capped(books, key="|other@example.com", owner=None)
    for member in (other, third):
        await books.store.submit(member)
    assert sorted(await claimed(books, 2)) == sorted([other.message_id, third.message_id])


async def test_what_was_refused_for_good_gives_its_slot_back(books: Books) -> None:
    (first, _), (second, _), (third, _) = await send(books, 3)
    await deliver(books, first)
    assert await claimed(books) == []
    await deliver(books, second, result=Result.FAILED)
    assert await claimed(books) == [third.message_id]


async def test_what_was_cancelled_gives_its_slot_back(books: Books) -> None:
    (_, _), (second, _), (third, _), (fourth, _) = await send(books, 4)
    await books.store.write(queue.cancel, third.message_id, books.clock.us)
    await books.store.write(queue.cancel, second.message_id, books.clock.us)
    assert await claimed(books) == [fourth.message_id]
    assert (await usage(books)).waiting == 0


async def test_a_retry_keeps_its_place_while_nothing_left(books: Books) -> None:
    """With the next hop down, the oldest are tried again and again; the others wait behind them."""
    (first, _), (second, _), (third, _) = await send(books, 3)
    for hour in range(1, 30):
        for member, token in ((first, hour), (second, hour)):
            report = books.report(member, Result.DEFERRED, token=token, retry_at_us=START_US + hour * HOUR_US)
            assert await books.store.submit(report)
        books.clock.us = START_US + hour * HOUR_US
        assert set(await claimed(books)) == {first.message_id, second.message_id}
    await deliver(books, first, second, token=30)
    books.clock.us += DAY_US
    assert await claimed(books) == []
    books.clock.us += 1
    assert await claimed(books) == [third.message_id]


async def test_who_left_in_part_long_ago_stands_in_line_and_leaves_like_anybody(books: Books) -> None:
    """Its slot is of no window any more, but there; what it is when it is let go is shown."""
    ((first, _),) = await send(books, 1, cap=1, recipients=(Recipient("a@x.example"), Recipient("b@x.example")))
    report = books.report(first, Result.DELIVERED, Result.DEFERRED, retry_at_us=START_US + 25 * HOUR_US)
    assert await books.store.submit(report)
    books.clock.us = START_US + DAY_US + HOUR_US // 2
    ((second, taken),) = await send(books, 1, cap=1)
    assert taken.turn is None
    await deliver(books, second)
    ((third, taken),) = await send(books, 1, cap=1)
    assert taken.turn is not None
    books.clock.us = START_US + 25 * HOUR_US
    assert await claimed(books) == []
    shown = await books.store.read(queue.show, first.message_id)
    assert [r["state"] for r in shown["recipients"]] == ["sent", "capped"]
    for member, states in ((first, ["sent", "deferred"]), (third, ["queued"])):
        at_us = await books.store.read(cap_line.next_at_us)
        assert at_us is not None
        books.clock.us = at_us
        assert await books.store.write(cap_line.let_go, at_us) == 1
        shown = await books.store.read(queue.show, member.message_id)
        assert [r["state"] for r in shown["recipients"]] == states
        assert shown["recipients"][-1]["last_reply"] is None
        found = await books.store.write(claim.claim, "me", at_us, 9, 0)
        assert [job.message_id for job in found.jobs] == [member.message_id]
        assert (await usage(books)).used == 1


async def test_another_cap_is_obeyed_at_once_by_what_waits(books: Books) -> None:
    sent = await send(books, 6)
    await deliver(books, *[member for member, _ in sent[:2]])

    async def set_cap(cap: int) -> None:
        arguments = {"address": "App@example.com", "account_id": books.account_id, "route": "up", "is_default": False}
        await books.store.write(senders.put, daily_cap=cap, **arguments)

    await set_cap(4)
    assert await claimed(books) == [sent[2][0].message_id, sent[3][0].message_id]
    row = await recipient(books, sent[4][0])
    assert "daily cap of 4" in row["last_reply"]
    assert row["next_attempt_at"] == START_US + 1000 * 6 + DAY_US + 1  # the first two were delivered then
    await set_cap(1)
    assert await claimed(books) == []
    ((last, taken),) = await send(books, 1, cap=4)  # picked before the change
    assert taken.turn is not None
    assert "daily cap of 1" in taken.turn.text
    await set_cap(0)
    assert await claimed(books) == [sent[4][0].message_id, sent[5][0].message_id, last.message_id]


@pytest.mark.parametrize("most", [1, 3, 100])
async def test_under_a_lowered_cap_the_oldest_leave_first(books: Books, most: int) -> None:
    """All of them had slots already, and the youngest ones give theirs up, also when a claim does not see them."""
    sent = [member for member, _ in await send(books, 5, cap=5, owner=None)]
    assert await claimed(books, 1) == [sent[0].message_id]
    await deliver(books, sent[0], token=2)
    assert await books.store.write(caps.set_cap, CAP_KEY, 3)
    left = [message_id for _ in range(5) for message_id in await claimed(books, most)]
    assert left == [member.message_id for member in sent[1:3]]
    assert (await usage(books)).waiting == 2
    await deliver(books, *sent[1:3], token=2)
    assert await books.store.read(cap_line.next_at_us) == START_US + 5000 + DAY_US + 1  # they all left then
    books.clock.us += DAY_US + 1
    left = [message_id for _ in range(2) for message_id in await claimed(books, most)]
    assert left == [member.message_id for member in sent[3:]]


async def test_under_a_lowered_cap_who_is_under_way_keeps_his_slot(books: Books) -> None:
    """Some of it may leave, though what goes to another destination has to wait."""
    ((first, _),) = await send(books, 1)
    await deliver(books, first)
    several = capped(books, "a@x.test", "b@y.test", destinations=("x.test", "y.test"), left=("y.test",))
    assert isinstance(await books.store.submit(several), Taken)
    assert await books.store.write(caps.set_cap, CAP_KEY, 1)
    assert await claimed(books) == []
    assert [r["state"] for r in (await books.store.read(queue.show, several.message_id))["recipients"]] == [
        "queued",
        "capped",
    ]
    assert await books.store.submit(report_on(job_of(several, "x.test"), books.clock.us, Result.DELIVERED))
    assert (await usage(books)).used == 2


async def test_caps_of_the_settings_give_way_to_senders_in_the_database(books: Books) -> None:
    await books.store.write(
        senders.put, address="g@example.com", account_id="", route="up", daily_cap=7, is_default=False
    )
    assert await books.store.write(caps.set_global_caps, {"g@example.com": 3, "h@example.com": 4, "i@x.test": 0}) == 1
    assert await books.store.write(caps.set_global_caps, {"g@example.com": 3, "h@example.com": 4}) == 0
    assert (await usage(books, "|g@example.com")).daily_cap == 7
    assert (await usage(books, "|h@example.com")).daily_cap == 4


async def test_a_cap_is_learned_from_the_senders_own_row_and_is_nobody_elses(books: Books) -> None:
    """A message that was prepared with another one asks it; also where others have a sender of the same address."""
    await books.store.write(
        lambda conn: (
            conn.execute(
                insert(schema.sender),
                [
                    {"account_id": account, "address": f"{name}@x.test", "address_key": f"{name}@x.test"}
                    | {"route": "up", "daily_cap": daily_cap, "is_default": False}
                    for account, name, daily_cap in (
                        ("account-1", "b", 5),
                        ("account-1", "a", 3),
                        ("account-2", "a", 9),
                    )
                ],
            )
            and None
        )
    )
    await send(books, 3, cap=1, key="|other@example.com")
    every = select(schema.cap).where(schema.cap.c.cap_key == "|other@example.com")
    (other,) = await books.store.read(lambda conn: conn.execute(every).all())
    assert (other.daily_cap, other.next_us is None) == (1, False)
    key = caps.cap_key_of("account-1", "a@x.test")
    turns = [taken.turn for cap in (2, 1, 8, 3) for _, taken in await send(books, 1, cap=cap, key=key)]
    assert [turn is None for turn in turns] == [True, True, True, False]
    assert (await usage(books, key)).daily_cap == 3
    assert await books.store.write(caps.set_cap, key, 4)
    assert len(await claimed(books)) == 1  # who stood in the line
    assert (await usage(books, key)).waiting == 0
    assert await books.store.read(lambda conn: conn.execute(every).all()) == [other]


async def test_timers_of_a_long_line_and_who_expires_in_it(books: Books) -> None:
    sent = await send(books, 12)
    turns = [taken.turn.due_at_us for _, taken in sent if taken.turn is not None]
    firsts = [START_US + DAY_US + 1, START_US + 1000 + DAY_US + 1]
    assert turns[:8] == [at + day * DAY_US for day in range(4) for at in firsts]
    assert turns[8:] == [member.expires_at_us for member, _ in sent[10:]]
    assert "only after it expires" in sent[-1][1].turn.text  # type: ignore[union-attr]
    books.clock.us = sent[-1][0].expires_at_us
    await claimed(books)
    assert (await recipient(books, sent[-1][0]))["state"] == "expired"


async def test_timers_that_went_wrong_are_set_right(books: Books) -> None:
    sent = await send(books, 6)
    await books.store.write(_break_the_line)
    await books.store.write(cap_line.refresh, CAP_KEY, books.clock.us)
    assert await books.store.read(cap_line.next_at_us) == START_US + NEXT_DAY_US
    row = await recipient(books, sent[2][0])
    assert row["next_attempt_at"] == START_US + NEXT_DAY_US


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("locked", ["x.test", "y.test"])
async def test_nobody_waits_for_a_message_with_its_cap_in_hand(books: Books, database_url: str, locked: str) -> None:
    """Who holds or cancels some of it may want the cap next: neither timers nor turns wait for him."""
    await send(books, 2)
    (several, _), (last, _) = [
        *await send(
            books, 1, recipients=(Recipient("a@x.test"), Recipient("b@y.test")), destinations=("x.test", "y.test")
        ),
        *await send(books, 1),
    ]
    await books.store.write(_break_the_line)
    here = f"message_id = '{several.message_id}' AND destination = '{locked}'"
    change = f"SELECT 1 FROM queue WHERE {here} FOR UPDATE; UPDATE recipient SET doubts = doubts WHERE {here}"
    with postgres.open_transaction(database_url, change), trio.fail_after(30):  # far below `lock_timeout`
        await books.store.write(cap_line.refresh, CAP_KEY, books.clock.us)
        wrong_us = START_US + HOUR_US + NEXT_DAY_US
        assert (await recipient(books, several))["next_attempt_at"] == wrong_us
        assert (await recipient(books, last))["next_attempt_at"] == START_US + 1000 + NEXT_DAY_US
        books.clock.us = wrong_us
        assert await books.store.write(cap_line.let_go, books.clock.us) == 1
    assert await claimed(books) == [last.message_id, several.message_id, several.message_id]


def _break_the_line(conn: Connection) -> None:
    conn.execute(text("UPDATE cap SET next_us = NULL"))
    conn.execute(text("UPDATE recipient SET due_at_us = due_at_us + 3600000000 WHERE state = 'capped'"))


async def test_old_slots_are_forgotten(books: Books) -> None:
    sent = await send(books, 2)
    await deliver(books, *[member for member, _ in sent])
    books.clock.us += 26 * HOUR_US
    assert await books.store.write(cap_line.prune, books.clock.us) == 2
    assert await books.store.write(cap_line.prune, books.clock.us) == 0


async def test_a_message_for_several_destinations_takes_one_slot(books: Books) -> None:
    several = capped(books, "a@x.test", "b@y.test", destinations=("x.test", "y.test"))
    assert isinstance(await books.store.submit(several), Taken)
    assert (await usage(books)).used == 1
    await send(books, 1)
    late = capped(books, "a@x.test", "b@y.test", destinations=("x.test", "y.test"), at_us=books.clock.us)
    taken = await books.store.submit(late)
    assert isinstance(taken, Taken)
    assert taken.turn is not None
    assert (await usage(books)).waiting == 1
    books.clock.us += 2 * DAY_US
    assert await claimed(books) == [late.message_id] * 2


async def test_what_is_held_leaves_the_line_and_comes_back(books: Books) -> None:
    (_, _), (_, _), (third, _), (fourth, _) = await send(books, 4)
    await books.store.write(queue.hold, third.message_id, books.clock.us)
    assert (await usage(books)).waiting == 1
    await books.store.write(queue.release, third.message_id, books.clock.us)
    assert await claimed(books) == []
    assert (await recipient(books, third))["state"] == "capped"
    books.clock.us += 2 * DAY_US
    assert await claimed(books) == [third.message_id, fourth.message_id]


async def test_the_log_says_who_stands_in_line_and_who_does_not(books: Books) -> None:
    """The message, not only its recipients; and whoever looks is told."""

    async def said(member: Accept) -> tuple[str, list[str]]:
        shown = await books.store.read(log.show, member.message_id)
        return shown["state"], [each["kind"] for each in shown["events"]]

    (_, _), (_, _), (third, _), (fourth, _) = await send(books, 4)
    assert await said(third) == ("capped", ["accepted"])
    await books.store.write(queue.hold, third.message_id, books.clock.us)
    await books.store.write(queue.release, third.message_id, books.clock.us)
    assert (await said(third))[0] == "queued"
    assert await claimed(books) == []
    assert await said(third) == ("capped", ["accepted", "held", "released", "capped"])
    books.clock.us += 2 * DAY_US
    assert await books.store.write(cap_line.let_go, books.clock.us) == 2
    assert await said(third) == ("queued", ["accepted", "held", "released", "capped", "uncapped"])
    assert await said(fourth) == ("queued", ["accepted", "uncapped"])


# Whatever happens


@contextmanager
def memory() -> Iterator[Connection]:
    """A small SQLite database."""
    engine = create_engine("sqlite://")
    with engine.connect() as conn:
        schema.metadata.create_all(conn)
        yield conn
        conn.rollback()
    engine.dispose()


@given(st.lists(steps_of(st), min_size=5, max_size=40))
@settings(max_examples=300, deadline=None)
def test_whatever_happens_no_window_holds_more_and_the_money_adds_up(steps: list[Step]) -> None:
    with memory() as conn:
        play = Play(conn, Clock())
        for step in steps:
            play.do(step)
        check_at_the_end(play)


@pytest.mark.parametrize("seed", range(6))
async def test_the_same_on_each_engine(opener: Opener, seed: int) -> None:
    dice = random.Random(seed)
    steps = [Play.any_step(dice) for _ in range(40)]

    def all_of_it(conn: Connection) -> None:
        play = Play(conn, Clock())
        for step in steps:
            play.do(step)
        check_at_the_end(play)

    async with opener() as store:
        await store.upgrade()
        await store.write(all_of_it)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_processes_take_exactly_as_many_slots_as_there_are(opener: Opener) -> None:
    cap, sends = 40, 100
    async with open_books(opener, credits_granted=10_000) as one, open_books_again(opener, one) as two:
        results: list[Taken] = []

        async def send_one(books: Books, number: int) -> None:
            result = await books.store.submit(capped(books, cap=cap, owner=f"process {number}"))
            assert isinstance(result, Taken)
            results.append(result)

        async with trio.open_nursery() as nursery:
            for number in range(sends):
                nursery.start_soon(send_one, (one, two)[number % 2], number)
        assert sum(taken.turn is None for taken in results) == cap
        one.clock.us += 2 * DAY_US
        gone: list[int] = []

        async def let_go(books: Books) -> None:
            gone.append(await books.store.write(cap_line.let_go, one.clock.us))

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(let_go, (one, two)[number % 2])
        assert sum(gone) == cap
        slots = await one.store.read(lambda conn: conn.execute(select(schema.cap_use.c.at_us)).scalars().all())
        assert sum(at_us > one.clock.us - DAY_US for at_us in slots) == cap


@asynccontextmanager
async def open_books_again(opener: Opener, first: Books) -> AsyncIterator[Books]:
    """A second process on the same database."""
    async with opener(UnitRunner(first.clock.now_us), exclusive=False) as store:
        yield replace(first, store=store)
