# SPDX-License-Identifier: Apache-2.0
"""A next hop for tests, on any Trio stream: well-behaved unless told otherwise."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio
from trio.abc import Stream
from trio.testing import memory_stream_pair

Answer = bytes | None
Reaction = Answer | Callable[["Peer", bytes], Awaitable[Answer]]

EHLO = b"250-peer\r\n250-PIPELINING\r\n250-SIZE 1000000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"


class Hangup(Exception):
    """Close the connection now."""


@dataclass
class Peer:
    """reactions: what to answer to a verb (`GREETING` and `DOT` count as verbs), instead of yes.

    A reaction of None says nothing.  received: messages as sent, dot-stuffing included.  verbs: all lines.
    """

    reactions: dict[str, Reaction] = field(default_factory=dict)
    ehlo: bytes = EHLO
    tls: ssl.SSLContext | None = None
    implicit: bool = False
    received: list[bytes] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    connections: int = 0
    open_now: int = 0
    most_open: int = 0

    async def serve(self, stream: Stream) -> None:
        self.connections += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            await self._serve(stream)
        except (Hangup, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open_now -= 1
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await trio.aclose_forcefully(stream)

    async def _serve(self, stream: Stream) -> None:
        if self.implicit:
            assert self.tls
            stream = trio.SSLStream(stream, self.tls, server_side=True, https_compatible=True)
        buffer = bytearray()
        await self._say(stream, "GREETING", b"", b"220 peer ESMTP\r\n")
        secured = self.implicit
        while True:
            line = await self._until(stream, buffer, b"\r\n")
            self.lines.append(line)
            verb = line.split(b" ")[0].split(b":")[0].upper().decode()
            if verb == "EHLO":
                await self._say(stream, verb, line, self.ehlo)
            elif verb == "STARTTLS":
                await self._say(stream, verb, line, b"220 go\r\n")
                assert self.tls
                assert not secured
                stream = trio.SSLStream(stream, self.tls, server_side=True, https_compatible=True)
                secured = True
            elif verb == "AUTH":
                await self._auth(stream, buffer, line)
            elif verb == "DATA":
                if await self._say(stream, verb, line, b"354 go\r\n") != b"354 go\r\n":
                    continue
                buffer[:0] = b"\r\n"  # so that a lone dot ends it too
                content = (await self._until(stream, buffer, b"\r\n.\r\n"))[2:]
                if content:
                    self.received.append(content)
                await self._say(stream, "DOT", content, b"250 2.0.0 ok\r\n")
            elif verb == "QUIT":
                await self._say(stream, verb, line, b"221 bye\r\n")
                return
            else:
                await self._say(stream, verb, line, b"250 2.0.0 ok\r\n")

    async def _auth(self, stream: Stream, buffer: bytearray, line: bytes) -> None:
        if line.upper().startswith(b"AUTH LOGIN"):
            await stream.send_all(b"334 VXNlcm5hbWU6\r\n")
            user = base64.b64decode(await self._until(stream, buffer, b"\r\n"))
            await stream.send_all(b"334 UGFzc3dvcmQ6\r\n")
            password = base64.b64decode(await self._until(stream, buffer, b"\r\n"))
            good = (user, password) == (b"user", b"secret")
        else:
            good = base64.b64decode(line.split()[2]) == b"\0user\0secret"
        await self._say(stream, "AUTH", line, b"235 2.7.0 in\r\n" if good else b"535 5.7.8 no: " + line + b"\r\n")

    async def _say(self, stream: Stream, verb: str, line: bytes, default: bytes) -> Answer:
        reaction: Reaction = self.reactions.get(verb, default)
        answer = await reaction(self, line) if callable(reaction) else reaction
        if answer is not None:
            await stream.send_all(answer)
        return answer

    async def _until(self, stream: Stream, buffer: bytearray, end: bytes) -> bytes:
        while (at := buffer.find(end)) < 0:
            data = await stream.receive_some(65536)
            if not data:
                raise Hangup
            buffer += data
        found = bytes(buffer[:at])
        del buffer[: at + len(end)]
        return found


class Network:
    """`connect` for the engine: by host name to a `Peer` on memory streams.  An unknown host refuses.

    pair: makes them; those of `memory_stream_pair` take everything at once.
    """

    def __init__(self, nursery: trio.Nursery, peers: dict[str, Peer]) -> None:
        self.nursery = nursery
        self.peers = peers
        self.dials = 0
        self.hanging: set[str] = set()
        self.pair: Callable[[], tuple[Stream, Stream]] = memory_stream_pair

    async def connect(self, host: str, port: int) -> Stream:
        self.dials += 1
        if host in self.hanging:
            await trio.sleep_forever()
        if host not in self.peers:
            await trio.lowlevel.checkpoint()
            raise OSError(111, "Connection refused")
        ours, theirs = self.pair()
        self.nursery.start_soon(self.peers[host].serve, theirs)
        return ours


async def hang(peer: Peer, line: bytes) -> Answer:
    await trio.sleep_forever()
    return None


async def hang_up(peer: Peer, line: bytes) -> Answer:
    raise Hangup


def after(seconds: float, answer: bytes) -> Callable[[Peer, bytes], Awaitable[Answer]]:
    async def reaction(peer: Peer, line: bytes) -> Answer:
        await trio.sleep(seconds)
        return answer

    return reaction
