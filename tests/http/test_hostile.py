# SPDX-License-Identifier: Apache-2.0
"""Slow, half-open, malformed and oversized requests: an answer or an end in bounded time, and the door stays well.

Every test ends with a good request, and with no connection, spool file or ERROR line left.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import trio

from hepmaild.http.errors import malformed_body
from hepmaild.http.limits import Timeouts
from hepmaild.mail.submission import Receipt, Submission
from tests.http.door import KEY, PATIENCE_S, RECEIPT, Running, open_door, read_all, until

# For whoever says something in good time; on a machine that is busy that may take a while.
QUICK = Timeouts(body_s=3, body_idle_s=1, send_s=2, linger_s=0.5, close_s=1, grace_s=3)
SILENT = replace(QUICK, handshake_s=1, idle_s=1)  # for whoever does not
HEAD = f"POST /api/v1/email/send HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[Running]:
    """A door with little patience for bodies, that must be well again at the end."""
    async with open_door(tmp_path, plain=True, timeouts=QUICK) as running:
        before = descriptors()
        yield running
        assert (await running.post()).status_code == 200
        await until(lambda: running.door.connections == 0)
        await until(lambda: descriptors() <= before)


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[Running]:
    """The same with none for silence either: a good request has to be in time itself, and is tried until it is."""
    async with open_door(tmp_path, plain=True, timeouts=SILENT) as running:
        before = descriptors()
        yield running
        with trio.fail_after(PATIENCE_S):
            while True:
                with suppress(httpx.TransportError):
                    assert (await running.post()).status_code == 200
                    break
        await until(lambda: running.door.connections == 0)
        await until(lambda: descriptors() <= before)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def exchange(door: Running, octets: bytes) -> bytes:
    """Send exactly these octets over TLS, and read until the server ends the connection, maybe ahead of the last."""
    stream = await door.connect()
    try:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(octets)
        return await read_all(stream)
    finally:
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",  # no Host
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\x00Y: z\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        HEAD + b"Content-Length: -5\r\n\r\n{}",
        HEAD + b"Content-Length: 99999999999999999999999999\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD
        + b"Content-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 1000,
        bytes(range(256)) * 200,
    ],
)
async def test_malformed(hasty: Running, octets: bytes) -> None:
    answer = await exchange(hasty, octets)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5", b"\x00\x00")), answer[:100]
    if answer.startswith(b"HTTP") and b"text/plain" not in answer:  # a page that is not there
        told_properly(answer)
    assert not hasty.intake.submissions


def told_properly(answer: bytes) -> dict[str, Any]:
    """The body of an answer that is complete, whoever made it: JSON, and the id of the request."""
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert fields[b"content-type"] == b"application/json"
    assert int(fields[b"content-length"]) == len(body)
    assert fields[b"x-request-id"]
    told: dict[str, Any] = json.loads(body)
    return told


@pytest.mark.parametrize(
    "fields", ["Content-Length: 4\r\nTransfer-Encoding: chunked", "transfer-encoding: Chunked\r\ncontent-length: 0"]
)
async def test_nothing_is_served_behind_a_body_with_two_lengths(quick: Running, fields: str) -> None:
    """RFC 9112 §6.1: what follows may be somebody else's, smuggled through a proxy that goes by the other length."""
    first = f"GET /api/nowhere HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n0\r\n\r\n"
    answer = await exchange(quick, first.encode() + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert told_properly(answer)["code"] == "NOT_FOUND"
    assert b"\r\nconnection: close\r\n" in answer.lower()


async def test_a_body_that_becomes_malformed(quick: Running) -> None:
    """The application reads it already; the answer is the same."""
    stream = await quick.connect()
    await stream.send_all(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    await stream.send_all(b"zz\r\n")
    answer = await read_all(stream)
    await trio.aclose_forcefully(stream)
    assert answer.startswith(b"HTTP/1.1 400")
    assert told_properly(answer)["code"] == "MALFORMED_REQUEST"


@pytest.mark.parametrize(
    ("path", "code"),
    [("", "MALFORMED_REQUEST"), ("/v1/emails", "invalid_request"), ("/oauth/revoke", 40004)],
)
def test_malformed_is_told_in_the_form_of_its_call(path: str, code: str | int) -> None:
    assert json.loads(malformed_body(400, path))["code"] == code


@pytest.mark.parametrize(
    "target",
    [
        "?x",
        "*",
        "http://[",
        "http://localhost/healthz",
        "//healthz",
        "/%ff%00",
        "/../../etc/passwd",
        "x:y",
        "/\\",
        "/;",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "CONNECT"])
async def test_strange_targets(quick: Running, target: str, method: str) -> None:
    answer = await exchange(
        quick, f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
    )
    expected = (b"HTTP/1.1 200", b"HTTP/1.1 404", b"HTTP/1.1 405", b"HTTP/1.1 400")
    assert answer.startswith(expected), answer[:200]


@pytest.mark.parametrize("host", ["", "a b", "x:y:z", "é", "[::1", "a" * 300, "x/../y", "@", "localhost:99999999"])
async def test_strange_hosts(quick: Running, host: str) -> None:
    octets = b"GET /api/nope HTTP/1.1\r\nHost: " + host.encode() + b"\r\nConnection: close\r\n\r\n"
    assert (await exchange(quick, octets)).startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))


