# SPDX-License-Identifier: Apache-2.0
"""What readers of the live stream are told: everything that was committed, however the word of it comes, or none."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import trio
from sqlalchemy import Connection, insert

from hepmaild import live
from hepmaild.live import Batch, Feed, LiveHub
from hepmaild.storage.schema import event
from tests.storage.conftest import Opener

PATIENCE_S = 60


def happen(conn: Connection, numbers: Iterable[int]) -> None:
    """Events of these numbers, each of a message that is called like it."""
    rows = [
        {"seq": n, "message_id": f"{n:016x}", "account_id": "a", "at_us": n, "kind": "k", "data": ""} for n in numbers
    ]
    conn.execute(insert(event), rows)


async def hear(feed: Feed, number: int) -> None:
    """Until it is told that something happened to this message."""
    with trio.fail_after(PATIENCE_S):
        while True:
            told = await feed.take()
            if isinstance(told, Batch) and f"{number:016x}" in told.ids:
                return


async def test_what_nobody_told_of_is_found(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a process is killed between its commit and its word."""
    monkeypatch.setattr(live, "UNTOLD_S", 0.05)
    async with opener() as store, opener(exclusive=False) as other, trio.open_nursery() as nursery:
        hub = LiveHub(store)
        nursery.start_soon(hub.run)
        async with hub.listen("a") as (feed, _):
            await other.write(happen, [1])
            await hear(feed, 1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_late_number_is_told_however_many_came_after_it(opener: Opener) -> None:
    """A unit that takes long commits its numbers after thousands of greater ones."""
    async with opener() as store, trio.open_nursery() as nursery:
        hub = LiveHub(store)
        nursery.start_soon(hub.run)
        async with hub.listen("a") as (feed, _):
            await store.write(happen, [1])
            hub.nudge()
            await hear(feed, 1)
            await store.write(happen, range(3, 3 + 2 * live.MAX_MISSING))
            hub.nudge()
            await hear(feed, 3)
            await store.write(happen, [2])
            hub.nudge()
            await hear(feed, 2)
        nursery.cancel_scope.cancel()
