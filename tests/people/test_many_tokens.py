# SPDX-License-Identifier: Apache-2.0
"""A program that asks for another token every second has two million of them when its session ends."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, insert, select

from hepmaild.login import TokenSet
from hepmaild.storage import sessions
from hepmaild.storage.schema_people import login_session, refresh_token
from hepmaild.tokens import hash_refresh, wrap
from tests.people.conftest import World
from tests.people.test_sessions import DAY_US, renewed

OLD = 2 * sessions.TOKENS_BATCH + 7


def add_old(conn: Connection, tokens: TokenSet, now_us: int) -> None:
    """Tokens that the session had before; and so that PostgreSQL knows how many there are."""
    values = {"session_id": tokens.session_id, "created_at_us": now_us - DAY_US, "used_at_us": now_us - DAY_US}
    conn.execute(insert(refresh_token), [{"token_hash": os.urandom(32), **values} for _ in range(OLD)])
    if conn.dialect.name == "postgresql":  # nobody does so on SQLite
        conn.exec_driver_sql("ANALYZE refresh_token")


def plans_of_refreshes(conn: Connection, tokens: TokenSet, now_us: int) -> list[str]:
    """How the database goes about using a token, and using it again in another tab."""
    asked: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(conn, "before_cursor_execute", note)
    for _ in range(2):
        done = sessions.rotate(
            conn,
            token_hash=hash_refresh(tokens.refresh_token),
            next_hash=hash_refresh("next"),
            wrapped=wrap(tokens.refresh_token, "next"),
            now_us=now_us,
        )
        assert isinstance(done, sessions.Rotated)
    event.remove(conn, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN" if conn.dialect.name == "sqlite" else "EXPLAIN"
    return [
        row[-1]
        for statement, parameters in asked
        for row in conn.exec_driver_sql(f"{explain} {statement}", parameters)
        if "refresh_token" in statement
    ]


async def test_the_next_token_is_found_without_the_old_ones(world: World) -> None:
    """It was not: every refresh went through all of them, in the unit for which others' mail waits."""
    tokens = await renewed(world, await world.tokens(kind="browser"))
    await world.store.write(add_old, tokens, world.clock.us)
    plans = await world.store.write(plans_of_refreshes, tokens, world.clock.us)
    looks = [plan for plan in plans if "ix_refresh_token_session_id" in plan or "Index Cond: ((session_id" in plan]
    assert looks, plans
    assert all("used_at_us" in plan for plan in looks), plans
    assert not [plan for plan in plans if "Seq Scan" in plan or "SCAN" in plan], plans


async def test_a_successor_is_kept_until_the_next_turn(world: World) -> None:
    """Of a browser's tokens only the one used last says which came after it."""
    tokens = await world.tokens(kind="browser")
    for _ in range(3):
        tokens = await renewed(world, tokens)
        left = select(func.count()).where(refresh_token.c.successor.is_not(None))
        assert await world.store.read(lambda conn, query: conn.execute(query).scalar_one(), left) == 1
        world.clock.us += DAY_US


async def test_the_tokens_of_an_old_session_go_a_few_at_a_time(world: World) -> None:
    tokens = await world.tokens()
    await world.store.write(add_old, tokens, world.clock.us)
    world.clock.us += 31 * DAY_US
    went = []
    while gone := await world.store.write(sessions.prune, world.clock.us):
        went.append(gone)
    assert went == [sessions.TOKENS_BATCH, sessions.TOKENS_BATCH, 1]
    for table in (refresh_token, login_session):
        left = select(func.count()).select_from(table)
        assert await world.store.read(lambda conn, query: conn.execute(query).scalar_one(), left) == 0


@pytest.mark.parametrize("kind", ["browser", "program"])
async def test_an_old_token_is_still_known_as_stolen(world: World, kind: Any) -> None:
    first = await world.tokens(kind=kind)
    latest = first
    for _ in range(3):
        world.clock.us += DAY_US
        latest = await renewed(world, latest)
    assert not isinstance(await world.people.refresh(first.refresh_token, ip="192.0.2.9"), TokenSet)
    assert await world.actions() == ["session.theft"]
