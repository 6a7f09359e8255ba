# SPDX-License-Identifier: Apache-2.0
"""Accounts' own SMTP servers on both engines: what may be, what goes with them, who knows of them, their passwords."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import select, update

from hepmaild.config import OwnSmtpSettings
from hepmaild.delivery.route import Away, Route
from hepmaild.directory import Directory
from hepmaild.errors import SecretsUnavailable
from hepmaild.own_routes import route_of
from hepmaild.own_servers import OwnServers, place_of, route_from
from hepmaild.server_rules import ServerWish, leads_elsewhere, read_server
from hepmaild.storage import caps, queue, sealed, senders
from hepmaild.storage import smtp_servers as rows
from hepmaild.storage.directory import senders_of
from hepmaild.storage.keys import Refused
from hepmaild.storage.schema import cap, sender
from hepmaild.storage.schema_own_smtp import smtp_server
from hepmaild.storage.stats import stats
from hepmaild.storage.store import Store
from hepmaild.vault import VERSION, Vault, new_key
from tests.storage.books import Books, open_books
from tests.storage.conftest import Opener

WISH = ServerWish("shop", "smtp.example.com", 587, "starttls", "me@example.com", "me@example.com", "The shop", 0)
PLAIN = ServerWish("inside", "10.0.0.5", 25, "none", "", "in@example.com", "", 0)


@dataclass
class World:
    books: Books
    own: OwnServers
    vault: Vault

    @property
    def store(self) -> Store:
        return self.books.store

    async def add(self, server_id: str = "s1", wish: ServerWish = WISH, *, limit: int = 5, **more: Any) -> Any:
        return await self.store.write(
            rows.add,
            **{
                "account_id": "account-1",
                "server_id": server_id,
                "wish": wish,
                "sealed": b"x" if wish.username else None,
                "limit": limit,
                "now_us": self.books.clock.us,
                **more,
            },
        )


@asynccontextmanager
async def open_world(opener: Opener, folder: Path) -> AsyncIterator[World]:
    async with open_books(opener) as books, trio.open_nursery() as nursery:
        directory = Directory(books.store, ())
        vault = Vault(folder)
        own = OwnServers(books.store, directory, vault, OwnSmtpSettings, trio.CapacityLimiter(2))
        nursery.start_soon(directory.run)
        yield World(books, own, vault)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def world(opener: Opener, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(opener, tmp_path) as found:
        yield found


async def test_a_server_comes_with_its_sender_and_goes_with_it(world: World) -> None:
    made = await world.add(wish=replace(WISH, daily_cap=7))
    assert (made["is_default"], made["is_paused"], made["has_password"]) == (True, False, True)
    assert "password_sealed" not in made
    (found,) = await world.store.read(senders_of, "account-1")
    assert (found.address_key, found.route, found.daily_cap) == ("me@example.com", "own:s1", 7)
    assert await world.store.read(cap_of, "account-1|me@example.com") == 7
    with pytest.raises(ValueError, match="smtp-server edit s1"):
        await world.store.write(senders.remove, address="Me@example.com", account_id="account-1")
    with pytest.raises(ValueError, match="smtp-server edit s1"):
        await world.store.write(
            senders.put, address="me@example.com", account_id="account-1", route="up", daily_cap=0, is_default=False
        )
    await world.store.write(rows.remove, "account-1", "s1")
    assert await world.store.read(senders_of, "account-1") == []
    assert await world.store.read(cap_of, "account-1|me@example.com") == 0
    with pytest.raises(Refused, match="no SMTP server"):
        await world.store.write(rows.remove, "account-1", "s1")


def cap_of(conn: Any, key: str) -> Any:
    return conn.execute(select(cap.c.daily_cap).where(cap.c.cap_key == key)).scalar()


async def test_names_and_addresses_are_unique_in_an_account(world: World) -> None:
    await world.add()
    with pytest.raises(Refused, match="named 'shop' already") as error:
        await world.add("s2", replace(PLAIN, name="shop"))
    assert error.value.field == "name"
    with pytest.raises(Refused, match="a sender of the account already") as error:
        await world.add("s2", replace(PLAIN, address="ME@example.com"))
    assert error.value.field == "address"
    put = {"account_id": "account-1", "route": "up", "daily_cap": 0, "is_default": False}
    await world.store.write(senders.put, address=PLAIN.address, **put)
    with pytest.raises(Refused, match="a sender of the account already"):
        await world.add("s2", PLAIN)


async def test_no_two_at_once_are_both_the_last_that_the_plan_allows(world: World) -> None:
    refused = []

    async def add(n: int) -> None:
        try:
            await world.add(f"s{n}", replace(PLAIN, name=f"n{n}", address=f"a{n}@example.com"), limit=3)
        except Refused as error:
            refused.append(str(error))

    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(add, n)
    assert len(refused) == 5
    assert set(refused) == {"the account has 3 SMTP servers, as many as its plan allows: remove one first"}
    found = await world.store.read(rows.list_of, "account-1")
    assert len(found) == 3
    assert [row["is_default"] for row in found].count(True) == 1


async def test_a_change_moves_the_sender_and_wants_the_password_where_it_leads_elsewhere(world: World) -> None:
    await world.add()
    for other in (
        replace(WISH, host="evil.example.com"),
        replace(WISH, port=2525),
        replace(WISH, tls="implicit"),
        replace(WISH, username="you@example.com", address="you@example.com"),
    ):
        with pytest.raises(Refused, match="password must be given again"):
            await world.store.write(rows.change, "account-1", "s1", other, None, 5)
    assert await world.store.write(rows.change, "account-1", "s1", WISH, None, 5) == {}
    with pytest.raises(Refused, match="no SMTP server"):
        await world.store.write(rows.change, "account-2", "s1", WISH, None, 5)
    other = replace(WISH, username="you@example.com", address="you@example.com", daily_cap=3)
    changed = await world.store.write(rows.change, "account-1", "s1", other, b"new", 5)
    assert changed["password"] == [None, None]
    assert changed["address"] == ["me@example.com", "you@example.com"]
    (found,) = await world.store.read(senders_of, "account-1")
    assert (found.address, found.route, found.daily_cap) == ("you@example.com", "own:s1", 3)
    changed = await world.store.write(rows.change, "account-1", "s1", replace(PLAIN, name="shop"), None, 5)
    assert not (await world.store.read(rows.find, "account-1", "s1"))["has_password"]


async def test_the_default_is_one_and_never_a_guess(world: World) -> None:
    await world.add()
    await world.add("s2", PLAIN)
    await world.add("s3", replace(PLAIN, name="third", address="c@example.com"))
    await world.store.write(rows.make_default, "account-1", "s2")
    assert await defaults(world) == ["s2"]
    await world.store.write(rows.remove, "account-1", "s2")
    assert await defaults(world) == []
    await world.store.write(rows.remove, "account-1", "s3")
    assert await defaults(world) == ["s1"]
    await world.add("s4", PLAIN)
    assert await defaults(world) == ["s1"]


async def defaults(world: World) -> list[str]:
    return [row["id"] for row in await world.store.read(rows.list_of, "account-1") if row["is_default"]]


async def test_a_pause_holds_mail_back_and_the_operators_is_his(world: World) -> None:
    await world.add()
    paused = await world.store.write(rows.pause_one, "account-1", "s1", 5)
    assert paused["is_paused"]
    assert await world.own.find("own:s1") is Away.PAUSED
    _count, found = await world.store.read(queue.learn)
    assert found == {("own:s1", "")}
    assert not (await world.store.write(rows.resume_one, "account-1", "s1"))["is_paused"]
    assert isinstance(await world.own.find("own:s1"), Route)
    await world.store.write(rows.pause_one, None, "s1", 5, "abuse")
    with pytest.raises(Refused, match="operator"):
        await world.store.write(rows.resume_one, "account-1", "s1")
    with pytest.raises(Refused, match="operator"):
        await world.store.write(rows.remove, "account-1", "s1")
    await world.store.write(rows.resume_one, None, "s1")
    await world.store.write(rows.pause_one, "account-1", "s1", 5)
    await world.store.write(rows.remove, "account-1", "s1")
    assert await world.store.read(queue.pauses) == []


async def test_the_operators_pause_takes_the_place_of_the_accounts(world: World) -> None:
    await world.add()
    await world.store.write(rows.pause_one, "account-1", "s1", 5)
    await world.store.write(rows.pause_one, None, "s1", 6, "abuse")
    assert await world.store.read(rows.pause_note, "s1") == "abuse"
    await world.store.write(rows.pause_one, "account-1", "s1", 7)
    with pytest.raises(Refused, match="operator"):
        await world.store.write(rows.resume_one, "account-1", "s1")
    await world.store.write(rows.remove, None, "s1")
    assert await world.store.read(queue.pauses) == []


async def test_every_question_is_answered_by_what_is_committed(world: World) -> None:
    assert await world.own.find("own:s1") is Away.REMOVED
    assert not world.own.exist
    await world.add()
    await world.own.learn()
    assert world.own.exist
    found = await world.own.find("own:s1")
    assert isinstance(found, Route)
    assert (found.host, found.port, found.username, found.sealed) == (WISH.host, 587, WISH.username, b"x")
    assert found.public_only
    assert b"x" not in repr(found).encode().replace(b"example", b"")
    await world.store.write(rows.change, "account-1", "s1", replace(WISH, port=465), b"y", 5)
    changed = await world.own.find("own:s1")
    assert changed != found
    (row,) = await world.own.of_account("account-1")
    assert (row.port, row.sealed) == (465, None)
    await world.store.write(rows.remove, "account-1", "s1")
    assert await world.own.find("own:s1") is Away.REMOVED
    assert await world.own.of_account("account-1") == ()


async def test_another_process_knows_a_change_as_soon_as_it_is_confirmed(opener: Opener, tmp_path: Path) -> None:
    async with open_world(opener, tmp_path) as world, opener(exclusive=False) as store, trio.open_nursery() as nursery:
        directory = Directory(store, ())
        nursery.start_soon(directory.run)
        other = OwnServers(store, directory, world.vault, OwnSmtpSettings, trio.CapacityLimiter(2))
        assert await other.find("own:s1") is Away.REMOVED
        await world.add()
        for n in range(20):
            await world.store.write(rows.change, "account-1", "s1", replace(WISH, port=1000 + n), b"%d" % n, 5)
            found = await other.find("own:s1")
            assert isinstance(found, Route)
            assert (found.port, found.sealed) == (1000 + n, b"%d" % n)
            await world.store.write(queue.pause_route, "own:s1", "", "by its route's name", 5)
            assert await other.find("own:s1") is Away.PAUSED
            await world.store.write(queue.resume, "own:s1", "")
        await world.store.write(rows.remove, "account-1", "s1")
        assert await other.find("own:s1") is Away.REMOVED
        nursery.cancel_scope.cancel()


async def test_a_password_is_sealed_to_its_row_and_sealed_anew(world: World) -> None:
    async with world.own.sealing() as seal:
        await world.add(sealed=seal("s1", "pass wörd"))
        other = replace(WISH, name="two", username="b@example.com", address="b@example.com")
        await world.add("s2", other, sealed=seal("s2", "second"))
    found = await world.own.find("own:s1")
    assert isinstance(found, Route)
    assert found.sealed is not None
    assert b"pass" not in found.sealed
    credentials = world.own.open(found)
    assert credentials is not None
    assert (credentials.username, credentials.password) == ("me@example.com", "pass wörd")
    assert "wörd" not in repr(credentials) + repr(found)
    old = world.vault.read()
    with world.vault.holding(alone=True):
        newest = new_key()
        world.vault.replace((*old, newest))

        def anew(_table: str, _column: str, row: tuple[str, ...], value: bytes) -> bytes:
            return world.vault.seal(place_of(row[0]), world.vault.open(place_of(row[0]), value))

        assert await world.store.write(sealed.reseal_some, VERSION + newest.id, anew, 100) == 2
        world.vault.replace((world.vault.read()[-1],))
    row = await world.store.read(rows.sealed_row, "s1")
    assert row is not None
    route = route_from(row, OwnSmtpSettings())
    assert world.own.open(route) == credentials
    await world.store.write(swap)
    row = await world.store.read(rows.sealed_row, "s1")
    assert row is not None
    with pytest.raises(SecretsUnavailable, match="changed or moved"):
        world.own.open(route_from(row, OwnSmtpSettings()))


def swap(conn: Any) -> None:
    """Give the first server the second one's sealed password."""
    other = conn.execute(select(smtp_server.c.password_sealed).where(smtp_server.c.id == "s2")).scalar_one()
    conn.execute(update(smtp_server).where(smtp_server.c.id == "s1").values(password_sealed=other))


