# SPDX-License-Identifier: Apache-2.0
"""The engine over real sockets: Postfix's smtp-sink, and a next hop with real TLS and AUTH."""

from __future__ import annotations

import os
import socket
import socketserver
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from hepmaild.config import DeliverySettings, RouteKind, TlsMode
from hepmaild.delivery.client import Credentials
from hepmaild.delivery.job import Attempt, Result
from hepmaild.delivery.pool import DeliveryPool
from hepmaild.delivery.route import Route
from hepmaild.lifecycle import Lifecycle
from tests.delivery.memory_queue import MemoryQueue
from tests.delivery.peer import Answer, Hangup, Peer, hang
from tests.peers.certificates import Certificate, make_certificate
from tests.peers.processes import Child, free_port, open_folder, port_answers
from tests.peers.programs import find_program, require
from tests.peers.threaded import serving

DEADLINE_S = 60
EHLO_TLS = b"250-peer\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN\r\n"


def now_us() -> int:
    return time.time_ns() // 1000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def listening(peer: Peer, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """The port on which `peer` serves."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        nursery.start_soon(trio.serve_listeners, peer.serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def make_pool(
    route: Route,
    queue: MemoryQueue,
    lifecycle: Lifecycle,
    reported: list[Attempt],
    settings: DeliverySettings | None = None,
) -> DeliveryPool:
    return DeliveryPool(
        settings or DeliverySettings(),
        [route],
        queue,
        lifecycle,
        "me.example",
        state_dir=Path("/nonexistent"),
        now_us=now_us,
        random=lambda: 0.5,
        on_reported=reported.append,
    )


async def deliver(
    route: Route, *bodies: bytes, attempts: int = 0, settings: DeliverySettings | None = None
) -> list[Attempt]:
    """One attempt for each body on a pool of its own, after which it drains."""
    queue = MemoryQueue(now_us)
    lifecycle = Lifecycle()
    reported: list[Attempt] = []
    pool = make_pool(route, queue, lifecycle, reported, settings)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            for n, body in enumerate(bodies):
                assert pool.offer_nowait(queue.add(f"m{n}", body=body, leased=True))
            await queue.until(lambda: len(reported) == (attempts or len(bodies)))
            lifecycle.draining.set()
    return reported


def route_to(
    port: int, tls: TlsMode, *, ca: Certificate | None = None, login: bool = False, host: str = "localhost"
) -> Route:
    return Route(
        "upstream",
        RouteKind.SMTP,
        host,
        port,
        tls,
        tls_ca=str(ca.certificate) if ca else "",
        credentials=Credentials("user", "secret") if login else None,
    )


def server_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.certificate, certificate.private_key)
    return context


BODY = b"Subject: x\r\n\r\n.dots\r\nhello\r\n"


@pytest.mark.parametrize("tls", [TlsMode.STARTTLS, TlsMode.IMPLICIT, TlsMode.OPPORTUNISTIC])
@pytest.mark.parametrize("offer", [b"PLAIN", b"LOGIN"])
async def test_tls_and_login(certificate: Certificate, tls: TlsMode, offer: bytes) -> None:
    peer = Peer(
        ehlo=EHLO_TLS.replace(b"PLAIN LOGIN", offer),
        tls=server_context(certificate),
        implicit=tls is TlsMode.IMPLICIT,
    )
    async with listening(peer) as port:
        attempts = await deliver(route_to(port, tls, ca=certificate, login=True), BODY, BODY)
    assert [a.outcomes[0].result for a in attempts] == [Result.DELIVERED] * 2
    assert peer.received == [b"Subject: x\r\n\r\n..dots\r\nhello"] * 2
    assert attempts[0].tls_version == "TLSv1.3"
    assert attempts[0].host.endswith(f":{port}")
    assert attempts[0].host.startswith("localhost[")
    said = str([a.steps for a in attempts])
    assert "secret" not in said
    assert "AHVzZXIAc2VjcmV0" not in said


@pytest.mark.parametrize("tls", [TlsMode.STARTTLS, TlsMode.IMPLICIT])
async def test_a_certificate_that_is_not_good_defers(certificate: Certificate, tls: TlsMode, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, name="elsewhere.example")
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(certificate), implicit=tls is TlsMode.IMPLICIT)
    async with listening(peer) as port:
        [attempt] = await deliver(route_to(port, tls, ca=other, login=True), BODY)
    [outcome] = attempt.outcomes
    assert outcome.result is Result.DEFERRED
    assert outcome.reply is not None
    assert "the certificate is not good" in outcome.reply.text
    assert not any(line.startswith(b"AUTH") for line in peer.lines)


