# SPDX-License-Identifier: Apache-2.0
"""What a hostile client must leave behind: nothing.  No descriptor, no memory, no secret, one line in the log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.peers.daemon import Daemon, memory_of, post, reset_peak
from tests.peers.processes import wait_until
from tests.peers.raw import raw

MEBI = 1024 * 1024
# One message that is taken in may be on its way through once; what is hostile must cost less than that.
MEMORY_ROOM_OCTETS = 64 * MEBI


LISTENING, TIME_WAIT = "0A", "06"


def _connections(daemon: Daemon) -> list[str]:
    """Connections to its doors that the kernel knows of, in whatever state."""
    ports = {f"0100007F:{port:04X}" for port in daemon.ports.values()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [f"{row[2]} {row[3]}" for row in rows if row[1] in ports and row[3] not in {LISTENING, TIME_WAIT}]


def _wait_for_no_connections(daemon: Daemon) -> None:
    wait_until(lambda: not _connections(daemon), "all connections to end", timeout_s=60)


def _wait_for_their_ends(daemon: Daemon) -> None:
    """Until no connection is left to be counted or written down: the kernel has lost one a moment earlier.

    Whoever is answered by a session of his own has seen the loop of the daemon go round more than once, so only that
    session's end is still to come, and it is known by its line.
    """
    with raw(daemon.ports["starttls"]) as connection:
        assert connection.reply().startswith(b"220")
        assert connection.command("EHLO last.test").startswith(b"250")
        ended = daemon.log().count("event=session_closed")
    wait_until(lambda: daemon.log().count("event=session_closed") > ended, "the end of a session in the log")


@contextlib.contextmanager
def leaves_nothing(
    daemon: Daemon, *, connections: int, room_octets: int = MEMORY_ROOM_OCTETS, lines_each: int = 1
) -> Iterator[None]:
    """Run hostile clients inside; afterwards the daemon is as it was.

    connections: how many they open.  lines_each: lines that each may cost in the log.
    """
    _wait_for_no_connections(daemon)
    _wait_for_their_ends(daemon)
    descriptors, before = daemon.descriptors(), memory_of(daemon.pid)["rss"]
    log_before = len(daemon.log().splitlines())
    reset_peak(daemon.pid)
    yield
    _wait_for_no_connections(daemon)
    wait_until(lambda: daemon.descriptors() <= descriptors, f"descriptors to be closed but {descriptors}", timeout_s=60)
    peak = memory_of(daemon.pid)["peak"]
    assert peak - before < room_octets, f"memory grew from {before / MEBI:.0f} to {peak / MEBI:.0f} MiB"
    new = daemon.log().splitlines()[log_before:]
    assert len(new) <= connections * lines_each, "\n".join(new)
    assert not any("Traceback" in line or "level=error" in line for line in new), "\n".join(new)


def assert_secret_is_nowhere(daemon: Daemon, *secrets: str) -> None:
    """No file of the daemon, log and database included, holds any of these."""
    assert daemon.child is not None
    files = [path for path in daemon.state_dir.rglob("*") if path.is_file()]
    files += [daemon.child.out_path, daemon.child.err_path]
    assert files
    for path in files:
        content = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, f"a secret stands in {path}"


def still_works(daemon: Daemon, key: str) -> None:
    """The next honest customer is served."""
    status, answer, _ = post(daemon, {"to": "someone@example.net", "subject": "x", "text": "x"}, key)
    assert status in {200, 202}, answer
