# SPDX-License-Identifier: Apache-2.0
"""A next hop whose every word is an attack on whoever shows it."""

from __future__ import annotations

import contextlib
import socketserver
from collections.abc import Iterator

from tests.peers.threaded import serving


@contextlib.contextmanager
def hostile_hop(words: str) -> Iterator[int]:
    """Its port.  It greets, introduces itself and answers with `words`: 550 to recipients that begin with `no`, 451 to
    those with `later`, else all is well."""

    class Talk(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self._say(f"220 {words}")
                while line := self.rfile.readline():
                    if not self._answer(line.decode("latin-1").strip()):
                        return

        def _answer(self, line: str) -> bool:
            verb, _, argument = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    self._say(f"250-{words}", f"250-XEVIL {words}", "250 ENHANCEDSTATUSCODES")
                case "RCPT" if "<no" in argument:
                    self._say(f"550 5.7.1 refused {words}")
                case "RCPT" if "<later" in argument:
                    self._say(f"451 4.2.0 later {words}")
                case "DATA":
                    self._say(f"354 {words}")
                    while self.rfile.readline() not in (b".\r\n", b""):
                        pass
                    self._say(f"250 2.0.0 taken {words}")
                case "QUIT":
                    self._say(f"221 {words}")
                    return False
                case _:
                    self._say(f"250 2.0.0 {words}")
            return True

        def _say(self, *lines: str) -> None:
            self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())

    with serving(Talk) as port:
        yield port
