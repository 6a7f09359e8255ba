# SPDX-License-Identifier: Apache-2.0
"""For every test: what was logged, and no ERROR that nobody expected; databases that are there already."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings

from hepmaild import logs
from hepmaild.config import DatabaseSettings
from hepmaild.signals import END, RELOAD
from tests.peers import postgres
from tests.peers.processes import last_words

# How fast a machine makes examples says nothing about what is tested with them.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


class LogEvents(list[dict[str, Any]]):
    """Every event logged during one test, oldest first, before redaction."""

    def __init__(self) -> None:
        super().__init__()
        self.expected_errors: set[str] = set()

    def expect_error(self, event: str) -> None:
        """This test provokes an ERROR line of this name."""
        self.expected_errors.add(event)

    def named(self, event: str) -> list[dict[str, Any]]:
        """The events of one name."""
        return [e for e in self if e["event"] == event]

    def unexpected_errors(self) -> list[dict[str, Any]]:
        """ERROR lines that the test did not say it provokes."""
        return [e for e in self if e["level"] == "error" and e["event"] not in self.expected_errors]


@pytest.fixture(autouse=True)
def log_events() -> Iterator[LogEvents]:
    """What was logged.  A test in which something is logged at ERROR unexpectedly fails."""
    events = LogEvents()
    logs.configure(level="debug", extra=lambda event: events.append(dict(event)))
    yield events
    assert not events.unexpected_errors(), "logged at ERROR; call log_events.expect_error(...) if that is meant"


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """A daemon that ran inside a test ignores signals from its end on, and so would each program started later."""
    before = {number: signal.getsignal(number) for number in (*END, *RELOAD)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the ends of what the daemons and peers of fixtures printed."""
    report = yield
    if report.failed:
        report.sections += last_words()
    return report


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL, without a database, of the one PostgreSQL server of the whole run."""
    postgres.require_postgres()
    with postgres.open_server(durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a database with the present schema, for `postgres.open_database(…, template)`."""
    with postgres.open_database(postgres_server) as url:
        _migrate(url, tmp_path_factory.mktemp("migrated"))
        yield url.rpartition("/")[2]


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the present schema, to be copied."""
    folder = tmp_path_factory.mktemp("migrated")
    _migrate("sqlite:///test.db", folder)
    return folder / "test.db"


def _migrate(url: str, folder: Path) -> None:
    """By the store's own way."""
    from hepmaild.storage.store import open_store
    from hepmaild.storage.unit import UnitRunner

    async def upgrade() -> None:
        async with open_store(DatabaseSettings(url=url), folder, UnitRunner(lambda: 0), exclusive=True) as store:
            await store.upgrade()

    trio.run(upgrade)
