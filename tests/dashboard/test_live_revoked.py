# SPDX-License-Identifier: Apache-2.0
"""Who may not read any more hears nothing more, however the news of it comes."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from hepmaild.config import Settings
from hepmaild.http import live
from hepmaild.http.dashboard.frame import Dashboard
from hepmaild.http.live import SIGNED_OUT, LiveDoor, View
from hepmaild.lifecycle import Lifecycle
from hepmaild.live import Batch, Feed, LiveHub
from hepmaild.login import Viewer
from hepmaild.people import People
from hepmaild.search_words import Search
from hepmaild.storage.sessions import LIFE_US
from hepmaild.vault import Vault
from tests.people.conftest import CHEAP, World, database_url, opener, world

__all__ = ["database_url", "opener", "world"]


class SlowPeople(People):
    """What the store said is on its way for a while."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.asked, self.arrived = trio.Event(), trio.Event()

    async def viewer_in(self, session_id: str) -> Viewer | None:
        answer = await super().viewer_in(session_id)
        self.asked.set()
        await self.arrived.wait()
        return answer


async def test_a_sign_out_while_another_change_is_looked_into(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first question is older than the sign-out: it is asked again, and not only with the beat."""
    monkeypatch.setattr(live, "BEAT_S", 120.0)
    viewer = await world.viewer()
    limiters = [trio.CapacityLimiter(1) for _ in range(2)]
    people = SlowPeople(
        world.store, Vault(tmp_path), hashing=limiters[0], files=limiters[1], now_us=world.clock.now_us, cost=CHEAP
    )
    await people.start()
    dashboard = Dashboard(world.store, people, Settings, world.clock.now_us, lambda: "")
    door = LiveDoor(dashboard, LiveHub(world.store), Lifecycle())
    feed = Feed(viewer.account_id)
    codes: list[int] = []

    async def tell() -> None:
        codes.append(await door._tell(View(viewer.account_id, viewer.session_id, Search()), feed))

    with trio.fail_after(live.BEAT_S / 2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            feed.recheck()
            await people.asked.wait()
            await world.people.sign_out(viewer.session_id)
            feed.recheck()
            people.arrived.set()
    assert codes == [SIGNED_OUT]


async def test_a_session_ends_by_the_clock_also_where_always_something_happens(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in the database changes then: only the question with the beat finds it."""
    monkeypatch.setattr(live, "BEAT_S", 0.5)
    viewer = await world.viewer()
    dashboard = Dashboard(world.store, world.people, Settings, world.clock.now_us, lambda: "")
    door = LiveDoor(dashboard, LiveHub(world.store), Lifecycle())
    feed = Feed(viewer.account_id)
    view = View(viewer.account_id, viewer.session_id, Search(), message_id="0" * 16)
    world.clock.us += LIFE_US
    codes: list[int] = []

    async def tell() -> None:
        codes.append(await door._tell(view, feed))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            while not codes:
                if not feed._batches:
                    feed.put(Batch(1, 1, ("f" * 16,)))
                await trio.lowlevel.checkpoint()
    assert codes == [SIGNED_OUT]
