# SPDX-License-Identifier: Apache-2.0
"""SIGHUP to a real daemon: both doors obey the new limits at once, and what needs a restart is named."""

from __future__ import annotations

import re
import signal
import smtplib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.dashboard.visitor import csrf_of, open_client, words
from tests.peers.daemon import SENDER, Daemon, merge, open_daemon, open_smtp, post
from tests.peers.processes import assert_no_traceback, wait_until
from tests.peers.sink import CaptureSink

ANY = "127.0.0.1:0"
UNKNOWN = "hyd-mail-" + "x" * 40


@pytest.fixture
def daemon(sink: CaptureSink) -> Iterator[Daemon]:
    with open_daemon(sink_port=sink.port, changes={"limits": {"unknown_keys_per_minute": 50}}) as found:
        yield found
        assert_no_traceback(found.log())


def reload(daemon: Daemon, changes: dict[str, Any]) -> str:
    """The daemon with other settings; what it logged about them."""
    before = len(daemon.log())
    began = {"smtp": {"starttls": [ANY], "implicit_tls": [ANY]}, "http": {"listen": [ANY]}}  # not the ports it got
    daemon.settings = merge(merge(daemon.settings, began), changes)
    daemon.write_settings()
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "event=settings_reloaded" in daemon.log()[before:], "the settings were taken")
    return daemon.log()[before:]


def test_the_smtp_door_takes_new_limits(daemon: Daemon) -> None:
    key = daemon.setup(plan="bench")
    with closing(open_smtp(daemon, key)) as old:
        assert old.esmtp_features["size"] == "26214400"
        limits = {"recipients_per_message": 1, "connections_per_ip": 2}
        said = reload(daemon, {"limits": limits, "smtp": {"max_message_bytes": 20_000}})
        assert "restart_needed" not in said
        with closing(open_smtp(daemon, key)) as new:
            assert new.esmtp_features["size"] == "20000"
            assert new.mail(SENDER)[0] == 250
            assert new.rcpt("one@example.net")[0] == 250
            assert new.rcpt("two@example.net")[0] == 452
            with pytest.raises(smtplib.SMTPConnectError, match="421"):
                open_smtp(daemon, None)
            assert old.noop()[0] == 250, "a session that was there goes on"


def test_an_open_session_may_be_idle_as_long_as_is_said_now(daemon: Daemon) -> None:
    with closing(open_smtp(daemon, None)) as session:
        reload(daemon, {"limits": {"idle_timeout_s": 1}})
        assert session.noop()[0] == 250  # from the next command on
        assert session.getreply()[0] == 421


def test_unknown_keys_are_slowed_down_as_is_said_now(daemon: Daemon) -> None:
    body = {"to": "someone@example.net", "subject": "x", "text": "x"}
    assert [post(daemon, body, UNKNOWN)[0] for _ in range(3)] == [401] * 3
    reload(daemon, {"limits": {"unknown_keys_per_minute": 4}})
    assert [post(daemon, body, UNKNOWN)[0] for _ in range(2)] == [401, 429]


def test_what_needs_a_restart_is_named(daemon: Daemon) -> None:
    said = reload(
        daemon,
        {
            "smtp": {"starttls": ["[::1]:0"], "replay_window_s": 5},
            "http": {"trusted_proxies": ["192.0.2.0/24"], "max_request_bytes": 100_000},
            "limits": {"backlog": 5},
        },
    )
    (line,) = [line for line in said.splitlines() if "event=restart_needed" in line]
    named = re.search(r"settings=(\S+)", line)
    assert named is not None
    assert named[1].strip('"').split(",") == ["smtp.starttls", "http.trusted_proxies", "http.max_request_bytes"]


def test_forms_of_the_present_address_are_taken_until_the_restart(daemon: Daemon) -> None:
    """As they come by a proxy that asks us by another name."""
    said = reload(daemon, {"http": {"public_url": "https://other.example"}})
    assert "settings=http.public_url" in said
    with open_client(daemon) as client:
        fields = {"csrf": csrf_of(client.get("/sign-in").text), "email": "nobody@example.com", "password": "x"}
        for origin, status in (("https://localhost", 401), ("https://other.example", 400)):
            answer = client.post("/sign-in", data=fields, headers={"Origin": origin})
            assert answer.status_code == status, words(answer.text)
