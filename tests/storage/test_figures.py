# SPDX-License-Identifier: Apache-2.0
"""How long a balance lasts: at what pace it is spent, on both engines."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from hepmaild.config import DAY_US
from hepmaild.storage import credits as money
from hepmaild.storage import figures
from hepmaild.storage.figures import HOUR_US
from tests.storage.books import START_US, open_books
from tests.storage.conftest import Opener

MINUTE_US = HOUR_US // 60
NOW_US = START_US + 30 * DAY_US
Row = tuple[int, str, int]  # how long ago, why, how many


def _spend(conn: Connection, account_id: str, story: list[Row]) -> None:
    """Make the ledger say that this happened, the oldest first."""
    purse = money.lock(conn, [account_id])[account_id]
    rows = [purse.book(amount, reason, NOW_US - ago_us, granted_by="a test") for ago_us, reason, amount in story]
    money.save(conn, [purse], rows)


def _days(conn: Connection, account_id: str) -> float | None:
    lasts_s = figures.top_line(conn, account_id, NOW_US)["lasts_s"]
    return None if lasts_s is None else round(lasts_s * 1_000_000 / DAY_US, 2)


def _burst(count: int, *, ago_us: int = MINUTE_US) -> list[Row]:
    """One credit each within a minute."""
    return [(ago_us, "debit", -1)] * count


STORIES: dict[str, tuple[list[Row], float | None]] = {
    "nothing was spent": ([(HOUR_US, "grant", 10_000)], None),
    "not in the last week": ([(9 * DAY_US, "grant", 10_000), *_burst(100, ago_us=8 * DAY_US)], None),
    "a burst is a day's": ([(HOUR_US, "grant", 1_100), *_burst(100)], 10),
    "a young account": ([(2 * DAY_US, "grant", 1_100), *_burst(100)], 20),
    "a week": ([(20 * DAY_US, "grant", 1_100), *_burst(100)], 70),
    "what was given back was not spent": (
        [(HOUR_US, "grant", 1_050), *_burst(100), (MINUTE_US, "refund", 50)],
        20,
    ),
    "all was given back": ([(HOUR_US, "grant", 10), (MINUTE_US, "debit", -5), (MINUTE_US, "refund", 5)], None),
    # More rows than are added up.
    "a long burst of an old account": ([(20 * DAY_US, "grant", 25_000), *_burst(5_000)], 28),
    "a long burst of a new one": ([(HOUR_US, "grant", 25_000), *_burst(5_000)], 4),
    "busy for three days": (
        [(4 * DAY_US, "grant", 7_500), *[(n * 3 * DAY_US // 5_000, "debit", -1) for n in range(5_000, 0, -1)]],
        1.5,
    ),
    "granted in the middle of it": (
        [(HOUR_US, "grant", 3_000), *_burst(2_500), (MINUTE_US, "grant", 10_000), *_burst(2_500)],
        1.6,
    ),
}


@pytest.mark.parametrize("what", STORIES)
async def test_what_it_lasts(what: str, opener: Opener) -> None:
    story, days = STORIES[what]
    async with open_books(opener, credits_granted=0) as books:
        await books.store.write(_spend, books.account_id, story)
        found = await books.store.read(_days, books.account_id)
    assert found == days
