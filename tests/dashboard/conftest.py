# SPDX-License-Identifier: Apache-2.0
"""A daemon on each engine with two accounts, and people of every role signed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.dashboard.visitor import Visitor, link_of, sign_in
from tests.peers import postgres
from tests.peers.daemon import ACCOUNT, Daemon, open_daemon
from tests.peers.processes import assert_no_traceback
from tests.peers.sink import CaptureSink, capture_sink

OTHER = "other@elsewhere.example"
READER = "reader@example.com"


@dataclass(frozen=True, slots=True)
class Site:
    """owner and reader belong to one account, other to another; `key` is a key of the first one."""

    daemon: Daemon
    sink: CaptureSink
    key: str
    owner: Visitor
    reader: Visitor
    other: Visitor


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Everything, for a whole module, once on each engine."""
    with ExitStack() as stack:
        url = "sqlite:///hepmaild.db"
        if request.param == "postgresql":
            server, template = map(request.getfixturevalue, ("postgres_server", "migrated_postgres"))
            url = stack.enter_context(postgres.open_database(server, template))
        sink = stack.enter_context(capture_sink())
        daemon = stack.enter_context(open_daemon(sink_port=sink.port, database_url=url, start=False))
        key = daemon.setup()
        daemon.json("account", "add", OTHER, "--credits", "10")
        daemon.start()
        people = {}
        for email in (ACCOUNT, OTHER):
            people[email] = stack.enter_context(sign_in(daemon, link_of(daemon.json("account", "link", email))))
        made = daemon.json("user", "add", ACCOUNT, READER, "--scope", "read_only")
        reader = stack.enter_context(sign_in(daemon, link_of(made)))
        yield Site(daemon, sink, key, people[ACCOUNT], reader, people[OTHER])
        log = daemon.log()
        assert_no_traceback(log)
