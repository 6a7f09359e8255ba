# SPDX-License-Identifier: Apache-2.0
"""HTTP/2: what one stream does costs that stream, and what a connection may ask for has an end (`http/http2.py`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
import trio
import trio.testing
import wsproto
import wsproto.events
from hyperframe.frame import GoAwayFrame, PriorityFrame
from quart import Response, request, websocket
from trio.testing import MockClock

from hepmaild.errors import StoreUnavailable
from hepmaild.http.app import App
from hepmaild.http.call import STATE_KEY
from hepmaild.http.compat import Stream
from hepmaild.http.limits import Timeouts
from hepmaild.http.server import MAX_STREAMS, HttpDoor
from hepmaild.mail.submission import Receipt, Submission
from tests.conftest import LogEvents
from tests.http.door import KEY, PATIENCE_S, RECEIPT, Running, open_door, until

BODY = b'{"to":"a@b.c","text":"x"}'
PIECE = b"x" * (64 << 10)
PIECES = 40
FRAME = b"x" * 16_384
FIELDS = [(f"X-{n}", "x" * 1000) for n in range(300)]


class TestDoor(HttpDoor):
    """With a download that tells how much of it was made, and a websocket that waits for the other side to close it."""

    __test__ = False
    made = 0
    outage: trio.Event

    def build(self, https_port: int) -> App:
        app = super().build(https_port)

        async def pieces() -> AsyncGenerator[bytes, None]:
            for self.made in range(1, PIECES + 1):
                yield PIECE

        @app.get("/download")
        async def download() -> Response:
            return Stream(pieces())

        def have_kernel_take_little() -> None:
            facts: Any = request.scope["state"][STATE_KEY]  # type: ignore[typeddict-item]
            facts.stream.transport_stream.socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)

        @app.get("/many-fields")
        async def many_fields() -> Response:
            """More than the kernel takes while nobody reads."""
            have_kernel_take_little()
            return Stream(pieces(), headers=FIELDS)

        async def until_outage() -> AsyncGenerator[bytes, None]:
            yield FRAME
            await self.outage.wait()
            raise StoreUnavailable("away")

        @app.get("/export")
        async def export() -> Response:
            """Begins with as much, and breaks off."""
            have_kernel_take_little()
            return Stream(until_outage())

        @app.get("/page")
        async def page() -> Response:
            return Response(PIECE * PIECES)

        @app.websocket("/socket")
        async def socket() -> None:
            while True:
                await websocket.receive()

        return app


@pytest.fixture
async def door(tmp_path: Path, log_events: LogEvents) -> AsyncIterator[Running]:
    timeouts = Timeouts(send_s=2, linger_s=0.1, idle_s=20, grace_s=3)
    async with open_door(tmp_path, timeouts=timeouts, make=TestDoor) as running:
        yield running
        assert not log_events.named("http_connection_broken")


@pytest.fixture
async def patient(tmp_path: Path, log_events: LogEvents) -> AsyncIterator[Running]:
    """The same, for who takes little at a time."""
    async with open_door(tmp_path, make=TestDoor) as running:
        yield running
        assert not log_events.named("http_connection_broken")


class Client:
    """A connection that keeps what it hears."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        config = h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.heard: list[Any] = []

    def ask(self, stream_id: int, path: str | bytes = "/healthz") -> None:
        fields: list[tuple[Any, Any]] = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost")]
        self.h2.send_headers(stream_id, [*fields, (":path", path)], end_stream=True)

    def announce(self, stream_id: int, **more: str) -> None:
        """A send without its body."""
        fields = [(":method", "POST"), (":scheme", "https"), (":authority", "localhost")]
        fields += [(":path", "/api/v1/email/send"), ("authorization", f"Bearer {KEY}")]
        fields += [("content-type", "application/json"), *((name.replace("_", "-"), more[name]) for name in more)]
        self.h2.send_headers(stream_id, fields)

    def post(self, stream_id: int) -> None:
        self.announce(stream_id)
        self.h2.send_data(stream_id, BODY, end_stream=True)

    async def flush(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def hear(self, enough: Callable[[], bool]) -> None:
        """Send, then read until that."""
        await self.flush()
        with trio.fail_after(PATIENCE_S):
            while not enough():
                octets = await self.stream.receive_some(65536)
                if not octets:
                    raise EOFError(self.heard)
                self.heard += self.h2.receive_data(octets)
                await self.flush()

    async def hear_all(self) -> None:
        """All that the other side has to say to what was sent."""
        self.h2.ping(b"the last")
        pongs = len(self.of(h2.events.PingAckReceived))
        await self.hear(lambda: len(self.of(h2.events.PingAckReceived)) > pongs)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]

    def ended(self) -> set[int]:
        return {event.stream_id for event in self.of(h2.events.StreamEnded)}

    def resets(self) -> dict[int, int]:
        return {event.stream_id: event.error_code for event in self.of(h2.events.StreamReset)}

    def statuses(self) -> list[str]:
        return [dict(event.headers)[":status"] for event in self.of(h2.events.ResponseReceived)]

    def octets(self) -> int:
        return sum(len(event.data) for event in self.of(h2.events.DataReceived))