async def test_a_certificate_for_another_name_defers(certificate: Certificate) -> None:
    # The listener has all of 127.0.0.0/8; the certificate names 127.0.0.1 only.
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(certificate))
    async with listening(peer, host="0.0.0.0") as port:
        [attempt] = await deliver(route_to(port, TlsMode.STARTTLS, ca=certificate, host="127.0.0.2"), BODY)
    assert attempt.outcomes[0].result is Result.DEFERRED
    assert "the certificate is not good" in str(attempt.outcomes[0].reply)


async def test_a_wrong_password_defers_and_is_not_shown(certificate: Certificate) -> None:
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(certificate))
    async with listening(peer) as port:
        route = Route(
            "upstream",
            RouteKind.SMTP,
            "localhost",
            port,
            TlsMode.STARTTLS,
            tls_ca=str(certificate.certificate),
            credentials=Credentials("user", "hunter22"),
        )
        [attempt] = await deliver(route, BODY)
    [outcome] = attempt.outcomes
    assert outcome.result is Result.DEFERRED
    assert outcome.reply is not None
    assert outcome.reply.code == 535
    assert "AUTH PLAIN ****" in str(attempt.steps)
    assert "aHVudGVyMjI" not in str(attempt)
    assert "hunter22" not in str(attempt)
    assert "hunter22" not in repr(route)


async def test_a_ca_file_that_is_missing_defers() -> None:
    route = Route("upstream", RouteKind.SMTP, "localhost", 9, TlsMode.STARTTLS, tls_ca="/nonexistent/ca.pem")
    [attempt] = await deliver(route, BODY)
    assert attempt.outcomes[0].result is Result.DEFERRED
    assert "/nonexistent/ca.pem" in str(attempt.outcomes[0].reply)


async def test_opportunistic_goes_plain_when_the_handshake_fails(certificate: Certificate) -> None:
    context = server_context(certificate)
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # cannot work with this key
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    peer = Peer(ehlo=EHLO_TLS, tls=context)
    async with listening(peer) as port:
        route = replace(route_to(port, TlsMode.OPPORTUNISTIC), connections=1, messages_per_connection=1)
        attempts = await deliver(route, BODY, BODY)
    for attempt in attempts:
        assert attempt.outcomes[0].result is Result.DELIVERED
        assert attempt.tls_version == ""
    assert peer.connections == 3  # with the second message nobody tries it in vain


@contextmanager
def wants_certificates(certificate: Certificate, *, implicit: bool) -> Iterator[int]:
    """The port of a next hop that takes mail in clear text, and by TLS from who has a certificate.

    In threads, since OpenSSL is to send its alert by itself: Trio's `SSLStream` drops it.
    """
    context = server_context(certificate)
    context.verify_mode = ssl.CERT_REQUIRED

    class Talk(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                if implicit:
                    self.refuse_tls()
                self.wfile.write(b"220 peer\r\n")
                while line := self.rfile.readline():
                    self.answer(line[:4])

        def answer(self, verb: bytes) -> None:
            if verb == b"STAR":
                self.wfile.write(b"220 go\r\n")
                self.refuse_tls()
            elif verb == b"DATA":
                self.wfile.write(b"354 go\r\n")
                while self.rfile.readline() not in (b".\r\n", b""):
                    pass
            self.wfile.write(b"250-peer\r\n250 STARTTLS\r\n" if verb == b"EHLO" else b"250 ok\r\n")

        def refuse_tls(self) -> None:
            with context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False) as secured:
                with suppress(ssl.SSLError):
                    secured.do_handshake()
                secured.shutdown(socket.SHUT_WR)
                while secured.recv(4096):  # closed before, the alert may be lost
                    pass
            raise ConnectionAbortedError

    with serving(Talk) as port:
        yield port


@pytest.mark.parametrize("tls", [TlsMode.OPPORTUNISTIC, TlsMode.STARTTLS, TlsMode.IMPLICIT])
async def test_a_handshake_that_the_server_refuses_when_ours_is_over(certificate: Certificate, tls: TlsMode) -> None:
    """With TLS 1.3 it says so only then, here that it wants a certificate of ours; opportunistic mail never left."""
    with wants_certificates(certificate, implicit=tls is TlsMode.IMPLICIT) as port:
        [attempt] = await deliver(route_to(port, tls, ca=certificate, host="127.0.0.1"), BODY)
    [outcome] = attempt.outcomes
    why = "TLS handshake: TLS failed: TLSV13_ALERT_CERTIFICATE_REQUIRED"
    if tls is TlsMode.OPPORTUNISTIC:
        assert (outcome.result, attempt.tls_version) == (Result.DELIVERED, "")
        assert why in [step.text for step in attempt.steps]
    else:
        assert outcome.result is Result.DEFERRED
        assert str(outcome.reply) == f"451 4.7.5 {why}"


