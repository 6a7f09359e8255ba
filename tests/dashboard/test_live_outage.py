# SPDX-License-Identifier: Apache-2.0
"""The live stream while the store is away: every open page asks for it again every few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hepmaild.config import Settings
from hepmaild.errors import StoreUnavailable
from hepmaild.http.dashboard.frame import Dashboard
from hepmaild.lifecycle import Lifecycle
from hepmaild.live import LiveHub
from hepmaild.storage.store import Store
from tests.dashboard.inside import ACCESS
from tests.http.door import open_door
from tests.people.conftest import World, database_url, opener, world

__all__ = ["database_url", "opener", "world"]


class Away(Store):
    async def read(self, *_: Any, **__: Any) -> Any:
        raise StoreUnavailable("down")

    glance = read


@pytest.mark.parametrize("way", ["cookie", "pass"])
async def test_it_is_refused_for_a_while_and_nothing_has_crashed(world: World, tmp_path: Path, way: str) -> None:
    """Whoever asks: a page by its cookie, or `log tail --follow` by its pass.  An ERROR in the log fails this test."""
    extras = {"live": LiveHub(world.store), "lifecycle": Lifecycle()}
    dashboard = Dashboard(world.store, world.people, Settings, world.clock.now_us, lambda: "", extras)
    access = (await world.tokens(kind="browser")).access_token
    async with open_door(tmp_path, people=world.people, dashboard=dashboard) as door:
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            **({"Authorization": "Bearer hepmaild-live.a.b.c"} if way == "pass" else {"Origin": door.url}),
        }
        cookies = {} if way == "pass" else {ACCESS: access}
        world.store.__class__ = Away
        async with door.client(cookies=cookies) as client:
            answer = await client.get("/live", headers=headers)
        world.store.__class__ = Store
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "5"
