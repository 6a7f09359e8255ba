# SPDX-License-Identifier: Apache-2.0
"""Whose request is cancelled at any step is logged in or out as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest
from sqlalchemy import func, select

from hepmaild.login import Kind, TokenSet
from hepmaild.storage.schema_people import login_session
from tests.peers.cancelling import Cut, at_each_cut
from tests.people.conftest import IP, MINUTE_US, World


async def test_a_login_that_is_cut_short_leaves_no_session_and_no_turn(world: World) -> None:
    logins = 0

    async def check(cut: Cut) -> None:
        nonlocal logins
        assert world.people._turns.borrowed_tokens == 0
        assert world.people._hashing.borrowed_tokens == 0
        if cut.is_whole:
            assert isinstance(cut.result, TokenSet)
            assert await world.people.viewer_of(cut.result.access_token) is not None
            logins += 1
        sessions = select(func.count()).select_from(login_session)
        assert await world.store.read(lambda conn: conn.execute(sessions).scalar_one()) == logins
        world.clock.us += 20 * MINUTE_US  # what was cut short counts as a try

    await at_each_cut(lambda: world.login(kind="browser"), check)


@pytest.mark.parametrize("kind", ["program", "browser"])
async def test_a_refresh_token_is_used_up_only_by_who_gets_the_next(world: World, kind: Kind) -> None:
    tokens = await world.tokens(kind=kind)

    def refresh() -> Awaitable[object]:
        return world.people.refresh(tokens.refresh_token, ip=IP)

    async def check(cut: Cut) -> None:
        nonlocal tokens
        renewed = cut.result if cut.is_whole else await refresh()
        assert isinstance(renewed, TokenSet)
        tokens = renewed
        assert await world.people.viewer_of(tokens.access_token) is not None
        world.clock.us += MINUTE_US

    await at_each_cut(refresh, check)


async def test_a_sign_out_that_is_cut_short_is_none(world: World) -> None:
    tokens = await world.tokens(kind="browser")

    async def sign_out() -> None:
        await world.people.sign_out(tokens.session_id)

    async def check(cut: Cut) -> None:
        nonlocal tokens
        assert (await world.people.viewer_of(tokens.access_token) is None) == cut.is_whole
        tokens = await world.tokens(kind="browser")

    await at_each_cut(sign_out, check)
