# SPDX-License-Identifier: Apache-2.0
"""The door on real sockets with real TLS: every dialogue again, ports, limits, the drain, hostile peers."""

from __future__ import annotations

import contextlib
import os
import smtplib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from hepmaild.config import LimitSettings, SmtpSettings
from hepmaild.lifecycle import Lifecycle
from hepmaild.smtp.listener import Bound, ConnectionCounter, SmtpDoor, open_listener, plain_ip
from tests.smtp.harness import HOSTNAME, contexts
from tests.smtp.scripted import Script, ScriptedIntake
from tests.smtp.transcript import Dialogue, Player, load_all

if TYPE_CHECKING:
    from tests.conftest import LogEvents

PATIENCE_S = 60
MESSAGE = b"From: a@example.com\r\nSubject: x\r\n\r\nbody\r\n"


class OpenDoor:
    """A door that serves, and what belongs to it."""

    def __init__(self, door: SmtpDoor, intake: ScriptedIntake, lifecycle: Lifecycle, bound: list[Bound]) -> None:
        self.door, self.intake, self.lifecycle, self.bound = door, intake, lifecycle, bound
        self.ended = trio.Event()

    def port(self, *, implicit: bool) -> int:
        return next(b.port for b in self.bound if b.implicit is implicit)

    async def until_idle(self) -> None:
        """Until no session is left."""
        with trio.fail_after(PATIENCE_S):
            while self.door.sessions:  # noqa: ASYNC110  (it tells nobody)
                await trio.sleep(0.01)


@asynccontextmanager
async def open_door(script: Script | None = None, **limits: float) -> AsyncIterator[OpenDoor]:
    size = int(limits.pop("max_message_bytes", 26_214_400))
    settings = SmtpSettings(("127.0.0.1:0",), ("127.0.0.1:0",), max_message_bytes=size)
    intake, lifecycle = ScriptedIntake(script), Lifecycle()
    door = SmtpDoor(
        settings,
        LimitSettings(**limits),  # type: ignore[arg-type]
        HOSTNAME,
        intake,
        lifecycle,
        lambda: contexts()[0],
    )
    async with trio.open_nursery() as nursery:
        opened = OpenDoor(door, intake, lifecycle, [])

        async def run(task_status: trio.TaskStatus[list[Bound]]) -> None:
            await door.run(task_status=task_status)
            opened.ended.set()

        opened.bound = await nursery.start(run)
        yield opened
        lifecycle.draining.set()
        with trio.fail_after(PATIENCE_S):
            await opened.ended.wait()


class TcpPeer:
    """A client over TCP."""

    def __init__(self, stream: trio.SocketStream, door: OpenDoor) -> None:
        self.transport = stream
        self.stream: trio.abc.Stream = stream
        self._door = door

    async def send(self, octets: bytes) -> None:
        with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(PATIENCE_S):
            await self.stream.send_all(octets)

    async def read(self) -> bytes:
        with trio.fail_after(PATIENCE_S):
            return bytes(await self.stream.receive_some(65536))

    async def starttls(self) -> None:
        tls = trio.SSLStream(self.transport, contexts()[1], server_hostname="localhost", https_compatible=True)
        with trio.fail_after(PATIENCE_S):
            await tls.do_handshake()
        self.stream = tls

    async def wait_idle(self) -> None:
        """The door of this test is impatient."""

    async def drain(self) -> None:
        self._door.lifecycle.draining.set()
        await trio.testing.wait_all_tasks_blocked()

    async def until(self, wanted: bytes) -> bytes:
        received = b""
        while wanted not in received:
            more = await self.read()
            assert more, f"the end came before {wanted!r}: {received!r}"
            received += more
        return received


@asynccontextmanager
async def connect(door: OpenDoor, *, implicit: bool = False) -> AsyncIterator[TcpPeer]:
    stream = await trio.open_tcp_stream("127.0.0.1", door.port(implicit=implicit))
    async with stream:
        peer = TcpPeer(stream, door)
        if implicit:
            await peer.starttls()
        yield peer


@pytest.mark.parametrize("dialogue", [pytest.param(d, id=d.name) for d in load_all() if d.needs != "connections=0"])
async def test_dialogue(dialogue: Dialogue) -> None:
    waits = any(step.verb == "wait idle" for step in dialogue.steps)
    async with open_door(
        Script(dialogue.intake),
        max_message_bytes=dialogue.size,
        recipients_per_message=dialogue.recipients,
        idle_timeout_s=5 if waits else 600,
    ) as door:
        async with connect(door, implicit=dialogue.implicit) as peer:
            await Player(dialogue, peer).play()
        await door.until_idle()


async def test_ports_are_logged_and_reported(log_events: LogEvents) -> None:
    async with open_door() as door:
        listening = log_events.named("listening")
        assert [(e["door"], e["address"]) for e in listening] == [(b.door, b.address) for b in door.bound]
        assert [e["door"] for e in listening] == ["smtp-starttls", "smtp-tls"]
        assert all(b.port > 0 for b in door.bound)


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen on {address}"):
            await open_listener(address)


@pytest.mark.parametrize("every", ["[::]:0", "*:0", ":0"])
async def test_all_addresses_means_ipv4_too(every: str) -> None:
    listening = await open_listener(every)
    with listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S):
            accepted, address = listening.accept()
            accepted.close()
    assert plain_ip(address[0]) == "127.0.0.1"