async def test_all_servers_are_one_where_figures_are_told(world: World) -> None:
    for n in range(3):
        await world.store.submit(world.books.accept(route=route_of(f"s{n}"), owner=None))
    await world.store.submit(world.books.accept(owner=None))
    await world.add("s1")
    await world.store.write(rows.pause_one, "account-1", "s1", 5)
    await world.store.write(queue.pause_route, "up", "", "", 5)
    found = await world.store.read(stats, world.books.clock.us)
    assert found["by_route"] == {"own:*": 3, "up": 1}
    assert [row["route"] for row in found["routes"]] == ["own:*", "up"]
    assert [row["route"] for row in found["paused"]] == ["up"]
    assert found["own_paused"] == 1


async def test_the_line_of_a_server_that_was_removed_is_let_go(world: World) -> None:
    await world.add(wish=replace(WISH, daily_cap=1))
    key = caps.cap_key_of("account-1", "me@example.com")
    for _ in range(2):
        await world.store.submit(world.books.accept(route="own:s1", owner=None, cap_key=key, daily_cap=1))
    await world.store.write(rows.remove, "account-1", "s1")
    await world.store.write(let_go, world.books.clock.us)
    found = await world.store.read(queue.list_waiting)
    assert [row["state"] for row in found] == ["queued", "queued"]


