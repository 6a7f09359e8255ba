# SPDX-License-Identifier: Apache-2.0
"""`log tail --follow`: every message once, whatever was missed on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, insert

from hepmaild.cli.follow import CATCH_UP, Follower
from hepmaild.config import ServerSettings, Settings
from hepmaild.live import Batch, LiveHub
from hepmaild.search_words import Search
from hepmaild.storage import search
from hepmaild.storage.schema import event, message
from hepmaild.storage.store import Store
from tests.storage.conftest import Opener, database_url, opener
from tests.storage.test_tally import message_row

__all__ = ["database_url", "opener"]


def accept(conn: Connection, numbers: Iterable[int]) -> None:
    """Messages that are accepted in the order of their numbers, each with an event of its number."""
    rows = [message_row(n, "a", n, "sent") for n in numbers]
    conn.execute(insert(message), rows)
    events = [
        {"seq": row["accepted_at_us"], "message_id": row["id"], "account_id": "a", "at_us": 1, "kind": "k", "data": ""}
        for row in rows
    ]
    conn.execute(insert(event), events)


def follower(store: Store, folder: Path, shown: list[int]) -> Follower:
    def show(line: dict[str, Any]) -> None:
        shown.append(int(line["message_id"]))

    settings = replace(Settings(), server=ServerSettings(state_dir=folder))
    return Follower(settings, store, "a", show, tell=lambda _text: None)


async def test_all_that_was_missed_follows(opener: Opener, tmp_path: Path) -> None:
    """The daemon says so only where thousands of events were missed: more than one look brings."""
    shown: list[int] = []
    count = 2 * CATCH_UP + 200
    async with opener() as store:
        await store.write(accept, range(1, 4))
        following = follower(store, tmp_path, shown)
        await following.begin(2)
        await store.write(accept, range(4, count))
        await following.hear({"seq": count, "resync": True})
    assert shown == list(range(2, count))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_what_is_committed_late_is_shown_and_nothing_else_again(opener: Opener, tmp_path: Path) -> None:
    """A unit that had its number before we began, and is committed before the daemon begins to listen for us."""
    shown: list[int] = []
    async with opener() as store:
        await store.write(accept, [*range(1, 40), *range(41, 60)])
        following = follower(store, tmp_path, shown)
        await following.begin(1)
        assert shown == [59]
        await store.write(accept, [40])
        async with LiveHub(store).listen("a", following.seq) as (feed, _):
            with trio.fail_after(60):
                batch = await feed.take()
        assert isinstance(batch, Batch)
        lines = await store.read(search.matching, "a", Search(), batch.ids)
        await following.hear({"seq": batch.seq, "messages": lines[::-1]})
        assert shown == [59, 40]
        await following.hear({"seq": batch.seq, "messages": lines[:1]})  # it has changed after all
        assert shown == [59, 40, 59]
