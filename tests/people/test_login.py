# SPDX-License-Identifier: Apache-2.0
"""Logging in with a password: what is granted, what is refused, how often it may be tried."""

from __future__ import annotations

from typing import Any

import argon2
import jwt
import pytest
import trio
from sqlalchemy import Connection, select, update

from hepmaild import passwords
from hepmaild.login import LoginRefusal, TokenSet
from hepmaild.mail.address import check_address
from hepmaild.storage import accounts, schema_people, users
from tests.people.conftest import (
    AGENT,
    ANN,
    CHEAP,
    EVE,
    IP,
    MINUTE_US,
    OTHER_IP,
    PASSWORD,
    World,
    add_account,
)


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


async def test_what_a_login_gives(world: World) -> None:
    granted = await world.tokens()
    assert len(granted.refresh_token) == 128
    assert set(granted.refresh_token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert granted.scope == ("owner",)
    claims = claims_of(granted.access_token)
    now_s = world.clock.us // 1_000_000
    assert {name: claims[name] for name in ("iss", "sub", "id", "account_id", "name", "scope", "iat", "exp")} == {
        "iss": "hepmaild",
        "sub": ANN,
        "id": world.ids[ANN],
        "account_id": "account-1",
        "name": "",
        "scope": ["owner"],
        "iat": now_s,
        "exp": now_s + 900,
    }
    assert claims["is_account_verified"] is False
    assert claims["jti"] != claims_of((await world.tokens()).access_token)["jti"]
    assert granted.expires_at_ms == claims["exp"] * 1000
    secret = (granted.access_token, granted.refresh_token)
    assert not any(word in repr(granted) for word in secret)


async def test_who_asks(world: World) -> None:
    viewer = await world.viewer()
    assert (viewer.email, viewer.account_id, viewer.scope, viewer.is_operator) == (ANN, "account-1", "owner", False)
    assert (viewer.plan, viewer.account_status) == ("standard", "active")
    row = await world.store.read(users.find, ANN)
    assert viewer.user_id == row.user_id


async def test_operators_have_a_scope_of_their_own(world: World) -> None:
    await add_account(world.store, "account-3", "op@example.com", world.clock.us, is_operator=True)
    granted = await world.tokens("op@example.com")
    assert granted.scope == ("owner", "operator")


@pytest.mark.parametrize(
    "typed", ["me@münchen.example", "ME@MÜNCHEN.example", " me@mu\u0308nchen.example ", "me@xn--mnchen-3ya.example"]
)
async def test_a_domain_may_be_written_in_the_letters_of_its_language(world: World, typed: str) -> None:
    await world.add_user(check_address("me@münchen.example"), "admin")
    assert await world.refusal(typed, "wrong password") == 40102
    assert isinstance(await world.login(typed), TokenSet)
    for _ in range(4):
        assert await world.refusal("me@xn--mnchen-3ya.example", "wrong password") == 40102
    assert await world.refusal("me@münchen.example", "wrong password") == 40102
    assert await world.refusal(typed) == 42901, "all spellings are one address"


@pytest.mark.parametrize(
    ("email", "password"),
    [
        (ANN, "wrong"),
        (ANN, ""),
        (ANN, PASSWORD + " "),
        (ANN, "x" * 100_000),
        (ANN, "\0\ud800"),
        ("nobody@example.com", PASSWORD),
        ("", PASSWORD),
        ("\0\ud800@example.com", PASSWORD),
        ("x" * 100_000, PASSWORD),
        ("hyd-mail-" + "A" * 40, ""),
    ],
)
async def test_wrong_ones_get_one_answer(world: World, email: str, password: str) -> None:
    refused = await world.login(email, password)
    assert refused == LoginRefusal(40102, 403, "Username and password are incorrect")


async def test_addresses_are_compared_as_people_write_them(world: World) -> None:
    assert isinstance(await world.login("  Ann@EXAMPLE.com "), TokenSet)


async def test_who_has_no_password_cannot_log_in(world: World) -> None:
    await world.store.write(
        lambda conn: users.add(
            conn, account_id="account-1", user_id="u", email="new@example.com", scope="admin", now_us=1
        )
    )
    assert await world.refusal("new@example.com", "") == 40102


async def test_what_was_typed_is_not_kept(world: World) -> None:
    """Now and then a password or a key is typed as the user name."""
    await world.login("my secret password", "x")
    rows = await world.store.read(lambda conn: conn.execute(select(schema_people.login_try)).all())
    assert len(rows) == 1
    assert "secret" not in str(rows)


async def test_suspended_ones_cannot_log_in(world: World) -> None:
    await world.store.write(accounts.set_status, ANN, "suspended", world.clock.us)
    assert await world.refusal() == 40302
    assert await world.refusal(ANN, "wrong") == 40102
    await world.store.write(accounts.set_status, ANN, "active", world.clock.us)
    ben = await world.add_user("ben@example.com", "admin")
    await world.store.write(users.set_status, "account-1", ben, "suspended", world.clock.us)
    assert await world.refusal("ben@example.com") == 40302
    assert isinstance(await world.login(), TokenSet)


async def test_a_hash_of_another_cost_is_renewed(world: World) -> None:
    old = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)

    def put(conn: Connection) -> None:
        conn.execute(update(schema_people.user).where(schema_people.user.c.email_key == ANN).values(password_hash=old))

    await world.store.write(put)
    assert isinstance(await world.login(), TokenSet)
    kept = (await world.store.read(users.find, ANN)).password_hash
    assert kept is not None
    assert not passwords.needs_rehash(kept, CHEAP)
    assert isinstance(await world.login(), TokenSet)


