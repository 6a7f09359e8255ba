# SPDX-License-Identifier: Apache-2.0
"""The listener on real sockets with little patience: nobody keeps a place, and nothing that fails goes further."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import trio

from hepmaild.metrics_listener import Bounds, MetricsListener, Render
from tests.conftest import LogEvents

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK = Bounds(connections=2, request_s=0.2, answer_s=0.3, idle_s=0.4, linger_s=0.2)
# For whoever is not to be cut off, however late a busy machine comes to it.
PATIENT = Bounds(connections=2, request_s=30, answer_s=30, idle_s=30, linger_s=0.2)


class Listening:
    def __init__(self, listener: MetricsListener, port: int) -> None:
        self.listener = listener
        self._port = port

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self._port)

    async def exchange(self, octets: bytes) -> bytes:
        """Send, end our side, and read to the end."""
        async with await self.connect() as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(octets)
                await stream.send_eof()
            return await read_all(stream)


async def read_all(stream: trio.SocketStream) -> bytes:
    found = bytearray()
    with trio.fail_after(30):
        try:
            while piece := await stream.receive_some():
                found += piece
        except trio.BrokenResourceError:
            pass
    return bytes(found)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  (what changes has no event)
            await trio.sleep(0.01)


@asynccontextmanager
async def listening(render: Render, bounds: Bounds) -> AsyncIterator[Listening]:
    listener = MetricsListener(["127.0.0.1:0"], render, bounds)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(listener.run)
        yield Listening(listener, int(addresses[0].rpartition(":")[2]))
        await until(lambda: listener.connections == 0)
        nursery.cancel_scope.cancel()


def page(octets: int = 10) -> Callable[[str], Awaitable[tuple[bytes, str]]]:
    async def render(accept: str) -> tuple[bytes, str]:
        return b"x" * octets, "text/plain"

    return render


async def test_a_page_that_fails_is_an_answer_and_a_line_in_the_log(log_events: LogEvents) -> None:
    log_events.expect_error("metrics_failed")

    async def render(accept: str) -> tuple[bytes, str]:
        raise ValueError("no figures")

    async with listening(render, PATIENT) as there:
        for _ in range(3):
            answer = await there.exchange(GET)
            assert answer.startswith(b"HTTP/1.1 500 ")
            assert b"no figures" not in answer
    assert len(log_events.named("metrics_failed")) == 3


async def test_who_does_not_read_loses_the_connection() -> None:
    """A page that fits no socket's buffers, and a client that takes none of it."""
    async with listening(page(64 << 20), replace(PATIENT, answer_s=1)) as there, await there.connect() as deaf:
        await deaf.send_all(GET)
        await until(lambda: there.listener.connections == 1)
        assert (await there.exchange(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        await until(lambda: there.listener.connections == 0)
        assert len(await read_all(deaf)) < 64 << 20


@pytest.mark.parametrize("octets", [b"", b"G", b"GET /metrics HTTP/1.1\r\nHost:", GET])
async def test_a_client_that_stops_at_any_point_is_cut_off(octets: bytes) -> None:
    async with listening(page(), QUICK) as there, await there.connect() as silent:
        if octets:
            await silent.send_all(octets)
        answer = await read_all(silent)
        assert answer.startswith(b"HTTP/1.1 200 ") == (octets == GET)


async def test_an_octet_now_and_then_is_not_patience_without_end() -> None:
    async with listening(page(), QUICK) as there, await there.connect() as slow:
        with trio.fail_after(30), suppress(trio.BrokenResourceError):
            while True:
                await slow.send_all(b"x")
                await trio.sleep(0.02)


async def test_idle_ones_make_room_and_busy_ones_do_not() -> None:
    async with listening(page(), PATIENT) as there, await there.connect() as oldest, await there.connect() as first:
        await until(lambda: there.listener.connections == 2)
        async with await there.connect() as second:
            assert await read_all(oldest) == b""
            for busy in (first, second):
                await busy.send_all(GET[:10])
            await until(lambda: there.listener.idle == 0)
            assert await there.exchange(GET) == b""
            for busy in (first, second):
                await busy.send_all(GET[10:])
                assert (await busy.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_requests_may_come_all_at_once() -> None:
    async with listening(page(), PATIENT) as there:
        answer = await there.exchange(GET * 20)
        assert answer.count(b"HTTP/1.1 200 ") == 20
