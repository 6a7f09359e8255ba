# SPDX-License-Identifier: Apache-2.0
"""Figures for charts: true for whoever looks, at every age, on both engines."""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from hepmaild.config import DAY_US
from hepmaild.storage import tally
from hepmaild.storage.schema import message
from hepmaild.storage.schema import tally as table
from hepmaild.storage.store import Store
from hepmaild.storage.tally import HOUR_US, MINUTE_US, Count
from hepmaild.tallier import Tallier
from tests.storage.conftest import Opener

NOW_US = 1_800_000_000_000_000 - 1_800_000_000_000_000 % HOUR_US
STATES = ("sent", "sent", "sent", "queued", "deferred", "capped", "held", "in_doubt", "failed", "expired", "cancelled")


def message_row(n: int, account_id: str, at_us: int, state: str) -> dict[str, Any]:
    return {
        "id": f"{n:016d}",
        "account_id": account_id,
        "key_id": "k",
        "key_name": "app",
        "key_last_five": "12345",
        "door": "http",
        "sender": "a@example.com",
        "route": "r",
        "reverse_path": "",
        "subject": "",
        "header_message_id": "",
        "size": 1,
        "smtputf8": False,
        "recipients": 1,
        "state": state,
        "waiting": 0,
        "failed": 0,
        "accepted_at_us": at_us,
        "expires_at_us": at_us + 4 * DAY_US,
    }


def put(conn: Connection, rows: list[dict[str, Any]]) -> None:
    conn.execute(insert(message), rows)


def some(count: int, *, back_us: int, dice: random.Random, first: int = 0) -> list[dict[str, Any]]:
    return [
        message_row(n, dice.choice(("a", "a", "b")), NOW_US - dice.randrange(back_us), dice.choice(STATES))
        for n in range(first, first + count)
    ]


def summed(parts: Any) -> Count:
    total = Count(0)
    for part in parts:
        total.take(part)
    return total


def truth(conn: Connection, account_id: str, from_us: int) -> Count:
    total = Count(0)
    for state, n in conn.execute(
        select(message.c.state, func.count())
        .where(message.c.account_id == account_id, message.c.accepted_at_us >= from_us)
        .group_by(message.c.state)
    ):
        total.add(state, n)
    return total


async def check(store: Store, account_id: str, from_us: int) -> None:
    found = await store.read(tally.counts, account_id, from_us)
    assert found.since_us is None
    assert summed(found.parts) == await store.read(truth, account_id, from_us)
    assert all(a.at_us <= b.at_us for a, b in zip(found.parts, found.parts[1:], strict=False))


async def test_counted_or_not_the_figures_are_true(opener: Opener) -> None:
    dice = random.Random(1)
    async with opener() as store:
        await store.upgrade()
        await store.write(put, some(300, back_us=20 * DAY_US, dice=dice))
        await check(store, "a", NOW_US - 30 * DAY_US)  # nothing was counted yet
        await Tallier(store).round(NOW_US)
        for account_id in "ab":
            for back_us in (HOUR_US, DAY_US, 30 * DAY_US):
                await check(store, account_id, NOW_US - back_us)
        assert await store.read(tally.counts, "nobody", 0) == tally.Counts((), None)
        # Later: new messages, and what waited has ended.
        await store.write(put, [message_row(1000 + n, "a", NOW_US + n, "queued") for n in range(20)])
        await check(store, "a", NOW_US - 30 * DAY_US)
        await store.write(
            lambda conn: conn.execute(update(message).where(message.c.state == "queued").values(state="sent")).rowcount
        )
        await check(store, "a", NOW_US - HOUR_US)  # a small account sees it at once
        later_us = NOW_US + 7 * HOUR_US
        await Tallier(store).round(later_us)
        await Tallier(store).round(later_us)
        await check(store, "a", NOW_US - 30 * DAY_US)
        await check(store, "b", NOW_US - 30 * DAY_US)


async def test_final_minutes_become_hours_and_old_hours_go(opener: Opener) -> None:
    dice = random.Random(2)
    rows = [{**row, "state": dice.choice(("sent", "failed"))} for row in some(200, back_us=20 * DAY_US, dice=dice)]
    async with opener() as store:
        await store.upgrade()
        await store.write(put, rows)
        await Tallier(store).round(NOW_US)
        spans = await store.read(
            lambda conn: conn.execute(
                select(table.c.span_s, func.max(table.c.at_us), func.min(table.c.at_us)).group_by(table.c.span_s)
            ).all()
        )
        newest = {span_s: at_us for span_s, at_us, _ in spans}
        oldest = {span_s: at_us for span_s, _, at_us in spans}
        assert newest[3600] < NOW_US - 24 * HOUR_US
        assert oldest[60] >= NOW_US - 25 * HOUR_US
        await check(store, "a", NOW_US - 30 * DAY_US)
        await Tallier(store).round(NOW_US + 40 * DAY_US)
        await Tallier(store).round(NOW_US + 60 * DAY_US)
        assert await store.read(lambda conn: conn.execute(select(table)).all()) == []


