# SPDX-License-Identifier: Apache-2.0
"""An HTTPS server on loopback that answers for many hosts, with whatever octets the test says."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio
import trustme


def http(body: str | bytes, status: str = "200 OK", **fields: str) -> bytes:
    """A whole answer; fields: `content_type="text/html"` and the like."""
    content = body.encode() if isinstance(body, str) else body
    named = {"content-type": "text/plain", "content-length": str(len(content))}
    named |= {name.replace("_", "-"): value for name, value in fields.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + content


class PolicyServer:
    """answers: host to answer, None: none is given and the connection stays open.  requests: how often each was asked.

    certified: hosts that its certificate names.  keeps_somebody_waiting: set at the first request that gets no answer.
    """

    def __init__(self, certified: Iterable[str]) -> None:
        authority = trustme.CA()
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)
        self._serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(*certified).configure_cert(self._serving)
        self.answers: dict[str, bytes | None] = {}
        self.requests: Counter[str] = Counter()
        self.heads: list[str] = []
        self.keeps_somebody_waiting = trio.Event()
        self.is_up = True
        self.port = 0

    async def _serve(self, stream: trio.SocketStream) -> None:
        if not self.is_up:
            await trio.aclose_forcefully(stream)
            return
        secure = trio.SSLStream(stream, self._serving, server_side=True, https_compatible=True)
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = await secure.receive_some(4096)
                if not piece:
                    return
                head += piece
            host = next(x for x in head.decode().split("\r\n") if x.lower().startswith("host: "))[6:]
            self.requests[host] += 1
            self.heads.append(head.decode())
            answer = self.answers.get(host, http("not here", "404 Not Found"))
            if answer is None:
                self.keeps_somebody_waiting.set()
                await trio.sleep_forever()
            else:
                await secure.send_all(answer)
        except (trio.BrokenResourceError, ssl.SSLError):
            pass
        finally:
            await trio.aclose_forcefully(secure)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[PolicyServer]:
        """Serve on a free port until the block ends."""
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)
            yield self
            nursery.cancel_scope.cancel()