@pytest.fixture
async def client(door: Running) -> AsyncIterator[Client]:
    stream = await door.connect("h2")
    yield Client(stream)
    await trio.aclose_forcefully(stream)


class Held:
    """Sends that are accepted when the test says so."""

    def __init__(self, door: Running) -> None:
        self.inside = 0
        self.leave = trio.Event()
        door.intake.accept_by = self._accept

    async def _accept(self, _: Submission) -> Receipt:
        self.inside += 1
        await self.leave.wait()
        return RECEIPT


async def test_priorities_are_free(client: Client) -> None:
    """63 KB of them kept the daemon for ten seconds, and the thousandth stream named in them ended the connection."""
    frames = [PriorityFrame(number, depends_on=0, stream_weight=15) for number in range(101, 2101, 2)]
    octets = b"".join(frame.serialize() for frame in frames)
    await client.flush()
    for _ in range(5):
        await client.stream.send_all(octets)
    client.ask(1)
    await client.hear(lambda: 1 in client.ended())


async def test_an_answer_is_made_as_fast_as_it_is_taken(door: Running, client: Client) -> None:
    """It was all made and kept once the client's window was used up."""
    client.ask(1, "/download")
    await client.hear(lambda: client.octets() == 65535)
    for _ in range(20):
        await client.hear_all()
    assert isinstance(door.door, TestDoor)
    assert door.door.made <= 4
    client.h2.increment_flow_control_window(PIECES * len(PIECE))
    client.h2.increment_flow_control_window(PIECES * len(PIECE), 1)
    await client.hear(lambda: 1 in client.ended())
    assert client.octets() == PIECES * len(PIECE)


async def test_an_answer_that_nobody_takes_costs_its_stream(client: Client) -> None:
    client.ask(1, "/download")
    await client.hear(lambda: bool(client.resets()))
    assert client.resets() == {1: h2.errors.ErrorCodes.INTERNAL_ERROR}
    client.h2.increment_flow_control_window(1000)
    client.ask(3)
    await client.hear(lambda: 3 in client.ended())


@pytest.mark.parametrize("path", ["/download", "/page"])
async def test_a_slow_client_has_time_for_each_piece(mock_clock: MockClock, client: Client, path: str) -> None:
    """A large attachment, or the page of a large message, was cut off when all of it was not taken in 25 s."""
    mock_clock.rate = 0.1  # what the machine takes counts little
    client.ask(1, path)
    for number in range(PIECES):
        expected = number * len(PIECE)
        await client.hear(lambda expected=expected: client.octets() >= expected or client.resets())  # type: ignore[misc]
        assert not client.resets()
        mock_clock.jump(0.2)
        client.h2.increment_flow_control_window(len(PIECE))
        client.h2.increment_flow_control_window(len(PIECE), 1)
    await client.hear(lambda: 1 in client.ended())
    assert client.octets() == PIECES * len(PIECE)


async def test_who_opens_too_many_streams_may_open_them_again(door: Running, client: Client) -> None:
    """A client that has not read our settings yet, as Go's with a hundred calls at once: it lost all of them."""
    held = Held(door)
    for number in range(MAX_STREAMS + 10):
        client.post(2 * number + 1)
    await client.hear(lambda: len(client.resets()) == 10)
    assert set(client.resets().values()) == {h2.errors.ErrorCodes.REFUSED_STREAM}
    await until(lambda: held.inside == MAX_STREAMS)
    held.leave.set()
    await client.hear(lambda: len(client.ended()) == MAX_STREAMS)
    assert client.statuses() == ["200"] * MAX_STREAMS
    client.post(999)
    await client.hear(lambda: 999 in client.ended())


