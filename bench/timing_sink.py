# SPDX-License-Identifier: Apache-2.0
"""A next hop that notes when each message came: `python -m bench.timing_sink --help`.

It listens on as many addresses as it is given and costs little (one thread, no streams).  For each message past its
final dot LOG gets one line: the moment (Unix microseconds), the moment in the message's X-Sent-At-Us, the recipient.
On addresses that are to defer every RCPT is answered 451.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import signal
import time
from collections.abc import Collection, Sequence
from pathlib import Path

_SENT = re.compile(rb"\r\nX-Sent-At-Us: (\d+)\r\n", re.IGNORECASE)
_DOT = b"\r\n.\r\n"


class Sink(asyncio.Protocol):
    """One connection.  log: a descriptor that takes whole lines."""

    def __init__(self, log: int, *, defers: bool) -> None:
        self._log = log
        self._defers = defers
        self._data = bytearray()
        self._in_content = False
        self._recipients: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 sink.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._data += data
        said = bytearray()
        while (answer := self._next()) is not None:
            said += answer
        if said:
            self._transport.write(bytes(said))
            if said.endswith(b"221 bye\r\n"):
                self._transport.close()

    def _next(self) -> bytes | None:
        """The answer to the next command or content; None: it is not complete yet."""
        if self._in_content:
            end = self._data.find(_DOT)
            if end < 0:
                return None
            self._note(bytes(self._data[:end]))
            del self._data[: end + len(_DOT)]
            self._in_content = False
            return b"250 2.0.0 taken\r\n"
        end = self._data.find(b"\r\n")
        if end < 0:
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 2]
        return self._answer(line)

    def _answer(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb == b"EHLO":
            return b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n"
        if verb == b"RCPT":
            if self._defers:
                return b"451 4.7.1 not now\r\n"
            self._recipients.append(line.partition(b"<")[2].partition(b">")[0])
            return b"250 2.1.5 ok\r\n"
        if verb == b"DATA":
            if not self._recipients:
                return b"503 5.5.1 no recipients\r\n"
            self._in_content = True
            return b"354 go on\r\n"
        if verb in {b"MAIL", b"RSET"}:
            self._recipients.clear()
            return b"250 2.1.0 ok\r\n"
        return b"221 bye\r\n" if verb == b"QUIT" else b"250 2.0.0 ok\r\n"

    def _note(self, content: bytes) -> None:
        found = _SENT.search(content)
        sent_us = found[1] if found else b"0"
        at_us = time.time_ns() // 1000
        lines = [b"%d %s %s\n" % (at_us, sent_us, recipient) for recipient in self._recipients]
        os.write(self._log, b"".join(lines))


async def serve(log: int, addresses: Sequence[str], defers: Collection[str]) -> None:
    """Listen until SIGTERM."""
    loop = asyncio.get_running_loop()
    servers = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        slow = address in defers
        servers.append(
            await loop.create_server(lambda slow=slow: Sink(log, defers=slow), host, int(port), backlog=1024)  # type: ignore[misc]
        )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print("listening", flush=True)
    await stop.wait()
    for server in servers:
        server.close()


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--addresses", required=True, help="file with an address:port on each line")
    parser.add_argument("--defer", default="", help="file with those of them that answer every RCPT with 451")
    parser.add_argument("--log", required=True, help="file that gets a line for each message")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    defers = set(Path(options.defer).read_text().split()) if options.defer else set()
    asyncio.run(serve(log, Path(options.addresses).read_text().split(), defers))


if __name__ == "__main__":
    main()
