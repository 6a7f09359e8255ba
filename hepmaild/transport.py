# SPDX-License-Identifier: Apache-2.0
"""A connected TCP socket as a Trio stream, with as little as possible between the socket and the session.

`trio.SocketStream` would do, but it tries to read at once, before the peer can have answered, and guards against a
second task that is not there.  With `TlsStream` this takes a 2 KB message in four round trips from 236 to 160 µs of
CPU.
"""

from __future__ import annotations

import contextlib
import select
import socket

import trio

READ_OCTETS = 65_536
# The room for the next read while little comes: where freed memory is overwritten, room has its price (decision 0120).
FEW_OCTETS = 4096
# Whether to look for an answer one pass of the loop later, before asking the kernel to be woken by it: as long as three
# of four were there.  Measured under full load: 97 of 100 are, and a message costs a fifteenth less.
MOST_LUCK = 8
BAD_LUCK = 3
LOOK_AGAIN = 32  # reads


class SocketTransport(trio.abc.HalfCloseableStream):
    """Owns a non-blocking stdlib socket.  One task reads and one task writes at a time, which callers see to.

    Errors of the socket are `trio.BrokenResourceError`; use after close is `trio.ClosedResourceError`.
    """

    __slots__ = ("_fd", "_luck", "_room", "_socket")

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._fd = connected.fileno()
        self._room = FEW_OCTETS
        self._luck = 0  # below zero: in so many reads it is tried again

    @property
    def socket(self) -> socket.socket:
        """For its addresses."""
        return self._socket

    def is_readable(self) -> bool:
        """Whether octets, the end, or an error are there to be read."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next octets, b"" at the end.  Cancellation loses none."""
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("the connection was closed by us")
        looks = self._luck >= 0
        while True:
            if looks:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._fd)
            try:
                data = self._socket.recv(min(max_bytes or READ_OCTETS, self._room))
            except BlockingIOError:
                if looks:
                    looks = False
                    self._luck = self._luck - BAD_LUCK if self._luck >= BAD_LUCK else -LOOK_AGAIN
                continue
            except OSError as problem:
                raise trio.BrokenResourceError(str(problem)) from problem
            if looks or self._luck < 0:
                self._luck = min(self._luck + 1, MOST_LUCK)
            self._room = FEW_OCTETS if len(data) < FEW_OCTETS else READ_OCTETS
            return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything.  Returns without a checkpoint when the kernel takes all at once: readers yield.

        After cancellation it is unknown how much was sent.
        """
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("the connection was closed by us")
        view = memoryview(data)
        while True:
            try:
                sent = self._socket.send(view)
            except BlockingIOError:
                sent = 0
            except OSError as problem:
                raise trio.BrokenResourceError(str(problem)) from problem
            if sent == len(view):
                return
            view = view[sent:]
            await trio.lowlevel.wait_writable(self._fd)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes octets."""
        await trio.lowlevel.wait_writable(self._fd)

    async def send_eof(self) -> None:
        """Say that nothing more follows."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close; octets not yet read make the kernel reset the connection, so read to the end first."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._fd)
            self._socket.close()
        await trio.lowlevel.checkpoint()


def take_over(stream: trio.SocketStream) -> SocketTransport:
    """The same connection; `stream` is closed."""
    family, kind, protocol = stream.socket.family, stream.socket.type, stream.socket.proto
    return SocketTransport(socket.socket(family, kind, protocol, fileno=stream.socket.detach()))
