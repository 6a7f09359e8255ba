# SPDX-License-Identifier: Apache-2.0
"""What the crash tests share.  HEPMAILD_KILLS says how many kills for each engine; CI does a few, `20` the whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.peers import postgres
from tests.peers.daemon import Daemon, open_daemon
from tests.peers.sink import CaptureSink, capture_sink

KILLS = int(os.environ.get("HEPMAILD_KILLS", "5"))
OUTAGE_S = float(os.environ.get("HEPMAILD_OUTAGE_S", "5"))
GRANT = 1_000_000

# Short, so that what a dead process held, and what was in doubt, comes back within the test.
QUICK: dict[str, dict[str, Any]] = {
    "delivery": {
        "retry_after_s": [1],
        "final_dot_timeout_s": 10,
        "attempt_timeout_s": 11,
        "lease_s": 2,
        "relay_wait_s": 5,
    },
    "database": {"unit_timeout_s": 5},
}


@dataclass(frozen=True, slots=True)
class Service:
    """A running daemon, its next hop, and a key that no rate stops."""

    daemon: Daemon
    sink: CaptureSink
    key: str


@contextlib.contextmanager
def open_service(database_url: str, changes: dict[str, Any] | None = None) -> Iterator[Service]:
    """A daemon under the conditions of these tests."""
    settings = {name: dict(table) for name, table in QUICK.items()}
    for name, table in (changes or {}).items():
        settings.setdefault(name, {}).update(table)
    settings["database"]["url"] = database_url
    with (
        capture_sink(content=False) as sink,
        open_daemon(sink_port=sink.port, database_url=database_url, changes=settings, start=False) as daemon,
    ):
        key = daemon.setup(plan="bench", grant=GRANT)
        daemon.start()
        yield Service(daemon, sink, key)


@pytest.fixture(params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The same on both engines."""
    if request.param == "sqlite":
        with open_service("sqlite:///hepmaild.db") as found:
            yield found
        return
    postgres.require_postgres()
    with postgres.open_server() as server, postgres.open_database(server) as url, open_service(url) as found:
        yield found