async def test_opportunistic_does_not_verify(certificate: Certificate) -> None:
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(certificate))
    async with listening(peer) as port:
        [attempt] = await deliver(route_to(port, TlsMode.OPPORTUNISTIC), BODY)
    assert attempt.outcomes[0].result is Result.DELIVERED
    assert attempt.tls_version == "TLSv1.3"


class Early(Peer):
    """Answers large content before its end; then reads on, closes, or takes nothing more."""

    said = b""
    then = ""

    async def _until(self, stream: trio.abc.Stream, buffer: bytearray, end: bytes) -> bytes:
        if end == b"\r\n.\r\n":
            while len(buffer) < 1000:
                buffer += await stream.receive_some(4096)
            await stream.send_all(self.said)
            if self.then == "closes":
                raise Hangup
            if self.then == "hangs":
                await trio.sleep_forever()
        return await super()._until(stream, buffer, end)


@pytest.mark.parametrize("tls", [TlsMode.NONE, TlsMode.STARTTLS, TlsMode.IMPLICIT])
@pytest.mark.parametrize("then", ["reads on", "closes", "hangs"])
@pytest.mark.parametrize(
    ("said", "result"),
    [
        (b"552 5.3.4 too large\r\n", Result.FAILED),
        (b"552-5.3.4 too\r\n552 5.3.4 large\r\n", Result.FAILED),
        (b"451 4.3.1 disk full\r\n", Result.DEFERRED),
        (b"250 ok\r\n", Result.DEFERRED),
    ],
)
async def test_an_answer_before_the_end_of_large_content(
    certificate: Certificate, said: bytes, result: Result, then: str, tls: TlsMode
) -> None:
    peer = Early(ehlo=EHLO_TLS, tls=server_context(certificate), implicit=tls is TlsMode.IMPLICIT)
    peer.said, peer.then = said, then
    async with listening(peer) as port:
        route = route_to(port, tls, ca=certificate, host="127.0.0.1")
        [attempt] = await deliver(route, b"x" * 70 + b"\r\n" * 400_000)
    [outcome] = attempt.outcomes
    assert outcome.result is result
    assert outcome.reply is not None
    if not said.startswith(b"2"):  # that is no answer to the dot
        assert said.startswith(f"{outcome.reply.code}".encode())
        assert outcome.reply.enhanced.encode() in said
    assert peer.received == []


@pytest.mark.parametrize("tls", [TlsMode.NONE, TlsMode.STARTTLS])
async def test_a_connection_is_of_use_after_large_content(certificate: Certificate, tls: TlsMode) -> None:
    """Reading beside the content takes nothing away from what comes behind it."""
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(certificate))
    bodies = [(b"%d" % n + b"x" * 69 + b"\r\n") * (8000 if n % 2 else 1) for n in range(6)]
    async with listening(peer) as port:
        route = replace(route_to(port, tls, ca=certificate), connections=1)
        attempts = await deliver(route, *bodies)
    assert [a.outcomes[0].result for a in attempts] == [Result.DELIVERED] * len(bodies)
    assert sorted(content + b"\r\n" for content in peer.received) == sorted(bodies)
    assert peer.connections == 1


@dataclass
class Twice(Peer):
    """Answers a dot twice: the second time in the same send, in a record of its own, or when it is told to."""

    how: str = ""
    goes_on: trio.Event = field(default_factory=trio.Event)
    went_on: trio.Event = field(default_factory=trio.Event)

    async def _say(self, stream: trio.abc.Stream, verb: str, line: bytes, default: bytes) -> Answer:
        if verb != "DOT" or len(self.received) > 1:
            return await super()._say(stream, verb, line, default)
        if self.how == "records of one segment":
            assert isinstance(stream, trio.SSLStream)
            inner = stream.transport_stream
            stream.transport_stream = gathered = Gathered()
            await stream.send_all(default)
            await stream.send_all(default)
            stream.transport_stream = inner
            await inner.send_all(gathered.octets)
        else:
            await stream.send_all(default)
            await self.goes_on.wait()
            await stream.send_all(default)
        self.went_on.set()
        return default


