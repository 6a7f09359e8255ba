# SPDX-License-Identifier: Apache-2.0
"""Pitfalls P4 to P9 of the design, found in quart-trio 0.12 and hypercorn 0.18: each must stay cured."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from quart import Response

from hepmaild.http.app import App
from hepmaild.http.compat import Stream
from hepmaild.http.limits import Timeouts
from hepmaild.http.server import HttpDoor
from hepmaild.mail.submission import Receipt, Submission
from tests.conftest import LogEvents
from tests.http.door import GOOD, KEY, PATIENCE_S, RECEIPT, Running, load, open_door, read_all, until
from tests.peers.certificates import make_certificate

QUICK = Timeouts(idle_s=600, send_s=2, linger_s=0.5, close_s=1, grace_s=4)
POST = (
    f"POST /api/v1/email/send HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    'Content-Type: application/json\r\nContent-Length: 25\r\n\r\n{"to":"a@b.c","text":"x"}'
).encode()
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


async def endless() -> AsyncGenerator[bytes, None]:
    while True:
        yield b"x" * (64 << 10)


class BigDoor(HttpDoor):
    """With a page that does not fit into any socket buffer, and hooks that say that they ran."""

    hooks: list[str]

    def build(self, https_port: int) -> App:
        app = super().build(https_port)
        self.hooks = []

        @app.get("/big")
        async def big() -> Response:
            return Response(b"x" * (64 << 20))

        @app.get("/stream")
        async def stream() -> Response:
            return Stream(endless())

        @app.before_serving
        async def up() -> None:
            self.hooks.append("up")

        @app.after_serving
        async def down() -> None:
            self.hooks.append("down")

        return app


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[Running]:
    async with open_door(tmp_path, timeouts=QUICK, make=BigDoor) as running:
        yield running


@pytest.mark.parametrize("alpn", [None, "http/1.1"])
@pytest.mark.parametrize("by_library", [True, False])
async def test_p4_a_client_that_leaves_cancels_the_handler_but_not_what_is_shielded(
    quick: Running, alpn: str | None, by_library: bool
) -> None:
    """On the quick way nobody watches for the client: there the handler ends by itself."""
    log: list[str] = []
    inside, committed = trio.Event(), trio.Event()

    async def accept(_: Submission) -> Receipt:
        with trio.move_on_after(PATIENCE_S, shield=True):  # as the intake does with its unit
            inside.set()
            await trio.sleep(0.2)  # the work that must not be lost
            log.append("committed")
            committed.set()
        try:
            await trio.sleep(PATIENCE_S if by_library else 0.1)
            log.append("answered")
        except trio.Cancelled:
            log.append("cancelled")
            raise
        return RECEIPT

    quick.intake.accept_by = accept
    stream = await quick.connect(alpn)
    await stream.send_all(POST.replace(b"Host: x", b"Host: x\r\nConnection: close") if by_library else POST)
    with trio.fail_after(PATIENCE_S):
        await inside.wait()
        await trio.aclose_forcefully(stream)
        await committed.wait()
    await until(lambda: log == ["committed", "cancelled" if by_library else "answered"])


async def test_p5_connection_close_closes(quick: Running) -> None:
    stream = await quick.connect()
    await stream.send_all(GET + b"Connection: close\r\n\r\n")
    assert (await read_all(stream)).startswith(b"HTTP/1.1 200")  # long before the idle time-out
    await trio.aclose_forcefully(stream)


async def test_p5_an_idle_connection_closes(tmp_path: Path) -> None:
    async with open_door(tmp_path, timeouts=replace(QUICK, idle_s=2), make=BigDoor) as door:
        stream = await door.connect()
        await stream.send_all(GET + b"\r\n")
        assert (await read_all(stream)).startswith(b"HTTP/1.1 200")
        await trio.aclose_forcefully(stream)


async def test_p5_a_kept_connection_serves_again(quick: Running) -> None:
    stream = await quick.connect()
    for _ in range(5):
        await stream.send_all(POST)
        got = b""
        with trio.fail_after(PATIENCE_S):
            while not got.endswith(b"}}"):
                got += await stream.receive_some(4096)
        assert got.startswith(b"HTTP/1.1 200")
        await trio.sleep(0.05)
    await trio.aclose_forcefully(stream)


async def test_p5_pipelined_requests(quick: Running) -> None:
    stream = await quick.connect()
    await stream.send_all(POST * 3 + GET + b"Connection: close\r\n\r\n")
    assert (await read_all(stream)).count(b"HTTP/1.1 200") == 4
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
async def test_p6_a_client_that_stops_reading_does_not_keep_us(tmp_path: Path, alpn: str) -> None:
    async with open_door(tmp_path, timeouts=QUICK, make=BigDoor) as door:
        stream = await door.connect(alpn)
        if alpn == "h2":
            import h2.config
            import h2.connection

            h2c = h2.connection.H2Connection(h2.config.H2Configuration())
            h2c.initiate_connection()
            h2c.send_headers(
                1, [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", "/big")], end_stream=True
            )
            await stream.send_all(h2c.data_to_send())
        else:
            await stream.send_all(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.receive_some(1000)
        door.lifecycle.draining.set()
        await until(lambda: door.door.connections == 0)
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("leaves", [True, False])
async def test_p6_a_client_that_stops_reading_with_a_request_behind(quick: Running, leaves: bool) -> None:
    """The library's reader waited for the first answer to end, and kept the connection's place for ever."""
    stream = await quick.connect()
    await stream.send_all((GET.replace(b"/healthz", b"/stream") + b"\r\n") * 2)
    await stream.receive_some(100)
    if leaves:
        await trio.aclose_forcefully(stream)
    await until(lambda: quick.door.connections == 0)
    await trio.aclose_forcefully(stream)


async def test_p7_the_end_is_orderly(tmp_path: Path) -> None:
    """Drain: idle connections end at once, running requests get their answers, hooks run, the port is free."""
    answers: list[int] = []
    inside, leave = trio.Event(), trio.Event()

    async def accept(_: Submission) -> Receipt:
        inside.set()
        await leave.wait()
        return RECEIPT

    async with open_door(tmp_path, make=BigDoor) as door:
        assert isinstance(door.door, BigDoor)
        door.intake.accept_by = accept

        async def ask() -> None:
            answer = await door.post()
            answers.append(answer.status_code)
            assert answer.headers["connection"] == "close"

        idle = await door.connect()
        await idle.do_handshake()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await inside.wait()
            door.lifecycle.draining.set()
            assert await read_all(idle) == b""
            with pytest.raises(OSError):  # noqa: PT011
                await trio.open_tcp_stream("127.0.0.1", door.port)
            assert answers == []
            leave.set()
        assert answers == [200]
        await trio.aclose_forcefully(idle)
        hooks = door.door.hooks
        await until(lambda: hooks == ["up", "down"])


async def test_p7_it_can_be_started_again_on_the_same_port(quick: Running) -> None:
    port = quick.port
    quick.lifecycle.draining.set()
    await until(lambda: quick.door.hooks == ["up", "down"])  # type: ignore[attr-defined]
    quick.lifecycle.draining = trio.Event()
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(lambda task_status: quick.door.run(task_status=task_status))
        assert bound.https == [f"127.0.0.1:{port}"]
        assert (await quick.post()).status_code == 200
        quick.lifecycle.draining.set()


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
@pytest.mark.parametrize("octets", [b"", GET + b"\r\n"])
async def test_p8_a_client_that_closes_without_close_notify(
    quick: Running, alpn: str, octets: bytes, log_events: LogEvents
) -> None:
    stream = await quick.connect(alpn)
    await stream.do_handshake()
    if octets and alpn != "h2":
        await stream.send_all(octets)
        await stream.receive_some(100)
    await until(lambda: quick.door.connections == 1)
    await stream.transport_stream.aclose()  # TCP only: no TLS alert
    await until(lambda: quick.door.connections == 0)
    assert not [event for event in log_events if event["level"] in ("warning", "error")]


async def test_p8_a_client_that_closes_with_close_notify_alone(tmp_path: Path) -> None:
    """It waits for our own before it closes TCP, and is not kept until the idle time-out."""
    async with open_door(tmp_path) as door:
        stream = await door.connect()
        await stream.do_handshake()
        with trio.fail_after(PATIENCE_S):
            raw, _ = await stream.unwrap()
            assert await raw.receive_some() == b""
        await raw.aclose()
        await until(lambda: door.door.connections == 0)


async def test_p9_one_broken_connection_does_not_end_the_others(quick: Running, log_events: LogEvents) -> None:
    stream = await quick.connect()
    await stream.send_all(
        b"GET /live HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: \xff\r\n\r\n"  # the library crashes
    )
    await read_all(stream)
    await trio.aclose_forcefully(stream)
    assert len(log_events.named("http_connection_broken")) == 1
    assert (await quick.post()).status_code == 200


async def test_a_new_certificate_is_shown_to_new_connections(quick: Running, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    old = await quick.connect()
    load(quick.context, make_certificate(folder))
    with pytest.raises(trio.BrokenResourceError):  # this client trusts only the old one
        await quick.connect()
    quick.trust = ssl.create_default_context(cafile=str(folder / "localhost.crt"))
    assert (await quick.post(GOOD)).status_code == 200
    await trio.aclose_forcefully(old)
