# SPDX-License-Identifier: Apache-2.0
"""Sessions: refresh tokens that turn over, theft, everything that ends a session at once in every process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from sqlalchemy import Connection, func, select

from hepmaild.config import DAY_US
from hepmaild.login import LoginRefusal, TokenSet
from hepmaild.storage import accounts, links, schema, sessions, tries, users
from hepmaild.storage.store import Store
from tests.peers import postgres
from tests.people.conftest import AGENT, ANN, BEN, EVE, IP, MINUTE_US, PASSWORD, World, actor_of


async def renewed(world: World, tokens: TokenSet) -> TokenSet:
    granted = await world.people.refresh(tokens.refresh_token, ip=IP)
    assert isinstance(granted, TokenSet), granted
    return granted


async def refused(world: World, tokens: TokenSet) -> bool:
    answer = await world.people.refresh(tokens.refresh_token, ip=IP)
    if isinstance(answer, TokenSet):
        return False
    assert (answer.code, answer.http_status, answer.message) == (40106, 403, "Refresh token is invalid")
    return True


async def is_in(world: World, tokens: TokenSet) -> bool:
    return await world.people.viewer_of(tokens.access_token) is not None


async def test_each_refresh_hands_out_another_token(world: World) -> None:
    first = await world.tokens()
    world.clock.us += MINUTE_US
    second = await renewed(world, first)
    assert second.refresh_token != first.refresh_token
    assert len(second.refresh_token) == 128
    assert second.session_id == first.session_id
    assert second.expires_at_ms == first.expires_at_ms + 60_000
    assert await is_in(world, second)
    third = await renewed(world, second)
    assert await is_in(world, third)


async def test_a_used_token_that_comes_again_ends_the_family(world: World) -> None:
    first = await world.tokens()
    second = await renewed(world, first)
    third = await renewed(world, second)
    assert await refused(world, first)
    assert await refused(world, third), "the thief's, or the owner's: nobody knows"
    for tokens in (first, second, third):
        assert not await is_in(world, tokens)
    assert await world.actions() == ["session.theft"]
    assert isinstance(await world.login(), TokenSet)


async def test_a_used_token_from_another_process_too(world: World) -> None:
    first = await world.tokens()
    async with world.another() as second:
        latest = await renewed(second, first)
        assert await is_in(world, latest)
        assert await refused(world, first)
        assert not await is_in(second, latest)


async def test_a_programs_token_used_twice_at_once(world: World) -> None:
    first = await world.tokens()
    answers: list[TokenSet | LoginRefusal] = []

    async def one() -> None:
        answers.append(await world.people.refresh(first.refresh_token, ip=IP))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)
    (granted,) = [answer for answer in answers if isinstance(answer, TokenSet)]
    assert not await is_in(world, granted), "one of them was not who they said"


async def test_tabs_of_a_browser_get_the_same_token(world: World) -> None:
    first = await world.tokens(kind="browser")
    answers: list[TokenSet] = []

    async def tab(of: World) -> None:
        answers.append(await renewed(of, first))

    async with world.another() as second, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(tab, world)
            nursery.start_soon(tab, second)
    assert len({answer.refresh_token for answer in answers}) == 1
    for answer in answers:
        assert await is_in(world, answer)
    world.clock.us += sessions.GRACE_US
    again = await renewed(world, first)
    assert again.refresh_token == answers[0].refresh_token
    latest = await renewed(world, again)
    assert latest.refresh_token != again.refresh_token


async def test_a_browsers_old_token_after_half_a_minute_is_theft(world: World) -> None:
    first = await world.tokens(kind="browser")
    second = await renewed(world, first)
    world.clock.us += sessions.GRACE_US + 1
    assert await refused(world, first)
    assert not await is_in(world, second)


async def test_a_browsers_token_before_the_last_is_theft_at_once(world: World) -> None:
    first = await world.tokens(kind="browser")
    second = await renewed(world, first)
    world.clock.us += 1
    third = await renewed(world, second)
    assert await refused(world, first)
    assert not await is_in(world, third)


async def test_thirty_days_from_the_login_are_the_end(world: World) -> None:
    tokens = await world.tokens()
    for _ in range(29):
        world.clock.us += DAY_US
        await world.people.start()  # as every process does once a day
        tokens = await renewed(world, tokens)
    world.clock.us += DAY_US - 10 * MINUTE_US
    tokens = await renewed(world, tokens)
    assert await is_in(world, tokens)
    world.clock.us += 10 * MINUTE_US
    assert not await is_in(world, tokens), "the access token alone would hold for 5 more minutes"
    assert await refused(world, tokens)


async def test_an_access_token_holds_for_fifteen_minutes(world: World) -> None:
    tokens = await world.tokens()
    world.clock.us += 15 * MINUTE_US - 1
    assert await is_in(world, tokens)
    world.clock.us += 1
    assert not await is_in(world, tokens)
    assert await is_in(world, await renewed(world, tokens))


@pytest.mark.parametrize("token", ["", "x", "A" * 128, "ä" * 128, "\0", "\ud800" * 128, "A" * 100_000])
async def test_what_is_no_refresh_token(world: World, token: str) -> None:
    answer = await world.people.refresh(token, ip=IP)
    assert isinstance(answer, LoginRefusal)
    assert answer.code == 40106


async def test_a_new_login_of_a_program_ends_its_earlier_ones(world: World) -> None:
    browser = await world.tokens(kind="browser")
    first = await world.tokens()
    assert await is_in(world, first)
    second = await world.tokens()
    assert not await is_in(world, first)
    assert await refused(world, first)
    assert await is_in(world, second)
    assert await is_in(world, browser)
    other = await world.tokens(kind="browser")
    for tokens in (browser, second, other):
        assert await is_in(world, tokens), "browsers sign in beside everything"
    eve = await world.tokens(EVE)
    assert await is_in(world, second)
    assert await is_in(world, eve)


async def test_no_session_is_ever_continued_by_a_login(world: World) -> None:
    """Fixation: whatever somebody had before a login is not what they have after it."""
    seen = {(await world.tokens(kind="browser")).session_id for _ in range(3)}
    seen.add((await world.tokens()).session_id)
    assert len(seen) == 4


# Revoking


async def test_revoke(world: World) -> None:
    tokens = await world.tokens()
    viewer = await world.people.viewer_of(tokens.access_token)
    assert viewer is not None
    assert await world.people.revoke(viewer, tokens.refresh_token, ip=IP) is None
    assert not await is_in(world, tokens)
    again = await world.people.revoke(viewer, tokens.refresh_token, ip=IP)
    assert again == LoginRefusal(40106, 401, "Refresh token is invalid")


async def test_revoke_takes_the_own_users_tokens_only(world: World) -> None:
    viewer = await world.viewer()
    eve = await world.tokens(EVE)
    for token in (eve.refresh_token, "nonsense", ""):
        answer = await world.people.revoke(viewer, token, ip=IP)
        assert answer is not None
        assert answer.code == 40106
    assert await is_in(world, eve)
    own = await world.tokens()
    assert await world.people.revoke(viewer, own.refresh_token, ip=IP) is None
    assert not await is_in(world, own)


async def test_revoking_a_used_token_ends_its_session_all_the_same(world: World) -> None:
    first = await world.tokens()
    second = await renewed(world, first)
    viewer = await world.people.viewer_of(second.access_token)
    assert viewer is not None
    assert await world.people.revoke(viewer, first.refresh_token, ip=IP) is not None
    assert not await is_in(world, second)
    assert await world.actions() == ["session.theft"], "as when it comes to be renewed"


# At once, everywhere

Change = Callable[[World, TokenSet], Awaitable[object]]


def _by_store(fn: Callable[[Connection, World], object]) -> Change:
    async def change(world: World, _tokens: TokenSet) -> object:
        return await world.store.write(fn, world)

    return change


async def _sign_out(world: World, tokens: TokenSet) -> object:
    await world.people.sign_out(tokens.session_id)
    return None


async def _log_in_again(world: World, _tokens: TokenSet) -> object:
    return await world.tokens()


async def _steal(world: World, tokens: TokenSet) -> object:
    await renewed(world, tokens)
    return await refused(world, tokens)


ENDINGS: dict[str, Change] = {
    "sign-out": _sign_out,
    "a newer grant": _log_in_again,
    "theft": _steal,
    "password": _by_store(lambda conn, w: accounts.set_password(conn, ANN, "x", w.clock.us)),
    "suspended account": _by_store(lambda conn, w: accounts.set_status(conn, ANN, "suspended", w.clock.us)),
    "suspended user": _by_store(
        lambda conn, w: users.set_status(conn, "account-1", w.ids[ANN], "suspended", w.clock.us)
    ),
    "removed": _by_store(lambda conn, w: users.remove(conn, "account-1", w.ids[ANN])),
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_what_ends_a_session_ends_it_in_every_process(world: World, how: str) -> None:
    await world.add_user(BEN, "owner")
    tokens = await world.tokens()
    async with world.another() as second, world.another() as third:
        for each in (world, second, third):
            assert await is_in(each, tokens)
            assert await each.people.viewer_in(tokens.session_id) is not None
        await ENDINGS[how](second, tokens)
        for each in (world, second, third):
            assert not await is_in(each, tokens)
            assert await each.people.viewer_in(tokens.session_id) is None
        assert await refused(world, tokens)


async def test_a_resumed_account_does_not_bring_sessions_back(world: World) -> None:
    tokens = await world.tokens()
    await world.store.write(accounts.set_status, ANN, "suspended", world.clock.us)
    await world.store.write(accounts.set_status, ANN, "active", world.clock.us)
    assert not await is_in(world, tokens)


async def test_another_role_counts_at_once(world: World) -> None:
    ben = await world.add_user(BEN, "owner")
    tokens = await world.tokens(BEN)
    async with world.another() as second:
        assert await is_in(second, tokens)
        await world.store.write(users.set_scope, "account-1", ben, "read_only", world.clock.us)
        viewer = await second.people.viewer_of(tokens.access_token)
        assert viewer is not None
        assert viewer.scope == "read_only"
        assert (await renewed(second, tokens)).scope == ("read_only",)


async def test_an_unchanged_world_costs_one_small_read(world: World) -> None:
    tokens = await world.tokens()
    assert await is_in(world, tokens)
    reads: list[object] = []
    whole = Store.read

    class Counting(Store):
        async def read(self, fn: object, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            reads.append(fn)
            return await whole(self, fn, *args, **kwargs)  # type: ignore[arg-type]

    world.store.__class__ = Counting
    for _ in range(10):
        assert await is_in(world, tokens)
    assert len(reads) == (0 if world.store.is_sqlite else 10)


async def test_every_session_is_listed_until_it_ends(world: World) -> None:
    viewer = await world.viewer()
    await world.tokens()
    members = world.people.members
    rows = await members.sessions(viewer)
    assert {(row["kind"], row["ip"], row["agent"]) for row in rows} == {("browser", IP, AGENT), ("program", IP, AGENT)}
    (other,) = [row["id"] for row in rows if row["id"] != viewer.session_id]
    await members.end_session(viewer, actor_of(viewer), other)
    assert [row["id"] for row in await members.sessions(viewer)] == [viewer.session_id]
    with pytest.raises(ValueError, match="has ended"):
        await members.end_session(viewer, actor_of(viewer), other)
    assert await world.actions() == ["session.end"]


async def test_what_is_old_goes(world: World) -> None:
    tokens = await world.tokens()
    await renewed(world, tokens)
    await world.login(ANN, "wrong")
    token = links.new_token()
    await world.store.write(links.make, token=token, user_id=world.ids[ANN], purpose=links.RESET, now_us=world.clock.us)
    world.clock.us += 30 * DAY_US + 1
    for prune in (sessions.prune, tries.prune, links.prune):
        while await world.store.write(prune, world.clock.us):
            pass
    for table in ("login_session", "refresh_token", "login_try", "one_time_link", "token_key"):
        left = select(func.count()).select_from(schema.metadata.tables[table])
        assert await world.store.read(lambda conn, query: conn.execute(query).scalar_one(), left) == 0, table


async def test_tokens_are_not_in_the_database(world: World) -> None:
    tokens = [await world.tokens(kind="browser")]
    tokens.append(await renewed(world, tokens[0]))
    everything = ""
    for table in schema.metadata.sorted_tables:
        rows = await world.store.read(lambda conn, query: conn.execute(query).all(), select(table))
        everything += str(rows)
    for each in tokens:
        assert each.refresh_token not in everything
        assert each.access_token not in everything
    assert PASSWORD not in everything


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("is_login_first", [True, False])
async def test_a_login_beside_a_suspension_does_not_outlive_it(
    world: World, database_url: str, is_login_first: bool
) -> None:
    """Whichever comes first, the suspension has signed everybody out once it is over."""
    granted: list[TokenSet | LoginRefusal] = []
    ended = []

    async def login() -> None:
        granted.append(await world.login(kind="browser"))
        ended.append("login")

    async def suspend() -> None:
        await other.store.write(accounts.set_status, ANN, "suspended", world.clock.us)
        ended.append("suspension")

    # What each of them does last.
    hold = "LOCK TABLE refresh_token IN EXCLUSIVE MODE" if is_login_first else "SELECT 1 FROM counter FOR UPDATE"
    first, second = (login, suspend) if is_login_first else (suspend, login)
    with trio.fail_after(60):
        async with world.another() as other, trio.open_nursery() as nursery:
            with postgres.open_transaction(database_url, hold):
                nursery.start_soon(first)
                while await waiting(database_url) < 1:
                    pass
                nursery.start_soon(second)
                while not ended and await waiting(database_url) < 2:
                    pass
    await world.store.write(accounts.set_status, ANN, "active", world.clock.us)
    (tokens,) = granted
    assert isinstance(tokens, LoginRefusal) or not await is_in(world, tokens)
    await world.tokens(kind="browser")


async def waiting(url: str) -> int:
    """How many sessions of the database wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return int(await trio.to_thread.run_sync(postgres.sql, url, query))
