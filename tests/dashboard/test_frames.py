# SPDX-License-Identifier: Apache-2.0
"""Frames of the live stream are shared by those who look at the same, and by nobody else."""

from __future__ import annotations

import json

from sqlalchemy import insert

from hepmaild.config import Settings
from hepmaild.http.dashboard.frame import Dashboard
from hepmaild.http.live import Frames, View
from hepmaild.live import Batch
from hepmaild.search_words import parse
from hepmaild.storage.schema import message
from tests.people.conftest import World, database_url, opener, world
from tests.storage.books import HOUR_US
from tests.storage.test_tally import message_row

__all__ = ["database_url", "opener", "world"]


async def test_the_same_words_said_at_another_time_are_another_search(world: World) -> None:
    """`after:2h` is two hours before the page was opened: what fits the older page does not fit the younger."""
    now_us = world.clock.us
    row = message_row(1, "account-1", now_us - HOUR_US, "sent")
    await world.store.write(lambda conn: conn.execute(insert(message), [row]).rowcount)
    frames = Frames(Dashboard(world.store, world.people, Settings, world.clock.now_us, lambda: ""))
    batch = Batch(1, 1, (row["id"],))
    for opened_us, fits in ((now_us, True), (now_us + 3 * HOUR_US, False), (now_us, True)):
        frame = await frames.of(View("account-1", "session", parse("after:2h", opened_us)), batch)
        assert frame is not None
        assert [line["id"] for line in json.loads(frame)["lines"]] == [row["id"]] * fits
