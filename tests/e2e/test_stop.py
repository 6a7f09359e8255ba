# SPDX-License-Identifier: Apache-2.0
"""The end of a real daemon: what comes in its last moments, and in its first."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.peers import postgres
from tests.peers.daemon import Daemon, open_daemon, untrusting_context
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


def test_a_running_request_has_as_long_as_the_drain(daemon: Daemon) -> None:
    """It had 25 seconds, whatever the settings said: less than its message's attempt, or more than the whole stop."""
    daemon.settings["server"]["drain_timeout_s"] = 1
    key = daemon.setup()
    daemon.start()
    with (
        socket.create_connection(("127.0.0.1", daemon.ports["https"])) as connection,
        untrusting_context().wrap_socket(connection) as caller,
    ):
        head = f"POST /api/v1/email/send HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nExpect: 100-continue\r\n"
        caller.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n".encode())
        assert caller.recv(100).startswith(b"HTTP/1.1 100 "), "it is under way"
        assert daemon.terminate() == 0
    assert "event=stopping_now" not in daemon.log(), "the door ended it, not the hard stop behind the drain"