async def test_websocket_upgrades_to_nowhere(quick: Running) -> None:
    for path in ("/", "/api/v1/email/send", "/live"):
        answer = await exchange(
            quick,
            f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode(),
        )
        assert answer.startswith(b"HTTP/1.1 4"), answer[:200]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/api/v1/email/send", (405, "METHOD_NOT_ALLOWED")),
        ("/api/nowhere", (404, "NOT_FOUND")),
        ("/api/openapi.json", (404, "NOT_FOUND")),
        ("/v1/nowhere", (404, "not_found")),
        ("/oauth/me", (404, 40401)),
    ],
)
async def test_programs_that_ask_for_a_websocket_are_answered_as_to_anything(
    quick: Running, path: str, told: tuple[int, str | int]
) -> None:
    """It was an empty page without the request's id."""
    ask = (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Request-Id: mine\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = await exchange(quick, ask.encode())
    assert (int(answer.split()[1]), told_properly(answer)["code"]) == told
    assert b"\r\nx-request-id: mine\r\n" in answer


@pytest.mark.parametrize(
    "fields", ["Sec-WebSocket-Version: 12\r\nSec-WebSocket-Key: x\r\n", "Sec-WebSocket-Version: 13\r\n"]
)
async def test_a_websocket_handshake_that_is_none(quick: Running, fields: str) -> None:
    """The library answered, and then kept the connection for as long as the client did."""
    ask = f"GET /live HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-{fields}\r\n"
    assert (await exchange(quick, ask.encode())).startswith(b"HTTP/1.1 400 ")


async def test_h2c_upgrade(hasty: Running) -> None:
    octets = (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"HTTP2-Settings: %%%\r\n\r\n"
    )
    await exchange(hasty, octets)


async def test_no_handshake(hasty: Running) -> None:
    for octets in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"\x80" * 500):
        stream = await trio.open_tcp_stream("127.0.0.1", hasty.port)
        await stream.send_all(octets)
        await read_all(stream)
        await stream.aclose()


@pytest.mark.parametrize("octets", [b"", b"\x16\x03\x01"])
async def test_who_never_begins_with_tls_does_not_hold_the_drain(tmp_path: Path, octets: bytes) -> None:
    """A stranger's silent connection: every stop waited for it, and no port was open meanwhile."""
    patient = Timeouts(handshake_s=600, grace_s=600)
    with trio.fail_after(2 * PATIENCE_S):
        async with open_door(tmp_path, timeouts=patient) as running:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            await stream.send_all(octets)
            assert (await running.post()).status_code == 200  # by another connection; the first was accepted before it
            running.lifecycle.draining.set()
            await read_all(stream)
            await stream.aclose()


@pytest.mark.parametrize("octets", [b"", b"POST /api/v1/em", HEAD])
async def test_a_header_that_never_ends(hasty: Running, octets: bytes) -> None:
    assert await exchange(hasty, octets) == b""


async def test_a_header_that_drips(hasty: Running) -> None:
    stream = await hasty.connect()

    async def drip() -> None:
        with suppress(trio.BrokenResourceError):
            for octet in HEAD * 20:
                await stream.send_all(bytes([octet]))
                await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        assert await read_all(stream) == b""
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("sent", [b"", b'{"to":'])
async def test_a_body_that_stops(quick: Running, sent: bytes) -> None:
    answer = await exchange(quick, HEAD + b"Content-Length: 1000\r\nContent-Type: application/json\r\n\r\n" + sent)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"INVALID_JSON" in answer
    assert quick.intake.calls == 1