async def test_what_the_log_has_dropped_stays_counted(opener: Opener) -> None:
    at_us = NOW_US - 3 * DAY_US
    async with opener() as store:
        await store.upgrade()
        await store.write(put, [message_row(n, "a", at_us + n, "sent") for n in range(5)])
        await store.write(put, [message_row(9, "a", at_us, "deferred")])
        await Tallier(store).round(NOW_US)
        await store.write(lambda conn: conn.execute(message.delete().where(message.c.state == "sent")).rowcount)
        await Tallier(store).round(NOW_US + DAY_US)
        found = await store.read(tally.counts, "a", NOW_US - 30 * DAY_US)
        assert summed(found.parts) == Count(0, sent=5, waiting=1)


async def test_a_clock_that_was_ahead_for_a_while(opener: Opener) -> None:
    """What is accepted once it was put back counts, at once and later."""
    async with opener() as store:
        await store.upgrade()
        await store.write(put, [message_row(n, "a", NOW_US - n * MINUTE_US, "sent") for n in range(60)])
        await Tallier(store).round(NOW_US)
        await Tallier(store).round(NOW_US + 9 * HOUR_US)
        rows = [message_row(100 + n, "a", NOW_US + n * MINUTE_US // 10, "sent") for n in range(100)]
        await store.write(put, rows[:10])
        for minutes in range(1, 10):
            await Tallier(store).round(NOW_US + minutes * MINUTE_US)
            await store.write(put, rows[minutes * 10 : minutes * 10 + 10])
            await check(store, "a", NOW_US - 30 * DAY_US)
        await Tallier(store).round(NOW_US + 20 * HOUR_US)
        await check(store, "a", NOW_US - 30 * DAY_US)


async def test_two_processes_take_turns(opener: Opener) -> None:
    async with opener() as store:
        await store.upgrade()
        await store.write(put, [message_row(n, "a", NOW_US - HOUR_US, "sent") for n in range(5)])
        stretch = await store.read(tally.next_stretch, NOW_US)
        assert stretch is not None
        cursor, from_us, until_us = stretch
        assert cursor is None
        counted = await store.read(tally.count, from_us, until_us)
        assert await store.write(tally.keep, cursor, until_us, counted, NOW_US)
        assert not await store.write(tally.keep, cursor, until_us, counted, NOW_US)
        await check(store, "a", NOW_US - DAY_US)


async def test_a_large_account_reads_a_bounded_number(opener: Opener, monkeypatch: Any) -> None:
    monkeypatch.setattr(tally, "LIVE_MOST", 10)
    async with opener() as store:
        await store.upgrade()
        await store.write(put, [message_row(n, "a", NOW_US - n * MINUTE_US, "sent") for n in range(30)])
        found = await store.read(tally.counts, "a", NOW_US - DAY_US)
        assert summed(found.parts).sent == 10
        assert found.since_us == NOW_US - 9 * MINUTE_US  # and it says so
        await Tallier(store).round(NOW_US + MINUTE_US)
        await check(store, "a", NOW_US - DAY_US)


async def test_a_clock_that_was_put_back_hides_nothing(opener: Opener) -> None:
    """A machine that began in the wrong year: what it accepts once that is set right is counted as ever."""
    wrong_us = NOW_US + 3600 * DAY_US
    async with opener() as store:
        await store.upgrade()
        await store.write(put, [message_row(1, "a", wrong_us - 5 * MINUTE_US, "sent")])
        await Tallier(store).round(wrong_us)
        await store.write(put, [message_row(n, "a", NOW_US + n * MINUTE_US, "sent") for n in range(2, 60)])
        await Tallier(store).round(NOW_US)
        for now_us in (NOW_US + 30 * MINUTE_US, NOW_US + 65 * MINUTE_US, NOW_US + 65 * MINUTE_US):
            found = await store.read(tally.counts, "a", NOW_US)
            assert summed(part for part in found.parts if part.at_us <= NOW_US + HOUR_US).sent == 58
            await Tallier(store).round(now_us)
        found = await store.read(tally.counts, "a", NOW_US)
        assert summed(part for part in found.parts if part.at_us <= NOW_US + HOUR_US).sent == 58
