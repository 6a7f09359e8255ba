# SPDX-License-Identifier: Apache-2.0
"""What the daemon says to systemd from its start to its end, at a real notification socket."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.peers.daemon import ROOT, open_daemon
from tests.peers.processes import PeerFailed
from tests.peers.sink import capture_sink

UNIT = Path(__file__).parents[2] / "systemd" / "hepmaild.service"
DRAIN_S = 300


def test_a_stop_may_take_as_long_as_the_settings_say(tmp_path: Path) -> None:
    """The unit's own limit is for the default: killed at it, attempts at the final dot would be in doubt."""
    assert "TimeoutStopSec=45s" in UNIT.read_text()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, capture_sink() as sink:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        changes = {"server": {"drain_timeout_s": DRAIN_S}}
        with open_daemon(sink_port=sink.port, changes=changes, start=False) as daemon:
            daemon.env["NOTIFY_SOCKET"] = str(tmp_path / "notify")
            daemon.start()
            assert manager.recv(1000) == b"READY=1\nSTATUS=serving"
            daemon.signal(signal.SIGHUP)
            assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(1000) == b"READY=1\nSTATUS=serving"
            assert daemon.terminate() == 0
            said = dict(line.split("=", 1) for line in manager.recv(1000).decode().splitlines())
            assert (said["STOPPING"], said["STATUS"]) == ("1", "draining")
            assert int(said["EXTEND_TIMEOUT_USEC"]) > DRAIN_S * 1_000_000


STOPPED_AT_ITS_FIRST_PORT = """
import os, signal, socket, sys

came = []

def hook(event, arguments):
    if event == "socket.bind" and arguments[0].family == socket.AF_INET and not came:
        came.append(event)
        os.kill(os.getpid(), signal.SIGTERM)

sys.addaudithook(hook)
"""


def test_one_that_is_stopped_before_its_doors_are_open_is_never_ready(tmp_path: Path) -> None:
    """STOPPING was followed by READY and "serving"."""
    (tmp_path / "sitecustomize.py").write_text(STOPPED_AT_ITS_FIRST_PORT)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, open_daemon(sink_port=9, start=False) as daemon:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        daemon.env |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        with pytest.raises(PeerFailed, match="ended"):
            daemon.start()
        assert manager.recv(1000).startswith(b"STOPPING=1\n")
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(1000)
        assert "event=stopped" in daemon.log().splitlines()[-1]
