# SPDX-License-Identifier: Apache-2.0
"""The server side of TLS over any Trio stream.

Does what `trio.SSLStream` does for a server that reads and writes from one task, for less (figures in `transport`): one
pass over two memory buffers, no locks, no exception on the common path.  A peer that closes without close_notify is at
its end, not an error: SMTP and HTTP have their own ends (design.md P8).  One task sends at a time, another may read.
"""

from __future__ import annotations

import contextlib
import ssl

import trio

RECORD_OCTETS = 16_384  # as many as one read gives at most (RFC 8446 §5.1)
# Of answers of OpenSSL's own: an alert to each attempt to renegotiate, which nobody makes twice.
MAX_UNASKED_OCTETS = 4096


class TlsStream(trio.abc.HalfCloseableStream):
    """TLS by `context` over `transport`.  Nothing that was read before it is ever looked at: the buffers are new."""

    __slots__ = ("_at_end", "_incoming", "_may_hold_more", "_outgoing", "_tls", "transport")

    def __init__(self, transport: trio.abc.HalfCloseableStream, context: ssl.SSLContext) -> None:
        self.transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._at_end = False
        self._may_hold_more = True  # also what came with the handshake

    def negotiated(self) -> tuple[str, str]:
        """Version and cipher; two empty strings before the handshake."""
        cipher = self._tls.cipher()
        return self._tls.version() or "", cipher[0] if cipher else ""

    def selected_alpn_protocol(self) -> str | None:
        """What both sides want to speak (RFC 7301)."""
        return self._tls.selected_alpn_protocol()

    async def do_handshake(self) -> None:
        """Shake hands; the caller sets the deadline.  Raises BrokenResourceError; the alert was then sent."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fetch("the peer left during the TLS handshake")
            except ssl.SSLError as problem:
                with contextlib.suppress(trio.BrokenResourceError):
                    await self._flush()
                raise trio.BrokenResourceError(_reason(problem)) from problem
            else:
                await self._flush()
                return

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        """All octets that have arrived, b"" at the end.  Cancellation loses none.  Raises BrokenResourceError."""
        while True:
            if self._may_hold_more:
                data = self._read()
                self._may_hold_more = False  # all that can be had of what has come
                if data or self._at_end:
                    return data
            elif self._at_end:
                return b""
            more = await self.transport.receive_some()
            if not more:
                self._at_end = True
                return b""
            self._incoming.write(more)
            self._may_hold_more = True

    def _read(self) -> bytes:
        """Decrypt every complete record that is here."""
        tls, incoming = self._tls, self._incoming
        first = b""
        rest: list[bytes] = []
        try:
            # Decrypted text is no longer than what it was made of; room that is not needed has its price too.
            while ahead := incoming.pending + tls.pending():
                piece = tls.read(min(ahead, RECORD_OCTETS))
                if not piece:  # close_notify: nothing behind it is ever read, so it stays pending (RFC 8446 §6.1)
                    self._at_end = True
                    break
                if first:
                    rest.append(piece)
                else:
                    first = piece
        except ssl.SSLWantReadError:
            if self._outgoing.pending > MAX_UNASKED_OCTETS:  # they leave with what we send next, but may never
                raise trio.BrokenResourceError("the peer makes us answer and waits for none of it") from None
        except ssl.SSLZeroReturnError:
            self._at_end = True
        except ssl.SSLError as problem:
            if not first:
                raise trio.BrokenResourceError(_reason(problem)) from problem
            self._at_end = True
        return b"".join((first, *rest)) if rest else first

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything.  Raises BrokenResourceError."""
        tls = self._tls
        try:
            sent = tls.write(data)
            while sent < len(data):
                sent += tls.write(memoryview(data)[sent:])
        except ssl.SSLError as problem:
            raise trio.BrokenResourceError(_reason(problem)) from problem
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport takes octets."""
        await self.transport.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """close_notify, then the end of the transport.  Raises BrokenResourceError."""
        # The peer's own close_notify is not waited for: WANT_READ, or any complaint about a broken session.
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        await self._flush()
        await self.transport.send_eof()

    async def aclose(self) -> None:
        """Close the transport; for a clean end `send_eof` and read to the end first."""
        await self.transport.aclose()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self.transport.send_all(self._outgoing.read())

    async def _fetch(self, at_end: str) -> None:
        more = await self.transport.receive_some()
        if not more:
            raise trio.BrokenResourceError(at_end)
        self._incoming.write(more)


def _reason(problem: ssl.SSLError) -> str:
    """OpenSSL's word for it, without source line numbers."""
    return (problem.reason or type(problem).__name__).lower().replace("_", " ")
