# SPDX-License-Identifier: Apache-2.0
"""Words to systemd (sd_notify(3)).  Without `$NOTIFY_SOCKET` every call does nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends datagrams to the service manager; never blocks and never raises."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        if self._address[:1] in {"/", "@"}:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self.watchdog_s = _watchdog_s(environ)

    def send(self, *fields: str) -> bool:
        """Send these `NAME=value` lines; whether they went out."""
        if self._socket is None:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            self._socket.sendto("\n".join(fields).encode(), address)
        except OSError:
            return False
        return True

    def ready(self, status: str = "") -> bool:
        """The ports are bound and the store is open."""
        return self.send("READY=1", *_status(status))

    def stopping(self, status: str = "", *, within_s: float = 0) -> bool:
        """The drain has begun.

        within_s: the longest that the end may take, in place of the unit's `TimeoutStopSec` should that be less.
        """
        more = (f"EXTEND_TIMEOUT_USEC={round(within_s * 1_000_000)}",) if within_s else ()
        return self.send("STOPPING=1", *more, *_status(status))

    def reloading(self) -> bool:
        """A reload has begun; `ready` ends it."""
        return self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def watchdog(self) -> bool:
        """Still alive.  To be sent at least every `watchdog_s` / 2."""
        return self.send("WATCHDOG=1")

    def status(self, text: str) -> bool:
        """What `systemctl status` shows."""
        return self.send(*_status(text))

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())}",) if text else ()


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """The time after which systemd calls us dead, None when it does not watch this process."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1_000_000