class Gathered(trio.abc.SendStream):
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.octets = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.octets += data

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def no_to_some(peer: Peer, line: bytes) -> Answer:
    return b"550 5.1.1 no\r\n" if b"<no" in line else b"250 2.1.5 ok\r\n"


@pytest.mark.parametrize(
    ("tls", "how"),
    [
        (TlsMode.NONE, "later"),
        (TlsMode.STARTTLS, "later"),
        (TlsMode.IMPLICIT, "later"),
        (TlsMode.STARTTLS, "records of one segment"),
    ],
)
async def test_a_dot_that_was_answered_twice(certificate: Certificate, tls: TlsMode, how: str) -> None:
    """The second answer would be taken for that to MAIL, and so on: a good recipient was told another one's refusal,
    and refunded."""
    peer = Twice(
        ehlo=EHLO_TLS,
        tls=server_context(certificate),
        implicit=tls is TlsMode.IMPLICIT,
        reactions={"RCPT": no_to_some},
        how=how,
    )
    queue, lifecycle, reported = MemoryQueue(now_us), Lifecycle(), list[Attempt]()
    async with listening(peer) as port:
        route = route_to(port, tls, ca=certificate, host="127.0.0.1")
        pool = make_pool(route, queue, lifecycle, reported)
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(pool.run)
                pool.offer_nowait(queue.add("m0", leased=True))
                await queue.until(lambda: len(reported) == 1)
                peer.goes_on.set()
                await peer.went_on.wait()
                pool.offer_nowait(queue.add("m1", ["yes@example.net", "no@example.net"], leased=True))
                await queue.until(lambda: len(reported) == 2)
                lifecycle.draining.set()
    assert queue.results("m0") == [Result.DELIVERED]
    assert queue.results("m1") == [Result.DELIVERED, Result.FAILED]
    assert len(peer.received) == 2
    assert peer.connections == 2


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        [attempt] = await deliver(route_to(taken.getsockname()[1], TlsMode.NONE, host="127.0.0.1"), BODY)
    [outcome] = attempt.outcomes
    assert outcome.result is Result.DEFERRED
    assert "refused" in str(outcome.reply)
    assert attempt.host == ""


async def test_an_answer_to_the_dot_that_comes_too_late_is_in_doubt() -> None:
    peer = Peer(reactions={"DOT": hang})
    async with listening(peer) as port:
        route = route_to(port, TlsMode.NONE, host="127.0.0.1")
        [attempt] = await deliver(route, BODY, settings=DeliverySettings(final_dot_timeout_s=0.2))
    assert attempt.outcomes[0].result is Result.IN_DOUBT
    assert len(peer.received) == 1


# smtp-sink


@contextmanager
def smtp_sink(*options: str) -> Iterator[int]:
    """A running smtp-sink, which may misbehave from its greeting on; its port."""
    require("smtp-sink")
    port = free_port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with open_folder("smtp-sink") as folder:
        child = Child("smtp-sink", [find_program("smtp-sink"), *user, *options, f"127.0.0.1:{port}", "100"], folder)
        try:
            child.wait_for(lambda: port_answers(port), "smtp-sink to listen")
            yield port
        finally:
            child.close()


@pytest.mark.parametrize("options", [[], ["-p"], ["-e"], ["-8"]])
async def test_smtp_sink_takes_it(options: list[str]) -> None:
    with smtp_sink(*options) as port:
        large = b"Subject: x\r\n\r\n" + b".line\r\n" * 40_000
        attempts = await deliver(route_to(port, TlsMode.NONE, host="127.0.0.1"), BODY, BODY, large)
    assert [a.outcomes[0].result for a in attempts] == [Result.DELIVERED] * 3


@pytest.mark.parametrize(
    ("options", "results"),
    [
        (["-q", "."], {Result.IN_DOUBT}),
        (["-q", "data"], {Result.DEFERRED}),
        (["-q", "rcpt"], {Result.DEFERRED}),
        (["-q", "connect"], {Result.DEFERRED}),
        (["-f", "rcpt"], {Result.FAILED}),
        (["-f", "."], {Result.FAILED}),
        (["-f", "mail"], {Result.FAILED}),
        (["-f", "helo,ehlo"], {Result.DEFERRED}),
        (["-r", "."], {Result.DEFERRED}),
        (["-r", "rcpt"], {Result.DEFERRED}),
    ],
)
async def test_smtp_sink_misbehaves(options: list[str], results: set[Result]) -> None:
    with smtp_sink(*options) as port:
        attempts = await deliver(route_to(port, TlsMode.NONE, host="127.0.0.1"), BODY)
    assert {a.outcomes[0].result for a in attempts} == results