async def test_sockets_can_be_handed_over() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    lifecycle = Lifecycle()
    door = SmtpDoor(
        SmtpSettings(),
        LimitSettings(),
        HOSTNAME,
        ScriptedIntake(),
        lifecycle,
        lambda: contexts()[0],
        sockets=[(listening, False)],
    )
    async with trio.open_nursery() as nursery:
        (bound,) = await nursery.start(door.run)
        assert bound.port == listening.getsockname()[1]
        stream = await trio.open_tcp_stream("127.0.0.1", bound.port)
        async with stream:
            assert (await stream.receive_some()).startswith(b"220 ")
        lifecycle.draining.set()


@pytest.mark.parametrize("implicit", [False, True])
async def test_one_connection_too_many(implicit: bool, log_events: LogEvents) -> None:
    async with open_door(connections_per_ip=2) as door:
        async with connect(door) as first, connect(door, implicit=True) as second:
            await first.until(b"220 ")
            await second.until(b"220 ")
            async with connect(door, implicit=implicit) as third:
                assert await third.until(b"\r\n") == b"421 4.7.0 Too many connections from your address\r\n"
                assert await third.read() == b""
        await door.until_idle()
        async with connect(door) as fourth:
            await fourth.until(b"220 ")
    assert len(log_events.named("connection_refused")) == 1


def test_an_ipv6_client_is_its_network() -> None:
    counter = ConnectionCounter(2)
    assert counter.enter("2001:db8::1")
    assert counter.enter("2001:db8::2")
    assert not counter.enter("2001:db8::ffff:3")
    assert counter.enter("2001:db8:0:1::1")
    assert counter.enter("192.0.2.1")
    counter.leave("2001:db8::1")
    assert counter.enter("2001:db8::9")
    for ip in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "192.0.2.1"):
        counter.leave(ip)
    assert counter.total == 0


async def test_drain_tells_idle_sessions_and_lets_the_others_finish() -> None:
    async with open_door() as door, connect(door) as idle, connect(door, implicit=True) as busy:
        await idle.until(b"220 ")
        await busy.until(b"220 ")
        await busy.send(b"EHLO c\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\n")
        await busy.until(b"235 ")
        await busy.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
        await busy.until(b"354 ")
        door.lifecycle.draining.set()
        assert (await idle.until(b"\r\n")).startswith(b"421 4.3.2 ")
        assert await idle.read() == b""
        with pytest.raises(OSError, match=r"refused|reset|connect"):
            await trio.open_tcp_stream("127.0.0.1", door.port(implicit=False))
        await busy.send(MESSAGE + b".\r\n")
        assert (await busy.until(b"421 ")).startswith(b"250 2.0.0 queued as ")
        assert await busy.read() == b""


async def test_smtplib_on_both_ports() -> None:
    def send(port: int, implicit: bool) -> None:
        context = contexts()[1]
        if implicit:
            client: smtplib.SMTP = smtplib.SMTP_SSL("localhost", port, context=context, timeout=PATIENCE_S)
        else:
            client = smtplib.SMTP("localhost", port, timeout=PATIENCE_S)
            client.starttls(context=context)
        with client:
            client.login("user", "secret")
            for _ in range(2):
                client.sendmail("a@example.com", ["b@example.com", "c@example.com"], MESSAGE)

    async with open_door() as door:
        for implicit in (False, True):
            await trio.to_thread.run_sync(send, door.port(implicit=implicit), implicit)
        assert door.intake.bodies == [MESSAGE] * 4
        assert door.intake.secrets == ["secret"] * 2


async def test_a_client_that_sends_on_behind_a_refusal_sees_the_refusal() -> None:
    """Closing with octets unread would reset the connection and lose the 550."""
    async with open_door() as door, connect(door, implicit=True) as peer:
        await peer.until(b"220 ")
        await peer.send(b"EHLO c\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\n")
        await peer.until(b"235 ")
        await peer.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
        await peer.until(b"354 ")
        await peer.send(b"bare\nLF\r\n.\r\n" + b"NOOP\r\n" * 100_000)
        assert (await peer.until(b"\r\n")).startswith(b"550 5.6.0 ")
        assert await peer.read() == b""


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(4000),
        b"EHLO c\r\nSTARTTLS\r\n",
    ],
)
@pytest.mark.parametrize("implicit", [False, True])
async def test_peers_that_vanish_leave_nothing(octets: bytes, implicit: bool, log_events: LogEvents) -> None:
    async with open_door() as door:
        for reset in (False, True):
            stream = await trio.open_tcp_stream("127.0.0.1", door.port(implicit=implicit))
            if octets:
                await stream.send_all(octets)
            if reset:
                linger = b"\1\0\0\0\0\0\0\0"
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await stream.aclose()
        with trio.fail_after(PATIENCE_S):
            while len(log_events.named("session_closed")) < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await door.until_idle()
    assert len(log_events.named("session_closed")) == 2


async def test_a_stream_of_content_stays_out_of_memory() -> None:
    """25 MB by slow pieces, spooled; the octets arrive whole."""
    block = (b"0123456789" * 7 + b"\r\n") * 1000
    async with open_door() as door, connect(door, implicit=True) as peer:
        await peer.until(b"220 ")
        await peer.send(b"EHLO c\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\n")
        await peer.until(b"235 ")
        await peer.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
        await peer.until(b"354 ")
        await peer.send(b"Subject: x\r\n\r\n")
        for _ in range(300):
            await peer.send(block)
        await peer.send(b".\r\n")
        await peer.until(b"250 2.0.0 queued as ")
        (body,) = door.intake.bodies
        assert body == b"Subject: x\r\n\r\n" + block * 300, "the octets differ"
        assert door.intake.accepted[0].source.is_spooled  # type: ignore[union-attr]
