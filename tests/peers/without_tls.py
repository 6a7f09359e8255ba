# SPDX-License-Identifier: Apache-2.0
"""Somebody between a client and its server, who leaves STARTTLS out and takes any password."""

from __future__ import annotations

import contextlib
import socketserver
from collections.abc import Iterator

from tests.peers.threaded import serving

ANSWERS = {
    b"EHLO": b"250-localhost\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME\r\n",
    b"AUTH": b"235 2.7.0 welcome\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 2.0.0 bye\r\n",
    b"STAR": b"502 5.5.1 no\r\n",
}


@contextlib.contextmanager
def without_tls() -> Iterator[tuple[int, list[bytes]]]:
    """Its port, and the lines that it was told: all of them once this is left."""
    told: list[bytes] = []

    class Talk(socketserver.StreamRequestHandler):
        timeout = 30

        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.wfile.write(b"220 localhost ESMTP\r\n")
                while line := self.rfile.readline(1000):
                    told.append(line)
                    self.wfile.write(ANSWERS.get(line[:4].upper(), b"250 2.0.0 fine\r\n"))
                    if line[:4].upper() == b"QUIT":
                        return

    with serving(Talk, to_its_end=True) as port:
        yield port, told
