# SPDX-License-Identifier: Apache-2.0
"""The memory of TLS and of compressors goes with its connection, and does not wait for the collector."""

from __future__ import annotations

import gc
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
from quart import websocket
from wsproto.extensions import PerMessageDeflate

from hepmaild.http.app import App
from hepmaild.http.server import HttpDoor
from tests.http.door import GOOD, Running, open_door, read_all, until

ASK = (
    b"GET /words HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)
CLOSE = bytes.fromhex("8882 00000000 03e8")  # masked with zeros: 1000
PING = bytes.fromhex("8980 00000000")


class WithSocket(HttpDoor):
    """Has a websocket that speaks without an end, as the live pages do; `?words=N`: that ends by itself."""

    def build(self, https_port: int = 443) -> App:
        app = super().build(https_port)

        async def speak() -> None:
            left = int(websocket.args.get("words", "1000000"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_listen)
                for _ in range(left):
                    await websocket.send("word " * 200)
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

        async def _listen() -> None:
            while True:
                await websocket.receive()

        app.add_websocket("/words", "words", speak)
        return app


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what nobody refers to goes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def kept() -> tuple[int, int]:
    """How many ends of TLS of the door, and how many compressors, there are."""
    everything = gc.get_objects()
    ends = sum(isinstance(each, ssl.SSLObject) and each.server_side for each in everything)
    extensions = [each for each in everything if isinstance(each, PerMessageDeflate)]
    return ends, sum(each._compressor is not None for each in extensions)


async def by_http1(door: Running) -> None:
    await door.post(GOOD)
    async with door.client() as client:
        for path in ("/healthz", "/sign-in", "/nothing"):
            await client.get(path)


async def by_http2(door: Running) -> None:
    async with door.client(http2=True) as client:
        for path in ("/healthz", "/api/docs"):
            assert (await client.get(path)).http_version == "HTTP/2"


async def by_nonsense(door: Running) -> None:
    stream = await door.connect()
    await stream.send_all(b"nonsense\r\n\r\n")
    await read_all(stream)
    await stream.aclose()


async def by_handshake_alone(door: Running) -> None:
    stream = await door.connect()
    await stream.do_handshake()
    await trio.aclose_forcefully(stream)


async def _by_socket(door: Running, ask: bytes, *last_words: bytes) -> None:
    stream = await door.connect()
    await stream.send_all(ask)
    got = b""
    while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < 20:  # the first word is there
        got += bytes(await stream.receive_some(4096))
    assert b"permessage-deflate" in got
    for words in last_words:
        await stream.send_all(words)
        await read_all(stream)
    await trio.aclose_forcefully(stream)


async def by_socket(door: Running) -> None:
    await _by_socket(door, ASK)


async def by_socket_that_says_goodbye(door: Running) -> None:
    await _by_socket(door, ASK, CLOSE + PING)


async def by_socket_that_the_door_ends(door: Running) -> None:
    await _by_socket(door, ASK.replace(b"/words", b"/words?words=1"), b"")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "visit",
    [
        by_http1,
        by_http2,
        by_nonsense,
        by_handshake_alone,
        by_socket,
        by_socket_that_says_goodbye,
        by_socket_that_the_door_ends,
    ],
)
async def test_nothing_heavy_stays_behind(visit: Callable[[Running], Awaitable[None]], tmp_path: Path) -> None:
    async with open_door(tmp_path, make=WithSocket) as door:
        for _ in range(3):
            await visit(door)
        await until(lambda: door.door.connections == 0)
        await until(lambda: kept() in {(0, 0), (1, 0)})  # the loop that accepts still knows the last one
