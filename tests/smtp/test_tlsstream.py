# SPDX-License-Identifier: Apache-2.0
"""`TlsStream`: where a TLS connection ends, whatever its peer sends behind the end."""

from __future__ import annotations

import hashlib
import hmac
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hepmaild.tls import new_context
from hepmaild.tlsstream import TlsStream
from hepmaild.transport import SocketTransport
from tests.peers.certificates import make_certificate

DEADLINE_S = 60


class Client:
    """The other side, record by record: what it sends leaves when it is told to."""

    def __init__(self, connected: socket.socket, cafile: Path, version: ssl.TLSVersion) -> None:
        context = ssl.create_default_context(cafile=str(cafile))
        context.minimum_version = context.maximum_version = version
        context.keylog_filename = str(cafile.with_name("secrets"))
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._socket = trio.socket.from_stdlib_socket(connected)
        self.server_random = b""

    async def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.push()
                self._incoming.write(heard := await self._socket.recv(65_536))
                self.server_random = self.server_random or heard[11:43]
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


def spread(secret: bytes, seed: bytes, octets: int) -> bytes:
    """The PRF of TLS 1.2 (RFC 5246 §5)."""
    spread, a = b"", seed
    while len(spread) < octets:
        a = hmac.digest(secret, a, hashlib.sha256)
        spread += hmac.digest(secret, a + seed, hashlib.sha256)
    return spread[:octets]


def records(keys: bytes, kind: int, octets: bytes, numbers: range) -> bytes:
    """`octets` in a record for each number, as a client sends them by AES-128-GCM (RFC 5288)."""
    cipher, salt = AESGCM(keys[:16]), keys[32:36]
    written = b""
    for each in numbers:
        number = each.to_bytes(8, "big")
        head = bytes([kind]) + b"\x03\x03"
        sealed = cipher.encrypt(salt + number, octets, number + head + len(octets).to_bytes(2, "big"))
        written += head + (8 + len(sealed)).to_bytes(2, "big") + number + sealed
    return written


async def test_a_peer_that_renegotiates_all_the_time_is_left(tmp_path: Path) -> None:
    """OpenSSL writes an alert for each attempt; they would wait in memory for something of ours to send."""
    certificate = make_certificate(tmp_path)
    context = new_context()
    context.load_cert_chain(certificate.certificate, certificate.private_key)
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    ours, theirs = socket.socketpair()
    with ours, theirs, trio.fail_after(DEADLINE_S):
        stream = TlsStream(SocketTransport(ours), context)
        client = Client(theirs, certificate.certificate, ssl.TLSVersion.TLSv1_2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.do_handshake)
            await client.shake_hands()
        found = re.search(r"CLIENT_RANDOM (\w+) (\w+)", (tmp_path / "secrets").read_text())
        assert found is not None
        randoms = client.server_random + bytes.fromhex(found[1])
        keys = spread(bytes.fromhex(found[2]), b"key expansion" + randoms, 40)
        hello = b"\x01\x00\x00\x00"
        await client.push(records(keys, 22, hello, range(1, 4)) + records(keys, 23, b"NOOP", range(4, 5)))
        assert await stream.receive_some() == b"NOOP"
        await client.push(records(keys, 22, hello, range(5, 205)))
        with pytest.raises(trio.BrokenResourceError, match="makes us answer"):
            await stream.receive_some()
