# SPDX-License-Identifier: Apache-2.0
"""A store in trouble: what the log says of it, and how it goes on afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from hepmaild.errors import StoreUnavailable
from hepmaild.storage import trouble
from tests.conftest import LogEvents
from tests.peers.processes import no_file_beyond
from tests.storage.conftest import Opener, make_opener
from tests.storage.test_store_sqlite import fill

DEADLINE_S = 60


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return make_opener("sqlite:///test.db", tmp_path)


async def test_a_full_disk_is_in_the_log_and_not_for_every_caller(
    opener: Opener, tmp_path: Path, log_events: LogEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True, unit_timeout_s=5) as store:
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
                monkeypatch.setattr(trouble, "TOLD_EVERY_S", 0.0)
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
