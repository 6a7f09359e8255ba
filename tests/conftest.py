# SPDX-License-Identifier: Apache-2.0
"""For every test: what was logged, and no ERROR that nobody expected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from hepmaild import logs

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