async def test_a_body_that_drips(quick: Running) -> None:
    stream = await quick.connect()
    await stream.send_all(HEAD + b"Content-Length: 1000\r\nContent-Type: application/json\r\n\r\n")

    async def drip() -> None:
        with suppress(trio.BrokenResourceError):
            for _ in range(1000):
                await stream.send_all(b" ")
                await trio.sleep(0.2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        assert b"INVALID_JSON" in await read_all(stream)
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_in_the_middle_of_its_body(quick: Running, reset: bool) -> None:
    for size in (10, 3_000_000):
        stream = await quick.connect()
        await stream.send_all(
            HEAD + b"Content-Length: 20000000\r\nContent-Type: application/json\r\n\r\n" + b" " * size
        )
        await until(lambda: quick.intake.calls > 0)
        if reset:
            linger = struct.pack("ii", 1, 0)
            stream.transport_stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await trio.aclose_forcefully(stream)
        await until(lambda: quick.door.connections == 0)
    assert not quick.intake.submissions


async def test_the_answer_is_seen_by_a_client_that_still_sends(door: Running) -> None:
    """Refused for its length, it must not find its connection reset before it has read why."""
    stream = await door.connect()
    await stream.send_all(HEAD + b"Content-Length: 30000000\r\n\r\n")
    got = b""

    async def send() -> None:
        try:
            for _ in range(300):
                await stream.send_all(b" " * 100_000)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        got = await read_all(stream)
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)
    assert got.startswith(b"HTTP/1.1 413")
    assert b"REQUEST_TOO_LARGE" in got
    assert b"Connection: close" in got or b"connection: close" in got
    assert (await door.post()).status_code == 200


@pytest.mark.parametrize(("length", "first"), [(30_000_000, b"HTTP/1.1 413"), (1000, b"HTTP/1.1 100")])
async def test_who_asks_before_sending_is_told_at_once(quick: Running, length: int, first: bytes) -> None:
    """RFC 9110 §10.1.1: a final status may come in place of 100, and nobody sends 30 MB for nothing."""
    head = HEAD + b"Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length
    stream = await quick.connect()
    await stream.send_all(head)
    if length > 1000:
        got = await read_all(stream)
        assert b"REQUEST_TOO_LARGE" in got
    else:
        with trio.fail_after(PATIENCE_S):
            got = await stream.receive_some(65536)
    await trio.aclose_forcefully(stream)
    assert got.startswith(first)


