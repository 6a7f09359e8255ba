# SPDX-License-Identifier: Apache-2.0
"""`Directory`: what is known of keys is never older than the question, whoever changed it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from hepmaild.directory import SPARED_S, Directory
from hepmaild.errors import StoreUnavailable
from hepmaild.storage import keys
from hepmaild.storage.store import Store
from hepmaild.storage.unit import UnitRunner
from tests.peers.cancelling import MOST_CUTS, cut_at
from tests.storage.books import Books, open_books
from tests.storage.conftest import Opener, outside

SECRET = "hyd-mail-" + "a" * 40


@asynccontextmanager
async def open_directory(store: Store) -> AsyncIterator[Directory]:
    async with trio.open_nursery() as nursery:
        directory = Directory(store, ())
        nursery.start_soon(directory.run)
        yield directory
        nursery.cancel_scope.cancel()


async def status(directory: Directory) -> str:
    row = await directory.key(keys.hash_secret(SECRET))
    return "unknown" if row is None else row.status


@asynccontextmanager
async def open_two(opener: Opener) -> AsyncIterator[tuple[Books, Store, Directory]]:
    """The daemon's books and directory, and the store of somebody else, such as a command."""
    async with (
        open_books(opener) as books,
        opener(UnitRunner(books.clock.now_us), exclusive=False) as other,
        open_directory(books.store) as directory,
    ):
        await books.store.write(keys.rotate, "key-1", SECRET)
        yield books, other, directory


async def test_a_change_by_somebody_else_is_known_once_it_is_announced(opener: Opener) -> None:
    """Commands announce what they changed before they say so.  No pass of the loop lies between."""
    async with open_two(opener) as (_, other, directory):
        for _ in range(20):
            for wanted in ("disabled", "active"):
                await other.write(keys.set_status, "key-1", wanted)
                await other.announce("keys")
                assert await status(directory) == wanted


async def test_a_change_by_this_process_is_known_once_it_is_confirmed(opener: Opener) -> None:
    async with open_two(opener) as (books, _, directory):
        for _ in range(20):
            for wanted in ("disabled", "active"):
                await books.store.write(keys.set_status, "key-1", wanted)
                assert await status(directory) == wanted


async def test_a_change_without_a_word_is_known_in_a_moment(
    opener: Opener, database_url: str, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with open_two(opener) as (_, _, directory):
        assert await status(directory) == "active"
        outside(database_url, tmp_path, "UPDATE api_key SET status = 'disabled' WHERE id = 'key-1'")
        outside(database_url, tmp_path, "UPDATE counter SET value = value + 1 WHERE name = 'generation'")
        if database_url.startswith("sqlite"):
            assert await status(directory) == "active", "a read was spared"
        mock_clock.jump(2 * SPARED_S)
        assert await status(directory) == "disabled"


async def test_who_is_no_daemon_reads_at_every_question(opener: Opener) -> None:
    """Nobody announces anything to it."""
    async with open_two(opener) as (books, other, _), open_directory(other) as directory:
        for wanted in ("active", "disabled", "active"):
            await books.store.write(keys.set_status, "key-1", wanted)
            assert await status(directory) == wanted


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_who_waits_for_a_read_that_is_cancelled_is_not_told_what_was_so_before(opener: Opener) -> None:
    """As when all of the daemon ends at once, and a key was disabled in that moment."""
    async with open_books(opener) as books:
        await books.store.write(keys.rotate, "key-1", SECRET)
        said: list[str] = []
        for number in range(MOST_CUTS):
            directory = Directory(books.store, ())

            async def ask(directory: Directory = directory) -> str:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(directory.run)
                    answer = await status(directory)
                    nursery.cancel_scope.cancel()
                return answer

            async def ask_shielded(directory: Directory = directory) -> None:
                try:
                    said.append(await status(directory))
                except StoreUnavailable:
                    said.append("unavailable")

            assert await ask() == "active"
            await books.store.write(keys.set_status, "key-1", "disabled")
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    question = directory._next
                    nursery.start_soon(ask_shielded)
                    await trio.testing.wait_all_tasks_blocked()
                    cut = await cut_at(number, ask)
                    if not question.done.is_set():  # it was never taken up, and nobody answers any more
                        nursery.cancel_scope.cancel()
            await books.store.write(keys.set_status, "key-1", "active")
            if not cut.is_reached:
                break
        assert set(said) == {"disabled", "unavailable"}
