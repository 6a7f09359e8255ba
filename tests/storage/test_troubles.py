# SPDX-License-Identifier: Apache-2.0
"""A store in trouble: what the log says of it, a want of threads, and how it goes on afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection, text

from hepmaild import seldom
from hepmaild.errors import StoreUnavailable
from hepmaild.storage import sqlite
from tests.conftest import LogEvents
from tests.peers.processes import no_file_beyond, no_further_thread
from tests.storage.conftest import Opener, keep, make_opener, words
from tests.storage.test_store_sqlite import fill, salt

DEADLINE_S = 120


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return make_opener("sqlite:///test.db", tmp_path)


async def test_a_full_disk_is_in_the_log_and_not_for_every_caller(
    opener: Opener, tmp_path: Path, log_events: LogEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            await store.write(fill, "before")

            async def ask_in_vain() -> None:
                for n in range(20):
                    with pytest.raises(StoreUnavailable, match="SQLite"):
                        await store.submit(f"word {n}" + "." * 2_000_000)
                    with pytest.raises(StoreUnavailable, match="SQLite"):
                        await store.write(fill, "no", 2_000_000)

            with no_file_beyond((tmp_path / "test.db-wal").stat().st_size + 20_000):
                await ask_in_vain()
                [told] = log_events.named("store_failed")
                assert told["level"] == "warning"
                assert "SQLITE_" in told["reason"]
                monkeypatch.setattr(seldom, "EVERY_S", 0.0)
                await ask_in_vain()
            assert len(log_events.named("store_failed")) > 1
            before = len(log_events)
            await store.submit("after")
            assert len(log_events) == before


async def test_a_command_that_fails_has_its_own_words(opener: Opener, tmp_path: Path, log_events: LogEvents) -> None:
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True, exclusive=False) as store:
            with no_file_beyond((tmp_path / "test.db-wal").stat().st_size + 20_000), pytest.raises(StoreUnavailable):
                await store.write(fill, "no", 2_000_000)
    assert not log_events.named("store_failed")


async def test_a_want_of_threads_is_a_temporary_error(opener: Opener, log_events: LogEvents) -> None:
    """What began before goes on; the tasks of the daemon that read now and then are told as callers are."""
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            with no_further_thread():
                for _ in range(2):
                    with pytest.raises(StoreUnavailable, match="no thread could be started"):
                        await store.read(words)
                assert await store.submit("one") == ("kept", "one")
                assert await store.write(keep, "two") == "two"
            assert await store.read(words) == {"one", "two"}
    assert len(log_events.named("store_failed")) == 1


async def test_a_checkpoint_that_finds_no_thread_is_made_later(
    opener: Opener, log_events: LogEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_ROWS", 20)
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            with no_further_thread():
                number = 0
                while len(log_events.named("checkpoint_failed")) < 2:
                    await store.submit(str(number))
                    number += 1
            assert len(await store.read(words)) == number


async def test_the_log_starts_anew_also_behind_a_failure(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer's connection is opened anew then, and counts the rows that it changes from nought."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_ROWS", 100)
    monkeypatch.setattr(sqlite, "LONG_LOG_PAGES", 100)

    def change(conn: Connection, rows: int) -> None:
        conn.execute(text("create table if not exists t_many (n integer)"))
        numbers = "with recursive n(n) as (values (1) union all select n + 1 from n where n < :rows) select n from n"
        conn.execute(text(f"insert into t_many {numbers}"), {"rows": rows})

    wal = tmp_path / "test.db-wal"
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            await store.write(change, 100_000)
            with no_file_beyond(1_000_000), pytest.raises(StoreUnavailable):
                await store.write(fill, "no", 4_000_000)
            await store.write(keep, "after")
            begun, rows = salt(wal), 0
            # A few rows at a time: these are 25,000 units, which the checkpoint's threads may be slower than.
            while salt(wal) == begun and rows < 50_000:
                await store.write(change, 2)
                rows += 2
            assert rows < 50_000
