# SPDX-License-Identifier: Apache-2.0
"""Who is connected in the moment in which the door stops."""

from __future__ import annotations

import socket
from pathlib import Path

import trio

from tests.http.door import PATIENCE_S, open_door, read_all

LOOPBACK = "127.0.0.1"
CALLERS = 5


def connect(port: int) -> socket.socket:
    """Without a turn for the door, which has not accepted it when this returns."""
    return socket.create_connection((LOOPBACK, port))


async def test_who_was_not_accepted_yet_is_answered(tmp_path: Path) -> None:
    """All but one of them were reset; a proxy makes a 502 of that."""
    async with open_door(tmp_path, plain=True, proxies=(LOOPBACK,)) as running:
        callers = [connect(running.plain_port) for _ in range(CALLERS)]
        for each in callers:
            each.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Proto: https\r\n\r\n")
        running.lifecycle.draining.set()
        for each in callers:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(each))
            assert (await read_all(stream)).startswith(b"HTTP/1.1 200 ")
            await stream.aclose()


async def test_who_was_not_accepted_yet_gets_tls_and_a_clean_end(tmp_path: Path) -> None:
    async with open_door(tmp_path) as running:
        callers = [connect(running.port) for _ in range(CALLERS)]
        running.lifecycle.draining.set()
        async with trio.open_nursery() as nursery:

            async def shake_hands(each: socket.socket) -> None:
                transport = trio.SocketStream(trio.socket.from_stdlib_socket(each))
                stream = trio.SSLStream(transport, running.trust, server_hostname="localhost")
                with trio.fail_after(PATIENCE_S):
                    assert await stream.receive_some() == b""
                await trio.aclose_forcefully(stream)

            for each in callers:
                nursery.start_soon(shake_hands, each)
