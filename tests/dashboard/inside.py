# SPDX-License-Identifier: Apache-2.0
"""The pages in this process, on a store of either engine, with a clock that a test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio

from hepmaild.config import Settings
from hepmaild.http.dashboard.frame import Dashboard
from hepmaild.materials import Materials
from tests.dashboard.visitor import Fields, csrf_of, words
from tests.http.door import Running, open_door
from tests.people.conftest import ANN, PASSWORD, World, open_world
from tests.storage.conftest import Opener

ACCESS, REFRESH = "__Host-hepmaild-access", "__Host-hepmaild-refresh"


@dataclass
class Inside:
    """A door with pages, and one browser.  trouble: what pages meet from now on when they ask for the settings."""

    world: World
    door: Running
    browser: httpx.AsyncClient
    trouble: Exception | None = None

    async def sign_in(self, email: str = ANN) -> None:
        """By the form."""
        token = csrf_of((await self.browser.get("/sign-in")).text)
        form = {"csrf": token, "email": email, "password": PASSWORD, "next": "/"}
        answer = await self.browser.post("/sign-in", data=form)
        assert answer.status_code == 303, words(answer.text)

    async def post(self, path: str, fields: Fields | None = None, *, page: str = "/") -> httpx.Response:
        """Send a form as the browser does that loaded `page`."""
        token = csrf_of((await self.browser.get(page)).text)
        return await self.browser.post(path, data={"csrf": token, **(fields or {})})


@asynccontextmanager
async def open_inside(opener: Opener, folder: Path, settings: Settings | None = None) -> AsyncIterator[Inside]:
    """Ann and Eve of `open_world`, nobody signed in."""
    settings = settings or Settings()
    async with open_world(opener, folder) as world:

        def tell() -> Settings:
            if inside.trouble is not None:
                raise inside.trouble
            return settings

        dashboard = Dashboard(world.store, world.people, tell, world.clock.now_us, lambda: settings.http.public_url)
        materials = Materials(world.store, world.clock.now_us, trio.CapacityLimiter(1), lambda: 1 << 20)
        async with (
            open_door(folder, people=world.people, dashboard=dashboard, materials=materials) as door,
            door.client() as browser,
        ):
            inside = Inside(world, door, browser)
            yield inside