@pytest.mark.parametrize("line", [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nConnection: close\r\n"])
@pytest.mark.parametrize("tail", [b"\r\n", b"\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
@pytest.mark.parametrize("is_late", [True, False])
async def test_what_comes_behind_the_last_request_is_not_looked_at(
    quick: Running, line: bytes, tail: bytes, is_late: bool
) -> None:
    """It was answered as malformed, while the message before it left (RFC 9112 §2.2, §9.6)."""
    inside, leave = trio.Event(), trio.Event()

    async def accept(_: Submission) -> Receipt:
        inside.set()
        await leave.wait()
        return RECEIPT

    quick.intake.accept_by = accept
    fields = b"Content-Type: application/json\r\nContent-Length: 25\r\n\r\n"
    octets = HEAD.replace(b"HTTP/1.1\r\n", line) + fields + b'{"to":"a@b.c","text":"x"}'
    stream = await quick.connect()
    await stream.send_all(octets if is_late else octets + tail)
    await inside.wait()
    if is_late:
        await stream.send_all(tail)
    leave.set()
    got = await read_all(stream)
    await trio.aclose_forcefully(stream)
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.count(b"HTTP/1.1 ") == 1
    quick.intake.accept_by = None


async def test_empty_lines_between_requests(quick: Running) -> None:
    """Old clients send one behind each body: the connection ended, with an answer to nothing (RFC 9112 §2.2)."""
    head = HEAD + b"Content-Type: application/json\r\nContent-Length: 25\r\n"
    body = b'{"to":"a@b.c","text":"x"}\r\n'
    got = await exchange(quick, b"\r\n" + (head + b"\r\n" + body) * 3 + head + b"Connection: close\r\n\r\n" + body)
    assert got.count(b"HTTP/1.1 ") == got.count(b"HTTP/1.1 200 ") == 4


async def test_more_connections_than_are_told(quick: Running) -> None:
    streams = [await trio.open_tcp_stream("127.0.0.1", quick.port) for _ in range(20 + 20 + 15)]
    await until(lambda: quick.door.connections == 40)
    for stream in streams:
        await stream.aclose()


class H2Client:
    """A raw HTTP/2 connection."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events: list[Any] = []

    async def flush(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    def request(self, stream_id: int, *, length: int | None = None, end: bool = True, path: str = "") -> None:
        headers = [(":method", "POST"), (":scheme", "https"), (":authority", "x"),
                   (":path", path or "/api/v1/email/send"), ("authorization", f"Bearer {KEY}"),
                   ("content-type", "application/json")]  # fmt: skip
        if length is not None:
            headers.append(("content-length", str(length)))
        self.h2.send_headers(stream_id, headers, end_stream=end)

    async def read_until_end_of(self, stream_id: int) -> int:
        """The status of the answer."""
        status = 0
        with trio.fail_after(PATIENCE_S):
            while True:
                octets = await self.stream.receive_some(65536)
                if not octets:
                    raise EOFError
                for event in self.h2.receive_data(octets):
                    if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream_id:
                        fields: Any = event.headers
                        status = int(dict(fields)[":status"])
                    if isinstance(event, h2.events.StreamEnded) and event.stream_id == stream_id:
                        return status
                await self.flush()


async def open_h2(door: Running) -> H2Client:
    return H2Client(await door.connect("h2"))


async def test_http2_octets_for_a_stream_that_is_answered(quick: Running) -> None:
    """The library raised KeyError there, which ended the whole server (regression)."""
    client = await open_h2(quick)
    client.request(1, length=30_000_000, end=False)
    await client.flush()
    assert await client.read_until_end_of(1) == 413
    for _ in range(3):
        client.h2.send_data(1, b"x" * 1000)
    client.request(3, end=False)
    client.h2.send_data(3, b'{"to":"a@b.c","text":"x"}', end_stream=True)
    await client.flush()
    assert await client.read_until_end_of(3) == 200
    await trio.aclose_forcefully(client.stream)


async def test_http2_body_that_stops(quick: Running) -> None:
    client = await open_h2(quick)
    client.request(1, end=False)
    client.h2.send_data(1, b'{"to":')
    await client.flush()
    assert await client.read_until_end_of(1) == 400
    await trio.aclose_forcefully(client.stream)


@pytest.mark.parametrize("path", ["?x", "*", "/\xff", "x"])
async def test_http2_strange_paths(hasty: Running, path: str) -> None:
    client = await open_h2(hasty)
    client.request(1, path=path)
    with suppress(EOFError, trio.BrokenResourceError):
        await client.flush()
        assert await client.read_until_end_of(1) in (400, 404, 405)
    await trio.aclose_forcefully(client.stream)


async def test_http2_garbage(hasty: Running) -> None:
    for octets in (b"", b"\x00" * 500, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100):
        stream = await hasty.connect("h2")
        with suppress(trio.BrokenResourceError):
            await stream.send_all(octets or b"\x00")
        await read_all(stream)
        await trio.aclose_forcefully(stream)


async def test_http2_connect_without_a_path(hasty: Running) -> None:
    client = await open_h2(hasty)
    client.h2.send_headers(1, [(":method", "CONNECT"), (":authority", "x")], end_stream=True)
    with suppress(trio.BrokenResourceError):
        await client.flush()
    await read_all(client.stream)
    await trio.aclose_forcefully(client.stream)


async def test_http2_silence_after_a_reset(hasty: Running) -> None:
    client = await open_h2(hasty)
    client.request(1, end=False)
    client.h2.reset_stream(1)
    with suppress(trio.BrokenResourceError):
        await client.flush()
    await read_all(client.stream)
    await trio.aclose_forcefully(client.stream)


async def test_http2_resets_in_a_row(quick: Running) -> None:
    """CVE-2023-44487: opened and reset at once, many times."""
    client = await open_h2(quick)
    for number in range(1, 400, 2):
        client.request(number, end=False)
        client.h2.reset_stream(number)
    await client.flush()
    await trio.aclose_forcefully(client.stream)


@pytest.mark.parametrize(("path", "code"), [("/live", b""), ("/api/nowhere", b'"HTTPS_REQUIRED"')])
async def test_no_websocket_without_tls(door: Running, path: str, code: bytes) -> None:
    """Before anything is looked at: what it would tell, and the pass that opens it, are for no network to read."""
    stream = await trio.open_tcp_stream("127.0.0.1", door.plain_port)
    async with stream:
        await stream.send_all(
            b"GET %s HTTP/1.1\r\nHost: localhost\r\nOrigin: https://localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            % path.encode()
        )
        answer = await read_all(stream, PATIENCE_S)
    assert answer.startswith(b"HTTP/1.1 403"), answer
    assert code in answer
