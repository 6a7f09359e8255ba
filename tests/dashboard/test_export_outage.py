# SPDX-License-Identifier: Apache-2.0
"""An export whose store goes away when its head has left."""

from __future__ import annotations

import httpx
import pytest

from tests.dashboard.visitor import link_of, sign_in
from tests.peers import postgres
from tests.peers.daemon import ACCOUNT, open_daemon
from tests.peers.processes import assert_no_traceback

NOBODY = 9  # the port of a next hop that no mail of this test goes to


def test_it_is_broken_off_and_nothing_has_crashed(postgres_server: str, migrated_postgres: str) -> None:
    """The library logged a traceback of a hundred lines for each."""
    with (
        postgres.open_database(postgres_server, migrated_postgres) as url,
        open_daemon(sink_port=NOBODY, database_url=url, start=False) as daemon,
    ):
        daemon.setup()
        daemon.settings["database"]["unit_timeout_s"] = 3  # for everything else too: a second is little
        daemon.start()
        with sign_in(daemon, link_of(daemon.json("account", "link", ACCOUNT))) as visitor:
            with (
                postgres.open_transaction(url, "LOCK TABLE message"),
                visitor.client.stream("GET", "/logs/export.csv") as answer,
            ):
                assert answer.status_code == 200
                with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                    answer.read()
            assert visitor.client.get("/logs/export.csv").text.count("\n") == 1
        assert daemon.terminate() == 0
        assert_no_traceback(daemon.log())
        assert "event=http_answer_broken_off" in daemon.log()
