# SPDX-License-Identifier: Apache-2.0
"""The end of a real daemon: what comes in its last moments, and in its first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.peers import postgres
from tests.peers.daemon import Daemon, open_daemon
from tests.peers.processes import PeerFailed, assert_no_traceback, wait_until

NOBODY = 9  # the port of a next hop that no mail of these tests goes to


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with open_daemon(sink_port=NOBODY, start=False) as found:
        yield found
        assert_no_traceback(found.log())


def wait_for(daemon: Daemon, line: str) -> None:
    wait_until(lambda: line in daemon.log(), line)


@pytest.mark.parametrize("late", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_up_to_the_last_moment_change_nothing(daemon: Daemon, late: signal.Signals) -> None:
    daemon.start()
    child = daemon.child
    assert child is not None
    child.signal(signal.SIGTERM)
    wait_for(daemon, "event=draining")
    while child.is_alive():
        child.signal(late)
        with suppress(PeerFailed):
            child.wait(timeout_s=0.001)
    assert daemon.terminate() == 0
    assert "event=stopped" in daemon.log().splitlines()[-1], "the store was closed"


def test_a_reload_that_comes_too_early_is_done_once_it_can_be(daemon: Daemon) -> None:
    def reload_early() -> None:
        made = daemon.state_dir / "self-made-certificate.pem"
        wait_until(made.exists, "the daemon to begin")  # the database and the doors come behind it
        daemon.signal(signal.SIGHUP)

    early = threading.Thread(target=reload_early)
    early.start()
    try:
        daemon.start()
    finally:
        early.join()
    wait_for(daemon, "event=settings_reloaded")
    events = [line.split("event=")[1].split()[0] for line in daemon.log().splitlines()]
    assert events.index("ready") < events.index("settings_reloaded"), "systemd would take it for ready"


def test_a_reload_that_waits_for_the_store_does_not_keep_the_end_waiting() -> None:
    postgres.require_postgres()
    with (
        postgres.open_server(durable=False) as server,
        postgres.open_database(server) as url,
        open_daemon(sink_port=NOBODY, database_url=url) as daemon,
    ):
        with postgres.open_transaction(url, "LOCK TABLE cap"):  # which the caps of senders are written to
            daemon.signal(signal.SIGHUP)
            wait_for(daemon, "event=certificate_loaded")
            daemon.signal(signal.SIGTERM)
            wait_for(daemon, "event=draining")
            assert "event=settings_reloaded" not in daemon.log()
        assert daemon.terminate() == 0
        assert_no_traceback(daemon.log())
