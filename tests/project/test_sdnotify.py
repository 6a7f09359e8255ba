# SPDX-License-Identifier: Apache-2.0
"""The words to systemd arrive at a real datagram socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from hepmaild.sdnotify import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_words_arrive(tmp_path: Path, abstract: bool) -> None:
    name = f"@hepmaild-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        notifier = Notifier({"NOTIFY_SOCKET": name})
        assert notifier.ready("all\nwell")
        assert manager.recv(1000) == b"READY=1\nSTATUS=all well"
        assert notifier.reloading()
        assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert notifier.watchdog()
        assert manager.recv(1000) == b"WATCHDOG=1"
        assert notifier.stopping()
        assert manager.recv(1000) == b"STOPPING=1"
        assert notifier.stopping("draining", within_s=120.5)
        assert manager.recv(1000) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=120500000\nSTATUS=draining"
        notifier.close()
    assert not notifier.watchdog()


def test_without_systemd_nothing_happens() -> None:
    assert not Notifier({}).ready()
    notifier = Notifier({"NOTIFY_SOCKET": "/none/such"})
    assert not notifier.ready()
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_time(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ).watchdog_s == seconds
