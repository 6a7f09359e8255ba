# SPDX-License-Identifier: Apache-2.0
"""Two processes on one PostgreSQL decide about one person in the same moment: one of them comes second, and says why.

Somebody else has the user's row until both of them wait for it, when both have found everything to be right.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest

from hepmaild.login import DEAD_LINK, SUSPENDED, WRONG_OLD_PASSWORD, WRONG_PASSWORD, TokenSet
from hepmaild.storage import accounts
from tests.people.conftest import AGENT, ANN, IP, PASSWORD, World
from tests.people.test_members import make_link
from tests.people.test_sessions import is_in
from tests.storage.test_two_processes import both

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

USERS = "SELECT 1 FROM user_account FOR UPDATE"
ACCOUNTS = "SELECT 1 FROM account FOR UPDATE"
NEWER = "another horse battery"


@pytest.fixture
async def other(world: World) -> AsyncIterator[World]:
    async with world.another() as opened:
        yield opened


async def test_a_link_is_used_once(world: World, other: World, database_url: str) -> None:
    token = await make_link(world)
    use = [
        partial(each.people.set_password_by_link, token, f"{NEWER} {n}", ip=IP, agent=AGENT)
        for n, each in enumerate((world, other))
    ]
    answers = await both(database_url, USERS, *use)
    assert answers.count(DEAD_LINK) == 1
    (n,) = [n for n, answer in enumerate(answers) if isinstance(answer, TokenSet)]
    assert await is_in(world, answers[n])
    assert isinstance(await world.login(password=f"{NEWER} {n}"), TokenSet)
    assert (await world.actions()).count("user.password") == 1


async def test_who_logs_in_while_the_password_is_changed_is_out(world: World, other: World, database_url: str) -> None:
    viewer = await world.viewer()
    entered, changed = await both(
        database_url,
        USERS,
        world.login,
        partial(other.people.change_password, viewer, PASSWORD, NEWER, ip=IP, agent=AGENT),
    )
    assert isinstance(changed, TokenSet)
    assert await is_in(world, changed)
    assert entered == WRONG_PASSWORD or not await is_in(world, entered)


async def test_one_of_two_changes_of_the_password_holds(world: World, other: World, database_url: str) -> None:
    viewer = await world.viewer()
    change = [
        partial(each.people.change_password, viewer, PASSWORD, f"{NEWER} {n}", ip=IP, agent=AGENT)
        for n, each in enumerate((world, other))
    ]
    answers = await both(database_url, USERS, *change)
    assert answers.count(WRONG_OLD_PASSWORD) == 1
    (n,) = [n for n, answer in enumerate(answers) if isinstance(answer, TokenSet)]
    assert await is_in(other, answers[n])
    assert isinstance(await other.login(password=f"{NEWER} {n}"), TokenSet)
    assert (await world.actions()).count("user.password") == 1


async def test_who_logs_in_while_the_account_is_suspended_is_out(world: World, other: World, database_url: str) -> None:
    suspend = partial(other.store.write, accounts.set_status, ANN, "suspended", world.clock.us)
    entered, _ = await both(database_url, ACCOUNTS, world.login, suspend)
    assert entered == SUSPENDED or not await is_in(world, entered)
    assert await world.login() == SUSPENDED