@pytest.mark.parametrize(
    ("more", "first"),
    [({}, "100"), ({"content_length": str(len(BODY))}, "100"), ({"content_length": "30000000"}, "413")],
)
async def test_who_waits_to_be_asked_for_a_body_is_asked(client: Client, more: dict[str, str], first: str) -> None:
    """RFC 9110 §10.1.1.  Java's client waits for that until its own time is up."""
    client.announce(1, expect="100-continue", **more)
    await client.hear(lambda: bool(client.of(h2.events.InformationalResponseReceived)) or 1 in client.ended())
    asked = client.of(h2.events.InformationalResponseReceived)
    assert [dict(event.headers)[":status"] for event in asked] + client.statuses() == [first]
    if first == "100":
        client.h2.send_data(1, BODY, end_stream=True)
        await client.hear(lambda: 1 in client.ended())
        assert client.statuses() == ["200"]


async def connect_narrow(door: Running) -> Client:
    """One whose kernel takes little while nobody reads."""
    raw = trio.socket.socket()
    raw.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
    await raw.connect(("127.0.0.1", door.port))
    return Client(door.secure(trio.SocketStream(raw), "h2"))


async def test_an_answer_that_breaks_off_while_it_is_sent_costs_its_stream(patient: Running) -> None:
    """It took every other stream of the connection along."""
    assert isinstance(patient.door, TestDoor)
    patient.door.outage = trio.Event()
    client = await connect_narrow(patient)
    client.ask(1, "/export")
    await client.flush()
    await trio.testing.wait_all_tasks_blocked(0.1)  # the kernel takes no more
    patient.door.outage.set()
    await trio.testing.wait_all_tasks_blocked(0.1)
    client.ask(3)
    await client.hear(lambda: 3 in client.ended())
    assert client.resets() == {1: h2.errors.ErrorCodes.INTERNAL_ERROR}
    assert client.statuses() == ["200", "200"]
    await trio.aclose_forcefully(client.stream)


async def test_who_takes_a_request_back_while_its_answer_begins_costs_its_stream(patient: Running) -> None:
    """What had been sent of a TLS record was left at that, and no other answer on the connection could be read."""
    client = await connect_narrow(patient)
    client.ask(1, "/many-fields")
    await client.flush()
    await trio.testing.wait_all_tasks_blocked(0.1)  # the kernel takes no more
    assert not patient.door.made
    client.h2.reset_stream(1)
    client.ask(3)
    await client.flush()
    await trio.testing.wait_all_tasks_blocked(0.1)
    client.h2.decoder.max_header_list_size = 2 << 20
    await client.hear(lambda: 3 in client.ended())
    assert client.statuses() == ["200"]
    await trio.aclose_forcefully(client.stream)


@pytest.mark.parametrize("more", [{"expect": "100-continue"}, {":path": "/ü"}])
async def test_who_takes_a_request_back_at_once_costs_its_stream(
    door: Running, client: Client, more: dict[str, str]
) -> None:
    held = Held(door)
    client.post(1)
    await client.flush()
    await until(lambda: held.inside == 1)
    if "expect" in more:
        client.announce(3, **more)
    else:
        client.ask(3, "/ü".encode())
    client.h2.reset_stream(3)
    await client.hear_all()
    held.leave.set()
    await client.hear(lambda: 1 in client.ended())
    assert client.statuses() == ["200"]


async def test_a_hundred_calls_at_once_are_allowed(client: Client) -> None:
    """RFC 9113 §6.5.2.  Java's client, which speaks HTTP/2 by itself, fails the calls that are more."""
    await client.hear_all()
    assert client.h2.remote_settings.max_concurrent_streams == MAX_STREAMS >= 100


@pytest.mark.parametrize("target", ["/ü".encode(), None])
async def test_a_target_that_is_none_costs_its_stream(door: Running, client: Client, target: bytes | None) -> None:
    held = Held(door)
    client.post(1)
    await client.flush()
    await until(lambda: held.inside == 1)
    if target is None:
        client.h2.send_headers(3, [(":method", "CONNECT"), (":authority", "x")], end_stream=True)
    else:
        client.ask(3, target)
    await client.hear(lambda: bool(client.resets()))
    assert client.resets() == {3: h2.errors.ErrorCodes.PROTOCOL_ERROR}
    held.leave.set()
    await client.hear(lambda: 1 in client.ended())
    assert client.statuses() == ["200"]


