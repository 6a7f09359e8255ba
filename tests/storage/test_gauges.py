# SPDX-License-Identifier: Apache-2.0
"""The queue in figures, on both engines."""

from __future__ import annotations

from hepmaild.delivery.job import Result
from hepmaild.storage import gauges
from hepmaild.storage.gauges import Entries, Recipients
from tests.storage.books import HOUR_US, open_books
from tests.storage.conftest import Opener


async def test_an_empty_queue_has_no_routes(opener: Opener) -> None:
    async with open_books(opener) as books:
        assert await books.store.read(gauges.entries, books.clock.us) == {}
        assert await books.store.read(gauges.recipients, books.clock.us) == {}


async def test_what_waits_is_counted_by_route_and_state(opener: Opener) -> None:
    async with open_books(opener) as books:
        first = books.accept("a@example.net", "b@example.net", "c@example.net")
        await books.store.submit(first)
        await books.store.submit(books.report(first, Result.DELIVERED, Result.DEFERRED, Result.IN_DOUBT))
        books.clock.us += 10_000_000
        await books.store.submit(books.accept(owner=None))  # due, and nobody has it
        await books.store.submit(books.accept("d@example.net", "e@example.net"))  # leased
        await books.store.submit(books.accept(owner=None, route="down"))
        books.clock.us += 5_000_000
        now_us = books.clock.us
        found = await books.store.read(gauges.entries, now_us)
        assert found == {"up": Entries(1, 1, 1, 5.0), "down": Entries(0, 1, 0, 5.0)}
        waiting = await books.store.read(gauges.recipients, now_us)
        assert waiting == {
            "up": Recipients({"queued": 3, "deferred": 2}, 1, 15.0),
            "down": Recipients({"queued": 1}, 0, 5.0),
        }
        found = await books.store.read(gauges.entries, now_us + HOUR_US)
        assert found["up"] == Entries(1, 2, 0, 3605.0)
