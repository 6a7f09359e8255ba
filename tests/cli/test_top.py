# SPDX-License-Identifier: Apache-2.0
"""`queue top`: its picture, and the command without a terminal and in one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hepmaild.cli.top import ENTER, LEAVE, View, cells_of, cut, draw
from tests.cli.conftest import Cli

NOW_US = 1_800_000_000_000_000
HOSTILE = "\x1b[2J\x1b]0;gone\x07\r\n\u202e451 \ud83d no"


def row(**changes: Any) -> dict[str, Any]:
    return {
        "route": "up",
        "waiting": 1234,
        "queued": 0,
        "deferred": 1234,
        "capped": 0,
        "held": 0,
        "in_doubt": 2,
        "oldest_at": NOW_US - 3_700_000_000,
        "attempted_per_minute": 10.0,
        "delivered_per_minute": 2.4,
        "last_error": HOSTILE,
        "paused": False,
        **changes,
    }


def view(destinations: int = 3) -> View:
    names = [f"d{n}.example" for n in range(destinations)]
    shown = View(counted_at_us=NOW_US - 2_000_000, is_live=True)
    shown.stats = {
        "by_state": {"queued": 0, "deferred": 1234, "capped": 0, "held": 0},
        "leased": 7,
        "in_doubt": 2,
        "oldest_at": NOW_US,
        "by_route": {"up": 1234},
        "by_destination": dict.fromkeys(names, 1),
        "paused": [{"route": "up", "destination": HOSTILE, "since_at": NOW_US, "note": HOSTILE}],
        "routes": [row()],
        "destinations": [row(destination=name) for name in names],
    }
    return shown


def line(message_id: str, state: str, subject: str = HOSTILE) -> dict[str, Any]:
    return {
        "at": NOW_US,
        "message_id": message_id,
        "state": state,
        "sender": HOSTILE,
        "recipients": [HOSTILE, "joe@example.com"],
        "subject": subject,
    }


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (20, 5), (1, 1), (40, 10)])
@pytest.mark.parametrize("destinations", [0, 3, 500])
def test_the_picture_fits_and_nothing_from_outside_acts(width: int, height: int, destinations: int) -> None:
    shown = view(destinations)
    for n in range(30):
        shown.take(line(f"{n:016x}", "sent", "日本語の件名 " * 20))
    lines = draw(shown, NOW_US, width, height, ansi=False)
    assert 1 <= len(lines) <= height
    for text in lines:
        assert text.isprintable(), text
        assert sum(map(cells_of, text)) <= width


def test_what_it_says() -> None:
    shown = view()
    for state in ("queued", "sent", "sent"):
        shown.take(line("a" * 16, state))
    text = "\n".join(draw(shown, NOW_US, 160, 60, ansi=False))
    for wanted in ("1,234 waiting", "7 under way", "2 in doubt", "counted 2 s ago", "62 min", "1 sent", "d2.example"):
        assert wanted in text, text
    assert shown.happened == {"queued": 1, "sent": 1}  # the same state twice is one event


def test_before_the_first_count_and_without_a_database() -> None:
    assert draw(View(), NOW_US, 80, 24, ansi=False) == ["counting what waits …"]
    assert "gone" in draw(View(problem="the store is gone"), NOW_US, 80, 24, ansi=True)[0]


def test_cutting() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab…"
    assert cut("日本語", 4) == "日…"
    assert cut("abc", 0) == ""


def test_without_a_terminal_it_prints_once(cli: Cli) -> None:
    assert "0 waiting" in cli.ok("queue", "top")


@pytest.fixture
def terminal(cli: Cli) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command in a terminal of 24 by 80: its process and the other end."""
    cli.ok("db", "upgrade")
    end, theirs = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "hepmaild", "-c", str(cli.config), "queue", "top"]
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "TERM": "xterm"}
    env.pop("COLUMNS", None)
    env.pop("LINES", None)
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cli.config.parent, env=env)
    os.close(theirs)
    try:
        yield process, end
    finally:
        process.kill()
        process.wait()
        os.close(end)


def read_until(end: int, wanted: bytes, limit_s: float = 60) -> bytes:
    octets = b""
    until = time.monotonic() + limit_s
    while wanted not in octets and time.monotonic() < until:
        if select.select([end], [], [], 0.5)[0]:
            try:
                octets += os.read(end, 65_536)
            except OSError:
                break
    assert wanted in octets, octets[-2000:]
    return octets


def test_in_a_terminal_q_ends_it_and_leaves_no_trace(terminal: tuple[subprocess.Popen[bytes], int]) -> None:
    process, end = terminal
    octets = read_until(end, b"0 waiting")
    assert ENTER.encode() in octets
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 30, 0, 0))
    process.send_signal(signal.SIGWINCH)
    read_until(end, b"\x1b[H")
    os.write(end, b"q")
    read_until(end, LEAVE.encode())
    assert process.wait(60) == 0


def test_documents_begin_at_once(cli: Cli) -> None:
    """The first says how it is, and not after the hour of the interval."""
    cli.ok("db", "upgrade")
    command = [sys.executable, "-m", "hepmaild", "-c", str(cli.config), "queue", "top", "--json", "--interval", "3600"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        try:
            assert process.stdout is not None
            document = json.loads(read_until(process.stdout.fileno(), b"\n"))
            assert document["queue"]["by_route"] == {}
            assert document["counted_at"]
        finally:
            process.kill()
