# SPDX-License-Identifier: Apache-2.0
"""What waits, page by page, and all accounts, page by page: complete, in order, each once, on both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Connection, text

from hepmaild.own_routes import ALL
from hepmaild.storage import audit, claim, health, operator, queue, queue_page
from hepmaild.storage.audit import Actor
from hepmaild.storage.queue_page import UNDER_WAY, Waiting, Wish, read_cursor
from tests.storage.books import HOUR_US, Books, open_books
from tests.storage.conftest import Opener
from tests.storage.mx_books import entries_read, fill

ACTOR = Actor("user-1", "operator@example.com", "192.0.2.1", "dashboard")
ROUTES = ("one", "two")


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        yield opened


async def walk(books: Books, wish: Wish) -> tuple[list[dict[str, Any]], int]:
    """All pages, and how many there were."""
    found: list[dict[str, Any]] = []
    after, pages = None, 0
    while True:
        page: Waiting = await books.store.read(queue_page.page, wish, after)
        found += page.recipients
        pages += 1
        if page.after is None:
            return found, pages
        assert len(page.recipients) <= queue_page.PAGE + 10
        after = read_cursor(str(page.after))
        assert after == page.after


async def test_the_routes_that_something_waits_on_are_found_without_what_waits(books: Books) -> None:
    """Servers of accounts, which are many routes, are told as one; what waits for them is not gone through."""

    def look(conn: Connection) -> tuple[tuple[str, ...], int]:
        if conn.dialect.name == "postgresql":
            conn.execute(text("ANALYZE"))
        before = entries_read(conn)
        return queue_page.waiting_routes(conn), entries_read(conn) - before

    assert (await books.store.write(look))[0] == ()
    for name in ("a", "own:1", "own:2", "z"):
        await books.store.write(fill, name, {"": 2}, books.clock.us)
    routes, few = await books.store.write(look)
    assert routes == ("a", "z", ALL)
    await books.store.write(fill, "own:1", {"": 3000}, books.clock.us)
    routes, many = await books.store.write(look)
    assert routes == ("a", "z", ALL)
    assert many < few + 100


async def test_every_waiting_recipient_comes_once_in_order(books: Books) -> None:
    await books.store.write(fill, "one", {"a.example": 70, "b.example": 30}, books.clock.us)
    await books.store.write(fill, "two", {"c.example": 55}, books.clock.us, books.clock.us)  # all due at one instant
    found, pages = await walk(books, Wish(ROUTES))
    assert pages >= 4
    assert len({row["message_id"] for row in found}) == len(found) == 155
    times = [row["next_attempt_at"] for row in found]
    assert times == sorted(times)
    assert {row["route"] for row in found} == set(ROUTES)
    only, _ = await walk(books, Wish(ROUTES, route="two"))
    assert len(only) == 55
    there, _ = await walk(books, Wish(ROUTES, destination="b.example"))
    assert {row["destination"] for row in there} == {"b.example"}
    assert len(there) == 30
    assert await books.store.read(queue_page.waiting_routes) == ROUTES
    assert (await walk(books, Wish(ROUTES, destination="nowhere.example")))[0] == []


async def test_states_are_found_where_they_are(books: Books) -> None:
    await books.store.write(fill, "one", {"a.example": 60}, books.clock.us)
    everything, _ = await walk(books, Wish(ROUTES))
    held = everything[10]["message_id"]
    await books.store.write(queue_page.change_message, ACTOR, "hold", held, books.clock.us, 0)
    found, _ = await walk(books, Wish(ROUTES, state="held"))
    assert [row["message_id"] for row in found] == [held]
    assert found[0]["next_attempt_at"] is None
    queued, _ = await walk(books, Wish(ROUTES, state="queued"))
    assert len(queued) == 59
    claimed = await books.store.write(claim.claim, "me", books.clock.us, 5, 0)
    under_way, _ = await walk(books, Wish(ROUTES, state=UNDER_WAY))
    assert {row["message_id"] for row in under_way} == {job.message_id for job in claimed.jobs}
    assert {row["state"] for row in under_way} == {"leased"}
    assert all(row["since_us"] == books.clock.us for row in under_way)
    leases = await books.store.read(health.leases, books.clock.us, several=True)
    assert (leases.held, leases.oldest_us, leases.orphans) == (5, books.clock.us, 5)


async def test_a_rare_state_is_looked_for_in_bounded_steps(books: Books) -> None:
    await books.store.write(fill, "one", {"a.example": queue_page.LOOK + 30}, books.clock.us)
    page: Waiting = await books.store.read(queue_page.page, Wish(ROUTES, state="deferred"))
    assert (page.recipients, page.looked) == ([], queue_page.LOOK)
    assert page.after is not None
    page = await books.store.read(queue_page.page, Wish(ROUTES, state="deferred"), page.after)
    assert (page.after, page.looked) == (None, 30)


async def test_changes_are_written_down(books: Books) -> None:
    await books.store.write(fill, "one", {"a.example": 2}, books.clock.us, books.clock.us + HOUR_US)
    found, _ = await walk(books, Wish(ROUTES))
    message_id = found[0]["message_id"]
    await books.store.write(queue_page.change_message, ACTOR, "retry", message_id, books.clock.us, 0)
    with pytest.raises(ValueError, match="there is no message"):
        await books.store.write(queue_page.change_message, ACTOR, "retry", "f" * 16, books.clock.us, 0)
    await books.store.write(queue_page.change_route, ACTOR, "pause", "one", "", "why", books.clock.us)
    assert [p["note"] for p in await books.store.read(queue.pauses)] == ["why"]
    await books.store.write(queue_page.change_route, ACTOR, "resume", "one", "", "", books.clock.us)
    rows = await books.store.read(audit.history, "account-1")
    assert [(row["action"], row["subject"], row["actor"]) for row in rows] == [
        ("message.retry", message_id, "operator@example.com")
    ]
    service = await books.store.read(audit.history, audit.SERVICE)
    assert [row["action"] for row in service] == ["queue.resume", "queue.pause"]
    assert await books.store.read(audit.verify, audit.SERVICE) is None


@pytest.mark.parametrize("text", ["", "1", "x.y.z", "1.2.3", f"{2**63}.{'a' * 16}.", "-1." + "a" * 16 + "."])
def test_cursors_that_are_none(text: str) -> None:
    assert read_cursor(text) is None


async def test_accounts_page_by_page(books: Books) -> None:
    for n in range(120):
        await books.store.write(
            operator.add,
            ACTOR,
            account_id=f"a{n}",
            user_id=f"u{n}",
            email=f"p{n:03d}@page.example",
            plan="standard",
            granted=n,
            is_operator=False,
            token=f"token{n}",
            now_us=books.clock.us,
        )
    seen: list[str] = []
    after = None
    while True:
        page = await books.store.read(operator.page, "page.example", after=after)
        seen += [row["email"] for row in page.rows]
        assert (page.before is None) == (after is None)
        if page.after is None:
            break
        after = page.after
    assert seen == [f"p{n:03d}@page.example" for n in range(120)]
    back = await books.store.read(operator.page, "page.example", before=page.before)
    assert [row["email"] for row in back.rows] == seen[50:100]
    assert back.before is not None
    assert back.after is not None
    first = await books.store.read(operator.page, "page.example", before=back.before)
    assert [row["email"] for row in first.rows] == seen[:50]
    assert first.before is None
    found = await books.store.read(operator.page, "a7")
    assert [row["email"] for row in found.rows] == ["p007@page.example"]
    assert (await books.store.read(operator.page, "%")).rows == []
