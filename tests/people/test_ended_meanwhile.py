# SPDX-License-Identifier: Apache-2.0
"""A session that ends while somebody reads that it lives: what was read is not kept.

Reads are held in their threads, which only SQLite has; what is tried is the cache above both engines.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from sqlalchemy import Engine, event

from tests.http.door import PATIENCE_S, until
from tests.people.conftest import World

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Held:
    """The first read of a table after this began: it has its answer, and may go on with it when told."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.is_there = threading.Event()
        self.go_on = threading.Event()

    def look(self, _conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if f"FROM {self.table}" in statement and statement.startswith("SELECT") and not self.is_there.is_set():
            self.is_there.set()
            self.go_on.wait(PATIENCE_S)


@contextmanager
def held(table: str) -> Iterator[Held]:
    made = Held(table)
    event.listen(Engine, "after_cursor_execute", made.look)
    try:
        yield made
    finally:
        made.go_on.set()
        event.remove(Engine, "after_cursor_execute", made.look)


async def test_who_was_seen_while_the_session_ended_is_not_seen_again(world: World) -> None:
    """It was, until anything changed the next time: the old answer came while the new keys were read."""
    tokens = await world.tokens(kind="browser")
    seen: list[Any] = []

    async def look() -> None:
        seen.append(await world.people.viewer_in(tokens.session_id))

    await world.people.learn()
    with held("login_session") as of_session, held("token_key") as of_keys:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await until(of_session.is_there.is_set)
            await world.people.sign_out(tokens.session_id)
            nursery.start_soon(world.people.learn)
            await until(of_keys.is_there.is_set)
            of_session.go_on.set()
            await until(lambda: bool(seen))
            of_keys.go_on.set()
    assert seen != [None], "who asked before it ended may be told so"
    assert await world.people.viewer_in(tokens.session_id) is None
    assert await world.people.viewer_of(tokens.access_token) is None
