# SPDX-License-Identifier: Apache-2.0
"""Uploads in the store: room is taken before anything is written, and nothing stays that nobody can use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, func, insert, select

from hepmaild.config import LimitSettings, Settings
from hepmaild.doctor import books as doctor
from hepmaild.doctor.checks import State
from hepmaild.storage import uploads
from hepmaild.storage.schema_templates import upload, upload_piece
from hepmaild.storage.uploads import MAX_KEPT, MAX_OPEN, Kept, NoRoom, Upload
from tests.storage.books import Books, add_account, open_books
from tests.storage.conftest import Opener

QUOTA = 100
NONE = "none is kept; accounts may have at most 5 kB each (limits.upload_bytes_per_account)"
SOME = (
    "3 files of 2 accounts take 4 kB in the database; the most that one account has is 4 kB, of at most 5 kB each "
    "(limits.upload_bytes_per_account)"
)


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        yield opened


async def begin(books: Books, upload_id: str, at_most: int = 10, store: Any = None) -> NoRoom | None:
    return await (store or books.store).write(  # type: ignore[no-any-return]
        uploads.begin, books.account_id, upload_id, at_most=at_most, quota=QUOTA, now_us=books.clock.us
    )


async def put(books: Books, upload_id: str, size: int) -> None:
    assert await begin(books, upload_id, size) is None
    found = Upload(upload_id, "a", "b/c", size)
    assert await books.store.write(uploads.finish, found, (0, b"x" * size), books.clock.us)


def counts(conn: Connection) -> tuple[int, int]:
    tables = (upload, upload_piece)
    files, pieces = (conn.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)
    return files, pieces


async def test_what_uploads_take(books: Books) -> None:
    """All of them, also those that arrive and those that have expired; and as the doctor tells it."""
    settings = Settings(limits=LimitSettings(upload_bytes_per_account=5_000))
    (said,) = await doctor.uploads(settings, books.store)
    assert (said.state, said.found) == (State.OK, NONE)
    await put(books, "u1", 60)
    assert await begin(books, "u2", 40) is None
    books.clock.us += uploads.LIFE_US + 1
    await books.store.write(add_account, 2, 100, books.clock.us)
    room = {"at_most": 4_000, "quota": 5_000, "now_us": books.clock.us}
    assert await books.store.write(uploads.begin, "account-2", "u3", **room) is None
    assert await books.store.read(uploads.kept) == Kept(files=3, accounts=2, octets=4_100, most=4_000)
    (said,) = await doctor.uploads(settings, books.store)
    assert (said.state, said.found) == (State.OK, SOME)


async def test_room_is_taken_before_and_settled_after(books: Books) -> None:
    assert await begin(books, "u1", 90) is None
    assert await begin(books, "u2", 11) == NoRoom("octets", books.clock.us + uploads.OPEN_LIFE_US, 90)
    assert await books.store.write(uploads.finish, Upload("u1", "a", "b/c", 5), (0, b"12345"), books.clock.us)
    assert await begin(books, "u2", 95) is None
    await books.store.write(uploads.drop, "u2")
    assert await begin(books, "u3", 95) is None
    assert not await books.store.write(uploads.finish, Upload("u2", "a", "b/c", 5), None, books.clock.us)
    assert not await books.store.write(uploads.finish, Upload("u1", "a", "b/c", 5), None, books.clock.us)
    assert await books.store.read(uploads.find, books.account_id, ["u1", "u2", "u3"], books.clock.us) == {
        "u1": Upload("u1", "a", "b/c", 5)
    }
    assert await books.store.read(uploads.load, "u1") == [b"12345"]


async def test_only_few_arrive_at_once(opener: Opener, books: Books) -> None:
    refused: list[NoRoom] = []
    async with opener(exclusive=False) as second:

        async def try_it(n: int) -> None:
            found = await begin(books, f"u{n}", 1, (books.store, second)[n % 2])
            if found is not None:
                refused.append(found)

        async with trio.open_nursery() as nursery:
            for n in range(MAX_OPEN + 3):
                nursery.start_soon(try_it, n)
    assert [each.what for each in refused] == ["open"] * 3
    assert await books.store.read(counts) == (MAX_OPEN, 0)


async def test_the_number_is_bounded_too(books: Books) -> None:
    def fill(conn: Connection) -> None:
        row = {"account_id": books.account_id, "filename": "", "content_type": "", "size": 0, "is_complete": True}
        until = books.clock.us + 5
        conn.execute(
            insert(upload), [row | {"id": f"u{n}", "at_us": 1, "expires_at_us": until} for n in range(MAX_KEPT)]
        )

    await books.store.write(fill)
    assert await begin(books, "more", 1) == NoRoom("number", books.clock.us + 5, 0)
    books.clock.us += 5
    assert await begin(books, "more", 1) is None, "what has expired takes no room, pruned or not"


async def test_what_is_over_and_what_was_left_goes(books: Books) -> None:
    await put(books, "old", 3)
    await begin(books, "crashed")
    await books.store.write(uploads.add_piece, "crashed", 0, b"x")
    await books.store.write(uploads.add_piece, "lost its row", 0, b"x")
    await books.store.write(uploads.add_piece, "lost its row", 1, b"x")
    assert await books.store.write(uploads.prune, books.clock.us) == 0
    assert await books.store.write(uploads.prune_pieces) == 1
    assert await books.store.read(counts) == (2, 2)
    books.clock.us += uploads.OPEN_LIFE_US
    assert await books.store.write(uploads.prune, books.clock.us) == 1
    assert await books.store.read(counts) == (1, 1)
    books.clock.us += uploads.LIFE_US
    assert await books.store.write(uploads.prune, books.clock.us) == 1
    assert await books.store.read(counts) == (0, 0)
