# SPDX-License-Identifier: Apache-2.0
"""The peers among themselves: what a client sends, the next hop writes down.  Then a difference is the daemon's."""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers.certificates import make_certificate
from tests.peers.clients import SMTP_CLIENTS, ClientFailed, dot_stuffed, send_smtplib
from tests.peers.daemon import ROOT, open_daemon, to_toml
from tests.peers.messages import differences, new_id, tricky_message
from tests.peers.postfix import mail_server
from tests.peers.processes import free_port, port_answers, ports_in_turn
from tests.peers.programs import require_postfix
from tests.peers.sink import CaptureSink, capture_sink

KEY = "hyd-mail-0123456789abcdefghijABCDEFGHIJ0123456789"[:49]
SENDER = "noreply@example.com"


@dataclass
class StandIn:
    """Looks like a daemon to a client: two doors, both of a capture server."""

    ports: dict[str, int]
    sinks: dict[str, CaptureSink]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    certificate = make_certificate(tmp_path_factory.mktemp("certificate"))
    with (
        capture_sink(tls=certificate, user="api", password=KEY) as starttls,
        capture_sink(tls=certificate, user="api", password=KEY, implicit=True) as implicit,
    ):
        sinks = {"starttls": starttls, "implicit": implicit}
        yield StandIn({door: sink.port for door, sink in sinks.items()}, sinks)


@pytest.mark.parametrize("client", sorted(SMTP_CLIENTS))
def test_a_client_sends_every_octet_as_it_is(stand_in: StandIn, client: str) -> None:
    test_id = new_id()
    message = tricky_message(test_id, sender=SENDER, to="someone@example.net")
    SMTP_CLIENTS[client](stand_in, KEY, message, SENDER, ["someone@example.net", "other@example.net"])  # type: ignore[arg-type]
    door = "implicit" if "465" in client else "starttls"
    sink = stand_in.sinks[door]
    entry = sink.wait_for_id(test_id)
    assert entry["tls"]
    assert sorted(entry["recipients"]) == ["other@example.net", "someone@example.net"]
    expected = ["+received"] if client.startswith("postfix") else []
    assert differences(message, sink.content(entry)) == expected


def test_a_client_reports_a_refusal(stand_in: StandIn) -> None:
    message = tricky_message(new_id(), sender=SENDER, to="reject-me@example.net")
    with pytest.raises(ClientFailed):
        send_smtplib(stand_in, KEY, message, SENDER, ["reject-me@example.net"])  # type: ignore[arg-type]


def test_the_port_of_a_server_that_is_down_is_nobody_elses() -> None:
    """The tests of other processes open many, wherever the system likes."""
    with capture_sink() as sink, open_daemon(sink_port=sink.port) as daemon:
        sink.stop()
        daemon.kill()
        for port in (sink.port, *daemon.ports.values()):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            assert not port_answers(port)
        sink.start()
        before = dict(daemon.ports)
        daemon.start()
        assert daemon.ports == before
        daemon.terminate()
        assert not port_answers(before["https"])


def test_a_free_port_is_given_to_one_program_only() -> None:
    """It is bound a while later; two of 16,384 are the same sooner than one thinks."""
    assert len({free_port() for _ in range(1000)}) == 1000
    workers = [set(itertools.islice(ports_in_turn(n, 4), 4096)) for n in range(4)]
    assert set.union(*workers) == set(range(16_384, 32_768))


FAILS = """
import pytest
from tests.peers.sink import capture_sink

@pytest.fixture(scope="module")
def beside():
    with capture_sink() as sink:
        yield sink

def test_beside(beside):
    assert False

def test_inside():
    with capture_sink():
        assert False
"""


def test_a_failure_shows_what_programs_printed(tmp_path: Path) -> None:
    """Of a daemon that a fixture runs, and of one that the test itself had and that is gone when it is told."""
    (tmp_path / "test_it.py").write_text(FAILS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    beside, inside = (done.stdout.partition(f"_ test_{name} _")[2] for name in ("beside", "inside"))
    assert re.search(r"sink.out ends.*\nlistening \d+\n", beside.partition("_ test_inside _")[0]), done.stdout
    assert re.search(r"sink.out ends:\nE? *listening \d+\n", inside), done.stdout


def test_postfix_as_a_next_hop_keeps_what_it_gets() -> None:
    require_postfix()
    import smtplib

    message = tricky_message(new_id(), sender=SENDER, to="someone@example.net")
    with mail_server() as hop:
        with smtplib.SMTP("127.0.0.1", hop.ports["smtp"]) as session:
            session.sendmail(SENDER, ["someone@example.net"], message)
        hop.child.wait_for(hop.messages, "the delivery")
        (kept,) = hop.messages()
    assert differences(message, kept.replace(b"\n", b"\r\n")) == [
        "+return-path",
        "+x-original-to",
        "+delivered-to",
        "+received",
    ]


def test_dots_are_doubled() -> None:
    assert dot_stuffed(b".a\r\n.\r\nb") == b"..a\r\n..\r\nb\r\n.\r\n"


def test_settings_are_written_as_toml(tmp_path: Path) -> None:
    import tomllib

    settings = {"smtp": {"starttls": ["127.0.0.1:0"], "n": 1.5, "flag": True}, "route": [{"name": 'a"b'}]}
    settings["plans"] = {"bench": {"calls_per_minute": 5}}
    assert tomllib.loads(to_toml(settings)) == settings
