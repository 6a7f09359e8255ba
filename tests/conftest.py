# SPDX-License-Identifier: Apache-2.0
"""For every test: what was logged, no ERROR that nobody expected, and programs that a machine may lack."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hepmaild import logs


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


def is_strict() -> bool:
    """In CI what is missing is a failure, on a developer's laptop it is skipped by name."""
    return os.environ.get("CI") == "true"


def find_peer(name: str) -> str:
    """Where the program is; without it the test is skipped by name, or fails in CI."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        message = f"{name} is not installed"
        if is_strict():
            pytest.fail(f"{message}, but .ci/run should have installed it")
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def peer() -> Callable[[str], str]:
    """`peer("swaks")`: the program's path, or skip by name (fail in CI)."""
    return find_peer


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.peer("swaks")`: like the fixture, before anything is set up."""
    for mark in item.iter_markers("peer"):
        for name in mark.args:
            find_peer(name)