def let_go(conn: Any, now_us: int) -> None:
    from hepmaild.storage import cap_line

    cap_line.let_go(conn, now_us)


async def test_no_global_sender_is_touched(world: World) -> None:
    put = {"account_id": "", "route": "up", "daily_cap": 0, "is_default": True}
    await world.store.write(senders.put, address="me@example.com", **put)
    await world.add()
    found = await world.store.read(senders_of, "account-1")
    assert [row.route for row in found] == ["own:s1", "up"]
    await world.store.write(rows.remove, "account-1", "s1")
    assert await world.store.read(lambda conn: conn.execute(select(sender.c.route)).scalars().all()) == ["up"]


# What may be


def typed(**changes: str) -> dict[str, str]:
    return {"name": "shop", "host": "smtp.example.com", "username": "me@example.com", **changes}


def test_what_is_left_out_has_a_default() -> None:
    wish, errors = read_server(typed(), has_password=True)
    assert errors == {}
    assert wish == replace(WISH, from_name="")
    wish, _ = read_server(typed(tls="implicit", host="[2001:DB8::1]"), has_password=True)
    assert wish is not None
    assert (wish.port, wish.host) == (465, "2001:db8::1")
    wish, _ = read_server(typed(username="", tls="none", address="a@example.com"), has_password=False)
    assert wish is not None
    assert (wish.port, wish.address) == (25, "a@example.com")
    assert not leads_elsewhere(wish.values(), wish)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"host": ""}, "host"),
        ({"host": "a b"}, "host"),
        ({"host": "http://a"}, "host"),
        ({"host": "a\r\nQUIT"}, "host"),
        ({"port": "0"}, "port"),
        ({"port": "65536"}, "port"),
        ({"port": "２５"}, "port"),
        ({"tls": "opportunistic"}, "tls"),
        ({"tls": "none"}, "tls"),
        ({"username": "api"}, "address"),
        ({"username": ""}, "address"),
        ({"address": "other@example.com"}, "address"),
        ({"address": "nobody"}, "address"),
        ({"from_name": "a\r\nBcc: x"}, "from_name"),
        ({"daily_cap": "-1"}, "daily_cap"),
        ({"daily_cap": "99999999999"}, "daily_cap"),
        ({"username": "a\0b"}, "username"),
    ],
)
def test_what_may_not_be(changes: dict[str, str], field: str) -> None:
    wish, errors = read_server(typed(**changes), has_password=True)
    assert wish is None
    assert list(errors) == [field]


def test_a_login_needs_a_password() -> None:
    wish, errors = read_server(typed(), has_password=False)
    assert wish is None
    assert list(errors) == ["password"]
