# SPDX-License-Identifier: Apache-2.0
"""`SocketTransport`: what it reads, and when it asks the kernel to be woken instead of looking by itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio

from hepmaild.transport import LOOK_AGAIN, SocketTransport

DEADLINE_S = 30


@pytest.fixture
def pair() -> Iterator[tuple[SocketTransport, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield SocketTransport(ours), theirs


class Waits(trio.abc.Instrument):
    """Counts the passes in which nobody could go on, so that the kernel was asked."""

    def __init__(self) -> None:
        self.asleep = 0

    def before_io_wait(self, timeout: float) -> None:
        self.asleep += timeout > 0


class Counted(socket.socket):
    """Counts the reads that found nothing."""

    in_vain = 0

    def recv(self, *args: int) -> bytes:
        try:
            return super().recv(*args)
        except BlockingIOError:
            self.in_vain += 1
            raise


async def test_a_prompt_peer_is_read_without_a_wake_up(pair: tuple[SocketTransport, socket.socket]) -> None:
    ours, theirs = pair
    waits = Waits()
    with trio.fail_after(DEADLINE_S):
        trio.lowlevel.add_instrument(waits)
        for n in range(3 * LOOK_AGAIN):
            theirs.send(b"%d" % n)
            assert await ours.receive_some() == b"%d" % n
        trio.lowlevel.remove_instrument(waits)
    assert waits.asleep == 0


async def test_a_slow_peer_is_looked_for_now_and_then_only() -> None:
    """However often it looked in vain, nothing is lost, and a peer that becomes prompt is soon read at once again."""
    ours, theirs = socket.socketpair()
    counted = Counted(fileno=ours.detach())
    transport = SocketTransport(counted)

    async def answer_late(octets: bytes) -> None:
        await trio.testing.wait_all_tasks_blocked()
        theirs.send(octets)

    with counted, theirs, trio.fail_after(DEADLINE_S):
        for n in range(3 * LOOK_AGAIN):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer_late, b"%d" % n)
                assert await transport.receive_some() == b"%d" % n
        assert 1 <= counted.in_vain <= 4
        for _ in range(LOOK_AGAIN + 1):
            theirs.send(b"x")
            assert await transport.receive_some() == b"x"
        waits = Waits()
        trio.lowlevel.add_instrument(waits)
        theirs.send(b"y")
        assert await transport.receive_some() == b"y"
        trio.lowlevel.remove_instrument(waits)
        assert waits.asleep == 0


async def test_the_end_errors_and_cancellation(pair: tuple[SocketTransport, socket.socket]) -> None:
    ours, theirs = pair
    with trio.fail_after(DEADLINE_S):
        theirs.send(b"kept")
        with trio.CancelScope() as scope:
            scope.cancel()
            await ours.receive_some()
        assert scope.cancelled_caught
        assert await ours.receive_some(2) == b"ke"
        assert await ours.receive_some() == b"pt"
        theirs.shutdown(socket.SHUT_WR)
        assert await ours.receive_some() == b""
        assert ours.is_readable()
        await ours.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await ours.receive_some()
