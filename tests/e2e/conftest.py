# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests share: one daemon with one next hop for each module, and databases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.peers import postgres
from tests.peers.daemon import Daemon, open_daemon
from tests.peers.processes import assert_no_traceback
from tests.peers.sink import CaptureSink, capture_sink

UNLIMITED = "bench"


@dataclass(frozen=True, slots=True)
class Service:
    """A running daemon, its next hop, and a key of an account that no rate stops."""

    daemon: Daemon
    sink: CaptureSink
    key: str


@pytest.fixture(scope="module")
def sink() -> Iterator[CaptureSink]:
    """A next hop that writes everything down."""
    with capture_sink() as found:
        yield found


@pytest.fixture(scope="module")
def service(sink: CaptureSink) -> Iterator[Service]:
    """A daemon on SQLite for a whole module."""
    with open_daemon(sink_port=sink.port, start=False) as daemon:
        key = daemon.setup(plan=UNLIMITED)
        daemon.start()
        yield Service(daemon, sink, key)
        assert_no_traceback(daemon.log())


@pytest.fixture
def postgres_database(postgres_server: str, migrated_postgres: str) -> Iterator[str]:
    """A new database with the present schema."""
    with postgres.open_database(postgres_server, migrated_postgres) as url:
        yield url
