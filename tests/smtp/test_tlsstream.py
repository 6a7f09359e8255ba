# SPDX-License-Identifier: Apache-2.0
"""`TlsStream`: where a TLS connection ends, whatever its peer sends behind the end."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from hepmaild.tls import new_context
from hepmaild.tlsstream import TlsStream
from hepmaild.transport import SocketTransport
from tests.peers.certificates import make_certificate

DEADLINE_S = 30


class Client:
    """The other side, record by record: what it sends leaves when it is told to."""

    def __init__(self, connected: socket.socket, cafile: Path, version: ssl.TLSVersion) -> None:
        context = ssl.create_default_context(cafile=str(cafile))
        context.minimum_version = context.maximum_version = version
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._socket = trio.socket.from_stdlib_socket(connected)

    async def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.push()
                self._incoming.write(await self._socket.recv(65_536))
            else:
                break
        await self.push()

    async def push(self, behind: bytes = b"") -> None:
        """Send the records made so far and `behind`, in one segment."""
        await self._socket.send(self._outgoing.read() + behind)

    def say_goodbye(self) -> None:
        """Make close_notify."""
        with pytest.raises(ssl.SSLWantReadError):  # it asks for the peer's own
            self.tls.unwrap()


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends a test whose code never comes back to the loop, which no deadline of the loop can."""

    def ring(*_: object) -> None:
        raise TimeoutError("the loop stood still")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(2 * DEADLINE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("text", [b"", b"QUIT\r\n"])
@pytest.mark.parametrize("behind", [b"", b"x", b"\x17\x03\x03\x00\x05hello", bytes(20_000)])
async def test_close_notify_is_the_end(tmp_path: Path, version: ssl.TLSVersion, text: bytes, behind: bytes) -> None:
    """Also while the TCP connection stays open, and whatever comes behind it."""
    certificate = make_certificate(tmp_path)
    context = new_context()
    context.load_cert_chain(certificate.certificate, certificate.private_key)
    ours, theirs = socket.socketpair()
    with ours, theirs, trio.fail_after(DEADLINE_S):
        stream = TlsStream(SocketTransport(ours), context)
        client = Client(theirs, certificate.certificate, version)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.do_handshake)
            await client.shake_hands()
        if text:
            client.tls.write(text)
        client.say_goodbye()
        await client.push(behind)
        if text:
            assert await stream.receive_some() == text
        assert await stream.receive_some() == b""
        assert await stream.receive_some() == b""
        await stream.send_all(b"221 Bye\r\n")  # our side is still open
        await stream.send_eof()
