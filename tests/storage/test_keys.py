# SPDX-License-Identifier: Apache-2.0
"""How many keys an account may have, whoever asks at the same time; and what a key may be asked for."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from hepmaild.key_rules import parse_expiry, parse_networks
from hepmaild.storage import keys
from hepmaild.storage.store import Store
from hepmaild.storage.unit import UnitRunner
from tests.storage.books import START_US, Books, open_books
from tests.storage.conftest import Opener

LIMIT = 15
ANY: dict[str, Any] = {"permissions": None, "senders": None, "addresses": None, "expires_at_us": None}


def mint(n: int) -> Any:
    made = {"account_id": "account-1", "key_id": f"new-{n}", "name": f"new {n}", "secret": keys.new_secret()}
    return lambda conn: keys.mint(conn, **made, **ANY, limit=LIMIT, now_us=START_US)


async def try_to_mint(store: Store, n: int) -> bool:
    """False: there are as many as the plan allows."""
    try:
        await store.write(mint(n))
    except keys.Refused as refused:
        return "as many as its plan allows" not in str(refused)
    return True


async def alive(store: Store) -> int:
    return len(await store.read(keys.list_of, "account-1"))


async def test_the_limit_holds_whoever_mints_at_the_same_time(opener: Opener) -> None:
    """Two processes, thirty wishes at once.  One key was there already."""
    made: list[bool] = []

    async def one(store: Store, n: int) -> None:
        made.append(await try_to_mint(store, n))

    async with open_books(opener) as books, opener(UnitRunner(books.clock.now_us), exclusive=False) as other:
        async with trio.open_nursery() as nursery:
            for n in range(30):
                nursery.start_soon(one, (books.store, other)[n % 2], n)
        assert made.count(True) == LIMIT - 1
        assert await alive(books.store) == LIMIT
        await no_way_round(books)


async def no_way_round(books: Books) -> None:
    """A key that is disabled counts, so enabling it is no way to one more; nor is rotating one."""
    store = books.store
    await store.write(keys.set_status, "key-1", "disabled")
    assert not await try_to_mint(store, 100)
    await store.write(keys.set_status, "key-1", "active")
    await store.write(keys.rotate, "key-1", keys.new_secret())
    assert await alive(store) == LIMIT
    await store.write(keys.set_status, "key-1", "deleted")
    for change in ("active", "disabled"):
        with pytest.raises(ValueError, match="there is no key"):
            await store.write(keys.set_status, "key-1", change)
    with pytest.raises(ValueError, match="there is no key"):
        await store.write(keys.rotate, "key-1", keys.new_secret())
    assert await try_to_mint(store, 101)
    assert not await try_to_mint(store, 102)


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2027-01-31", 1_801_440_000_000_000),  # the end of that day, UTC
        ("2027-01-31T12:00:00+01:00", 1_801_393_200_000_000),
        ("2027-01-31T11:00:00Z", 1_801_393_200_000_000),
        (" 2027-01-31T11:00:00.5Z ", 1_801_393_200_500_000),
        ("2024-02-29", 1_709_251_200_000_000),
    ],
)
def test_an_expiry(text: str, us: int) -> None:
    assert parse_expiry(text) == us


@pytest.mark.parametrize("text", ["", "tomorrow", "2027-02-30", "2027-01-31T12:00:00", "31.01.2027", "9999-12-31x"])
def test_no_expiry(text: str) -> None:
    with pytest.raises(ValueError, match="date"):
        parse_expiry(text)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["192.0.2.7"], ["192.0.2.7/32"]),
        (["192.0.2.0/24", " 2001:DB8::/32 ", "192.0.2.0/24"], ["192.0.2.0/24", "2001:db8::/32"]),
        (["::ffff:192.0.2.7"], ["192.0.2.7/32"]),
        (["::ffff:192.0.2.0/120"], ["192.0.2.0/24"]),
        (["::ffff:0:0/96"], ["0.0.0.0/0"]),
        (["::/0"], ["::/0"]),
        ([], []),
    ],
)
def test_networks(texts: list[str], found: list[str]) -> None:
    assert parse_networks(texts) == found


@pytest.mark.parametrize("text", ["", "192.0.2.1/24", "192.0.2", "example.net", "2001:db8::1/32", "192.0.2.0/33"])
def test_no_network(text: str) -> None:
    with pytest.raises(ValueError, match="no IP address or CIDR range"):
        parse_networks([text])