async def test_who_opens_no_more_streams_gets_the_answers(door: Running, client: Client) -> None:
    """As Node's `session.close()` has it."""
    held = Held(door)
    client.post(1)
    await client.flush()
    await client.stream.send_all(GoAwayFrame(0, last_stream_id=0).serialize())
    await until(lambda: held.inside == 1)
    await client.hear_all()
    held.leave.set()
    await client.hear(lambda: 1 in client.ended())
    assert client.statuses() == ["200"]


async def test_when_we_stop_nothing_is_lost(door: Running, client: Client) -> None:
    """A late request was reset as if it were done with, and an idle client was not told anything."""
    held = Held(door)
    idle = Client(await door.connect("h2"))
    idle.ask(1)
    await idle.hear(lambda: 1 in idle.ended())
    client.post(1)
    await client.flush()
    await until(lambda: held.inside == 1)
    door.lifecycle.draining.set()
    await idle.hear(lambda: bool(idle.of(h2.events.ConnectionTerminated)))
    (goodbye,) = idle.of(h2.events.ConnectionTerminated)
    assert (goodbye.error_code, goodbye.last_stream_id) == (h2.errors.ErrorCodes.NO_ERROR, 1)
    client.post(3)
    await client.hear(lambda: bool(client.resets()))
    assert client.resets() == {3: h2.errors.ErrorCodes.REFUSED_STREAM}
    held.leave.set()
    await client.hear(lambda: bool(client.of(h2.events.ConnectionTerminated)))
    assert client.statuses() == ["200"]
    assert client.ended() == {1}
    (goodbye,) = client.of(h2.events.ConnectionTerminated)
    assert (goodbye.error_code, goodbye.last_stream_id) == (h2.errors.ErrorCodes.NO_ERROR, 1)
    await trio.aclose_forcefully(idle.stream)


@pytest.mark.parametrize("turns", range(-3, 6))
async def test_who_leaves_while_we_stop_takes_nobody_along(turns: int, tmp_path: Path, log_events: LogEvents) -> None:
    """The goodbye to a connection that had just ended crashed the door, and whoever was being answered lost it.

    turns: of the loop, between our stop and their leaving; negative: they leave first.
    """
    async with open_door(tmp_path) as door:
        held = Held(door)
        client = Client(await door.connect("h2"))
        client.post(1)
        await client.flush()
        await until(lambda: held.inside == 1)
        leaving = [Client(await door.connect("h2")) for _ in range(5)]
        for each in leaving:
            each.ask(1)
            await each.hear(lambda each=each: 1 in each.ended())  # type: ignore[misc]
        for turn in range(-3, 6):
            if turn == 0:
                door.lifecycle.draining.set()
            if turn == turns:
                for each in leaving:
                    each.stream.transport_stream.socket.close()
            await trio.lowlevel.checkpoint()
        await until(lambda: door.door.connections == 1)
        held.leave.set()
        await client.hear(lambda: bool(client.of(h2.events.ConnectionTerminated)))
        assert client.statuses() == ["200"]
        await trio.aclose_forcefully(client.stream)
    assert not log_events.named("http_connection_broken")


async def test_fields_of_answers_are_remembered_as_far_as_we_like(client: Client) -> None:
    """Each answer looked through all that had gone before."""
    await client.hear_all()
    client.h2.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 1 << 30})
    client.h2.decoder.max_allowed_table_size = 1 << 30
    for number in range(1, 9, 2):
        client.ask(number)
        await client.hear(lambda number=number: number in client.ended())  # type: ignore[misc]
    assert client.h2.decoder.header_table_size == 4096


async def test_a_websocket_ends_with_its_stream(client: Client) -> None:
    await client.hear_all()
    fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":authority", "localhost")]
    client.h2.send_headers(1, [*fields, (":path", "/socket"), ("sec-websocket-version", "13")])
    await client.hear(lambda: client.statuses() == ["200"])
    protocol = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    client.h2.send_data(1, protocol.send(wsproto.events.CloseConnection(1000)))
    await client.hear(lambda: 1 in client.ended())
    for event in client.of(h2.events.DataReceived):
        protocol.receive_data(event.data)
    assert [type(event) for event in protocol.events()] == [wsproto.events.CloseConnection]
