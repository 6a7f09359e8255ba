# SPDX-License-Identifier: Apache-2.0
"""The shared rate limit and the day of a plan, at their very ends: two keys, one instant, clocks that were set back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import Connection, select

from hepmaild.config import DAY_US
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.submission import RateState
from hepmaild.storage import credits as money
from hepmaild.storage import rate
from hepmaild.storage.accept import Taken
from hepmaild.storage.schema import rate_call
from tests.storage.books import START_US, Books, mint_key, open_books
from tests.storage.conftest import Opener

# The database's clock decides on PostgreSQL, and no test moves it.
CLOCK_IS_OURS = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        yield opened


async def remaining(books: Books, key_id: str = "key-1", limit: int = 5) -> int:
    """After one more call; -1: it was refused."""
    state = await books.store.submit(replace(books.call(limit=limit), key_id=key_id))
    return state.remaining if isinstance(state, RateState) else -1


async def test_each_key_has_a_window_of_its_own(books: Books) -> None:
    await books.store.write(mint_key, books, "key-2")
    assert [await remaining(books, "key-1") for _ in range(3)] == [4, 3, 2]
    assert [await remaining(books, "key-2") for _ in range(2)] == [4, 3]
    assert [await remaining(books, "key-1") for _ in range(3)] == [1, 0, -1]
    assert [await remaining(books, "key-2") for _ in range(4)] == [2, 1, 0, -1]
    now_us = books.clock.us
    if not books.store.is_sqlite:
        newest = select(rate_call.c.at_us).order_by(rate_call.c.at_us.desc()).limit(1)
        now_us = await books.store.read(lambda conn: int(conn.execute(newest).scalar_one()))
    assert await books.store.read(rate.calls_inside, ["key-1", "key-2"], now_us) == {"key-1": 5, "key-2": 5}


@CLOCK_IS_OURS
async def test_retry_after_is_of_the_key_that_asks(books: Books) -> None:
    await books.store.write(mint_key, books, "key-2")
    for key_id in ("key-1", "key-2"):
        assert await remaining(books, key_id, limit=1) == 0
        books.clock.us += 20_000_000
    for key_id, wait_s in (("key-1", 21), ("key-2", 41)):  # a call at the very end of a minute is inside it
        refused = await books.store.submit(replace(books.call(limit=1), key_id=key_id))
        assert isinstance(refused, Refusal)
        assert refused.retry_after_s == wait_s


@CLOCK_IS_OURS
@pytest.mark.parametrize("back_s", [1, 30, 3600])
async def test_retry_after_goes_by_a_clock_that_was_set_back(books: Books, back_s: int) -> None:
    """Time stands still for the window, but not for who waits."""
    for _ in range(3):
        await remaining(books, limit=3)
        books.clock.us += 1_000_000
    books.clock.us -= back_s * 1_000_000
    refused = await books.store.submit(books.call(limit=3))
    assert isinstance(refused, Refusal)
    assert refused.retry_after_s is not None
    books.clock.us += (refused.retry_after_s - 1) * 1_000_000
    assert await remaining(books, limit=3) == -1
    rows = await books.store.read(lambda conn: conn.execute(select(rate_call.c.calls)).scalars().all())
    assert rows == [1, 1, 1]  # nothing is written of what was refused
    books.clock.us += 1_000_000
    assert await remaining(books, limit=3) == 0


@CLOCK_IS_OURS
async def test_retry_after_goes_by_a_limit_that_became_smaller(books: Books) -> None:
    """More calls are inside than the plan allows now: it is not the oldest that has to leave."""
    for _ in range(4):
        await remaining(books, limit=5)
        books.clock.us += 10_000_000
    refused = await books.store.submit(books.call(limit=2))
    assert isinstance(refused, Refusal)
    assert refused.retry_after_s == 41  # the third of them was twenty seconds ago
    books.clock.us += 40_000_000
    assert await remaining(books, limit=2) == -1
    books.clock.us += 1_000_000
    assert [await remaining(books, limit=2) for _ in range(2)] == [0, -1]


@CLOCK_IS_OURS
async def test_what_the_headers_say_of_the_window(books: Books) -> None:
    dear = books.call(limit=2, recipients=101)
    books.clock.us += 1
    refused = await books.store.submit(dear)  # before any call: there is nothing to wait for
    assert isinstance(refused, Refusal)
    assert refused.rate == RateState(2, 2, START_US // 1_000_000 + 1)
    assert await books.store.submit(books.call(limit=2)) == RateState(2, 1, START_US // 1_000_000 + 61)
    books.clock.us += 10_000_000
    refused = await books.store.submit(dear)
    assert isinstance(refused, Refusal)
    assert refused.rate == RateState(2, 1, START_US // 1_000_000 + 61)
    assert await books.store.submit(books.call(limit=2)) == RateState(2, 0, START_US // 1_000_000 + 71)
    refused = await books.store.submit(books.call(limit=1))  # the account's plan has changed
    assert isinstance(refused, Refusal)
    assert refused.rate == RateState(1, 0, START_US // 1_000_000 + 71)


# The plan's day


async def messages(books: Books, count: int, limit: int) -> int:
    """How many of so many messages are accepted, of `limit` a day."""
    results = [await books.store.submit(books.accept(messages_per_day=limit)) for _ in range(count)]
    refused = [r for r in results if isinstance(r, Refusal)]
    assert {r.kind for r in refused} <= {ErrorKind.DAILY_LIMIT_REACHED}
    return sum(isinstance(r, Taken) for r in results)


async def test_a_clock_that_goes_back_over_midnight_begins_no_new_day(books: Books) -> None:
    """Also that of another process, which is a moment behind: what they accept in turn counts for one day."""
    midnight_us = (START_US // DAY_US + 1) * DAY_US
    accepted = 0
    for n in range(8):
        books.clock.us = midnight_us - (n % 2)
        accepted += await messages(books, 1, limit=3)
    assert accepted == 3
    refused = await books.store.submit(books.accept(messages_per_day=3))
    assert isinstance(refused, Refusal)
    assert refused.retry_after_s is not None
    books.clock.us += refused.retry_after_s * 1_000_000
    assert await messages(books, 4, limit=3) == 3


async def test_a_day_has_its_own_messages_to_its_last_moment(books: Books) -> None:
    midnight_us = (START_US // DAY_US + 1) * DAY_US
    books.clock.us = midnight_us - 1
    assert await messages(books, 3, limit=2) == 2
    books.clock.us = midnight_us
    assert await messages(books, 3, limit=2) == 2


async def test_a_clock_that_was_years_ahead_keeps_no_messages(books: Books) -> None:
    books.clock.us = START_US + 1000 * DAY_US
    assert await messages(books, 3, limit=2) == 2
    books.clock.us = START_US
    assert await messages(books, 3, limit=2) == 2


async def test_what_is_refused_counts_for_no_day(books: Books) -> None:
    dear = books.accept(*[f"r{n}@example.net" for n in range(101)], messages_per_day=1)
    assert isinstance(await books.store.submit(dear), Refusal)

    def count(conn: Connection) -> int:
        return money.lock(conn, [books.account_id])[books.account_id].day_messages

    assert await books.store.write(count) == 0
    assert await messages(books, 2, limit=1) == 1