# How often


async def test_five_wrong_tries_at_one_address(world: World) -> None:
    for _ in range(5):
        assert await world.refusal(ANN, "wrong") == 40102
        world.clock.us += MINUTE_US
    refused = await world.login()
    assert isinstance(refused, LoginRefusal)
    assert (refused.code, refused.http_status) == (42901, 429)
    assert refused.retry_after_s == 10 * 60, "until the first of the five is 15 minutes old"
    assert isinstance(await world.login(EVE), TokenSet), "another address from there"
    assert isinstance(await world.login(ip=OTHER_IP), TokenSet), "this address from elsewhere"
    world.clock.us += 10 * MINUTE_US - 1
    assert await world.refusal() == 42901
    world.clock.us += 1
    assert isinstance(await world.login(), TokenSet)


async def test_refused_tries_do_not_prolong_the_wait(world: World) -> None:
    for _ in range(5):
        await world.login(ANN, "wrong")
    for _ in range(15):
        assert await world.refusal(ANN, "wrong") == 42901
        world.clock.us += MINUTE_US
    assert isinstance(await world.login(), TokenSet)


async def test_unknown_addresses_are_limited_alike(world: World) -> None:
    codes = [await world.refusal("nobody@example.com") for _ in range(6)]
    assert codes == [40102] * 5 + [42901]


async def test_a_success_starts_the_count_anew(world: World) -> None:
    for _ in range(2):
        for _ in range(4):
            assert await world.refusal(ANN, "wrong") == 40102
        assert isinstance(await world.login(), TokenSet)
    codes = [await world.refusal(ANN, "wrong") for _ in range(6)]
    assert codes == [40102] * 5 + [42901]


async def test_a_success_does_not_free_other_addresses(world: World) -> None:
    """Else whoever has an account could try at another for ever."""
    for _ in range(5):
        await world.login(EVE, "wrong")
    assert isinstance(await world.login(), TokenSet)
    assert await world.refusal(EVE) == 42901


async def test_twenty_wrong_tries_from_one_client(world: World) -> None:
    await world.wrong_tries(16)
    assert await world.refusal("nobody@example.com", "wrong") == 40102
    for _ in range(3):
        refused = await world.people.refresh("nonsense", ip=IP)
        assert isinstance(refused, LoginRefusal)
        assert refused.code == 40106
    assert await world.refusal() == 42901
    refused = await world.people.refresh("nonsense", ip=IP)
    assert isinstance(refused, LoginRefusal)
    assert (refused.code, refused.retry_after_s) == (42901, 900)
    assert isinstance(await world.login(ip=OTHER_IP), TokenSet)


async def test_a_success_starts_the_clients_count_anew(world: World) -> None:
    await world.wrong_tries(19)
    assert isinstance(await world.login(), TokenSet)
    assert await world.refusal("nobody@example.com") == 40102


async def test_an_ipv6_client_is_its_network(world: World) -> None:
    for n in range(5):
        await world.login(ANN, "wrong", ip=f"2001:db8::{n}")
    assert await world.refusal(ip="2001:db8::ffff") == 42901
    assert isinstance(await world.login(ip="2001:db8:0:1::1"), TokenSet)
    assert await world.refusal(ip="2001:db8::1%eth0") == 42901


async def test_many_at_once_in_two_processes(world: World) -> None:
    """However they are timed, no more than five wrong passwords are looked at."""
    codes: list[int] = []

    async def one(of: World) -> None:
        codes.append(await of.refusal(ANN, "wrong"))

    async with world.another() as second:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(one, world)
                    nursery.start_soon(one, second)
    assert sorted(codes) == [40102] * 5 + [42901] * 7


async def test_whose_turn_does_not_come_is_told(world: World) -> None:
    people = world.people
    for n in range(4):
        people._turns.acquire_on_behalf_of_nowait(n)
    people._turn_wait_s = 0.1
    refused = await people.password_grant(ANN, PASSWORD, otp=None, ip=IP, agent=AGENT, kind="program")
    assert isinstance(refused, LoginRefusal)
    assert (refused.code, refused.retry_after_s) == (50301, 5)


def test_what_is_verified_for_an_unknown_user_costs_what_a_password_does() -> None:
    """How often: the next test."""
    decoy = argon2.extract_parameters(passwords.decoy())
    assert decoy == argon2.extract_parameters(passwords.hash_password("x"))


async def test_every_refusal_costs_one_hash(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures how long a refusal takes learns nothing: one argon2id of the same cost, whoever is asked for."""
    await world.store.write(
        lambda conn: users.add(
            conn, account_id="account-1", user_id="u", email="invited@example.com", scope="admin", now_us=1
        )
    )
    costs: list[str] = []
    verify = argon2.low_level.verify_secret

    def counted(kept: bytes, *args: Any) -> bool:
        costs.append(kept.decode().rpartition("$")[0].rpartition("$")[0])  # without salt and hash
        return verify(kept, *args)

    monkeypatch.setattr("argon2._password_hasher.verify_secret", counted)
    asked = {}
    for email, password in (
        (ANN, "a wrong one"),
        (ANN, "x" * 100_000),
        ("nobody@example.com", "a wrong one"),
        ("invited@example.com", ""),
        ("", ""),
    ):
        costs.clear()
        assert await world.refusal(email, password, ip=f"192.0.2.{len(asked) + 1}") == 40102
        asked[email, len(password)] = tuple(costs)
    assert {len(found) for found in asked.values()} == {1}, asked
    assert len(set(asked.values())) == 1, asked
