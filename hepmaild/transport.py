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
MANY_SENDS = 2.5  # in a pass, on average; below, nothing is gathered
SENDS_IN_A_ROW = 8  # connections at most that are gathered
GATHERED_OCTETS = 16_384  # of one of them at most
STUCK_S = 60.0  # a peer that takes nothing for so long is given up


class _Pass(trio.abc.Instrument):
    """Sends what the tasks of one pass of the loop have to say, in a row.

    A send wakes its peer, which costs more than all else about it; the next one finds that peer awake, as a rule, and
    the kernel's way still in the cache (figures in docs/decisions/0122).
    """

    def __init__(self) -> None:
        self._gathered: list[SocketTransport] = []
        self._sends = 0
        self._average = 0.0  # of the passes before, the latest counting most

    def gathers(self) -> bool:
        """Asked once for each send: whether it is worth its while.  Where few go together it only takes time."""
        self._sends += 1
        return self._average >= MANY_SENDS

    def add(self, transport: SocketTransport) -> None:
        """Have it push before the loop sleeps."""
        self._gathered.append(transport)
        if len(self._gathered) >= SENDS_IN_A_ROW:
            self._push_all()

    def _push_all(self) -> None:
        gathered, self._gathered = self._gathered, []
        for transport in gathered:
            transport.push()

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        """The pass is over."""
        self._average += (self._sends - self._average) / 8
        self._sends = 0
        if self._gathered:
            self._push_all()


_this_pass: trio.lowlevel.RunVar[_Pass] = trio.lowlevel.RunVar("hepmaild.transport")


def _current_pass() -> _Pass:
    """That of this `trio.run`, made when it is first asked for."""
    try:
        return _this_pass.get()
    except LookupError:
        made = _Pass()
        trio.lowlevel.add_instrument(made)
        _this_pass.set(made)
        return made


class SocketTransport(trio.abc.HalfCloseableStream):
    """Owns a non-blocking stdlib socket.  One task reads and one task writes at a time, which callers see to.

    gathers: what is sent may leave a little later, at the end of the loop's pass, with that of others.  Only for one
    task that reads behind everything it sends, as SMTP does: what the kernel does not take at once waits for that read.
    Where one task reads while another writes, say `stop_gathering` before.

    Errors of the socket are `trio.BrokenResourceError`; use after close is `trio.ClosedResourceError`.
    """

    __slots__ = ("_fd", "_is_gathered", "_luck", "_pass", "_problem", "_room", "_socket", "_unsent")

    def __init__(self, connected: socket.socket, *, gathers: bool = False) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._fd = connected.fileno()
        self._room = FEW_OCTETS
        self._luck = 0  # below zero: in so many reads it is tried again
        self._pass = _current_pass() if gathers else None
        self._is_gathered = False
        self._unsent = b""
        self._problem = ""  # of an earlier send

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
                if self._unsent:
                    await self._drain()
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

        After cancellation it is unknown how much was sent.  With `gathers`, an error may show at the next send or read.
        """
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("the connection was closed by us")
        if self._problem:
            raise trio.BrokenResourceError(self._problem)
        if self._pass is not None and self._pass.gathers() and len(self._unsent) + len(data) <= GATHERED_OCTETS:
            if self._unsent and not self._is_gathered:
                await self._drain()
            self._unsent += data
            if not self._is_gathered:
                self._is_gathered = True
                self._pass.add(self)
            return
        if self._unsent:
            await self._drain()
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

    async def stop_gathering(self) -> None:
        """Send what was gathered, and from here on everything at once: the reader has nothing to send.

        BrokenResourceError: the peer takes nothing.
        """
        await self._drain()
        self._pass = None

    def start_gathering(self) -> None:
        """From here on as with `gathers`."""
        self._pass = _current_pass()

    def push(self) -> None:
        """Send what was gathered, as far as the kernel takes it."""
        self._is_gathered = False
        if not self._unsent:
            return
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as problem:
            self._problem = str(problem)
            self._unsent = b""
            return
        self._unsent = self._unsent[sent:]

    async def _drain(self) -> None:
        """Wait until the kernel has everything that was gathered.  An error is left to the next send or read, but for a
        peer that takes nothing: BrokenResourceError."""
        self.push()
        deadline = trio.current_time() + STUCK_S
        while self._unsent:
            with trio.move_on_at(deadline) as scope:
                await trio.lowlevel.wait_writable(self._fd)
            if scope.cancelled_caught:
                raise trio.BrokenResourceError(f"the peer took nothing for {STUCK_S:g} s")
            self.push()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes octets."""
        await self._drain()
        await trio.lowlevel.wait_writable(self._fd)

    async def send_eof(self) -> None:
        """Say that nothing more follows."""
        await self._drain()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close; octets not yet read make the kernel reset the connection, so read to the end first."""
        if self._socket.fileno() >= 0:
            self.push()
            trio.lowlevel.notify_closing(self._fd)
            self._socket.close()
        await trio.lowlevel.checkpoint()


def take_over(stream: trio.SocketStream, *, gathers: bool = False) -> SocketTransport:
    """The same connection; `stream` is closed."""
    family, kind, protocol = stream.socket.family, stream.socket.type, stream.socket.proto
    return SocketTransport(socket.socket(family, kind, protocol, fileno=stream.socket.detach()), gathers=gathers)
