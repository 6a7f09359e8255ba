# SPDX-License-Identifier: Apache-2.0
"""A client that sends exactly the octets it is told to, however wrong, and shows exactly what comes back."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator

from tests.peers.daemon import Daemon, untrusting_context

TIMEOUT_S = 60.0


class Raw:
    """A TCP connection, with TLS once `start_tls` was called.  Nothing is interpreted, nothing is repaired."""

    def __init__(self, port: int, *, tls: bool = False, timeout_s: float = TIMEOUT_S) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.data = b""
        if tls:
            self.start_tls()

    def start_tls(self) -> None:
        context = untrusting_context()
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")

    def send(self, octets: bytes) -> None:
        """Send all of it; what the peer does not take any more because it closed is not an error."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.socket.sendall(octets)

    def _more(self) -> bool:
        try:
            chunk = self.socket.recv(65536)
        except (ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return False
        self.data += chunk
        return bool(chunk)

    def reply(self) -> bytes:
        """The next whole SMTP reply, several lines joined as they came; b"" at the end of the connection."""
        lines = b""
        while True:
            while b"\n" not in self.data:
                if not self._more():
                    return lines + self.data
            line, _, self.data = self.data.partition(b"\n")
            lines += line + b"\n"
            if len(line) < 4 or line[3:4] != b"-":
                return lines

    def rest(self) -> bytes:
        """Everything until the peer closes.  Raises TimeoutError if it does not."""
        while self._more():
            pass
        found, self.data = self.data, b""
        return found

    def command(self, line: str) -> bytes:
        """Send a line, read its reply."""
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def half_close(self) -> None:
        """FIN, while we still listen."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST: the connection is gone without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()


@contextlib.contextmanager
def raw(port: int, *, tls: bool = False) -> Iterator[Raw]:
    """A raw connection, closed at the end."""
    connection = Raw(port, tls=tls)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def raw_smtp(daemon: Daemon, *, key: str | None = None, tls: bool = True) -> Iterator[Raw]:
    """A raw session on the STARTTLS door: after EHLO, under TLS (tls=True), and logged in (key)."""
    with raw(daemon.ports["starttls"]) as connection:
        assert connection.reply().startswith(b"220 ")
        assert connection.command("EHLO raw.test").startswith(b"250")
        if tls:
            assert connection.command("STARTTLS").startswith(b"220")
            connection.start_tls()
            assert connection.command("EHLO raw.test").startswith(b"250")
        if key is not None:
            word = base64.b64encode(f"\0api\0{key}".encode()).decode()
            assert connection.command(f"AUTH PLAIN {word}").startswith(b"235")
        yield connection
