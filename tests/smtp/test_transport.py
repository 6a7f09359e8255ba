# SPDX-License-Identifier: Apache-2.0
"""`SocketTransport`: when a read asks the kernel to be woken instead of looking by itself, and when sends wait."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
import trio

from hepmaild.transport import GATHERED_OCTETS, LOOK_AGAIN, SENDS_IN_A_ROW, STUCK_S, SocketTransport

DEADLINE_S = 60


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


# Sends that are gathered

Pairs = list[tuple[SocketTransport, socket.socket]]


@contextlib.contextmanager
def gathering(count: int) -> Iterator[Pairs]:
    """Connections whose sends may be gathered."""
    pairs: Pairs = []
    try:
        for _ in range(count):
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            pairs.append((SocketTransport(ours, gathers=True), theirs))
        yield pairs
    finally:
        for transport, theirs in pairs:
            transport.socket.close()
            theirs.close()


async def make_busy(ours: SocketTransport, theirs: socket.socket) -> None:
    """Many sends in each of several passes: from then on, for a while, sends are gathered."""
    for _ in range(16):
        for _ in range(2 * SENDS_IN_A_ROW):
            await ours.send_all(b"x")
        await trio.lowlevel.checkpoint()
    assert set(theirs.recv(10_000)) == {ord("x")}


def is_silent(theirs: socket.socket) -> bool:
    try:
        theirs.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False


async def test_where_few_send_nothing_waits() -> None:
    with gathering(1) as [(ours, theirs)], trio.fail_after(DEADLINE_S):
        for _ in range(20):
            await ours.send_all(b"now")
            assert theirs.recv(10) == b"now"
            await trio.lowlevel.checkpoint()


async def test_many_sends_leave_at_the_end_of_the_pass() -> None:
    with gathering(3) as pairs, trio.fail_after(DEADLINE_S):
        await make_busy(*pairs[0])
        for ours, _ in pairs:
            await ours.send_all(b"one, ")
            await ours.send_all(b"two")
        assert all(is_silent(theirs) for _, theirs in pairs)
        await trio.lowlevel.checkpoint()
        assert [theirs.recv(100) for _, theirs in pairs] == [b"one, two"] * 3


async def test_but_not_more_than_some_at_once() -> None:
    with gathering(SENDS_IN_A_ROW + 1) as pairs, trio.fail_after(DEADLINE_S):
        await make_busy(*pairs[-1])
        for ours, _ in pairs:
            await ours.send_all(b"x")
        assert [is_silent(theirs) for _, theirs in pairs] == [False] * SENDS_IN_A_ROW + [True]
        await trio.lowlevel.checkpoint()
        assert not is_silent(pairs[-1][1])


async def test_the_order_is_kept_whatever_the_sizes() -> None:
    with gathering(1) as [(ours, theirs)], trio.fail_after(DEADLINE_S):
        await make_busy(ours, theirs)
        sizes = (5, GATHERED_OCTETS, 7, 3, 2 * GATHERED_OCTETS, 1)
        sent = [bytes([n]) * size for n, size in enumerate(sizes)]
        heard = bytearray()
        for piece in sent:
            await ours.send_all(piece)
            while not is_silent(theirs):
                heard += theirs.recv(1_000_000)
        await trio.lowlevel.checkpoint()
        heard += theirs.recv(1_000_000)
        assert bytes(heard) == b"".join(sent)


def fill(ours: SocketTransport) -> int:
    """Until the kernel takes no more."""
    filled = 0
    while True:
        try:
            filled += ours.socket.send(bytes(65_536))
        except BlockingIOError:
            return filled


async def read_all(theirs: socket.socket, size: int) -> bytes:
    """Not by way of the transport under test; the loop goes on meanwhile."""
    heard = bytearray()
    while len(heard) < size:
        with contextlib.suppress(BlockingIOError):
            heard += theirs.recv(1_000_000)
        await trio.lowlevel.checkpoint()
    return bytes(heard)


async def test_what_the_kernel_does_not_take_leaves_while_the_answer_is_waited_for() -> None:
    with gathering(1) as [(ours, theirs)], trio.fail_after(DEADLINE_S):
        await make_busy(ours, theirs)
        filled = fill(ours)
        await ours.send_all(b"question")
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _ask() -> None:
                assert await ours.receive_some() == b"answer"

            assert (await read_all(theirs, filled + 8))[filled:] == b"question"
            theirs.send(b"answer")


async def test_the_next_send_waits_for_what_the_kernel_did_not_take() -> None:
    with gathering(1) as [(ours, theirs)], trio.fail_after(DEADLINE_S):
        await make_busy(ours, theirs)
        filled = fill(ours)
        await ours.send_all(b"one, ")
        await trio.lowlevel.checkpoint()  # in vain
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _go_on() -> None:
                await ours.send_all(b"two, ")
                await ours.send_eof()

            assert (await read_all(theirs, filled + 10))[filled:] == b"one, two, "
        assert theirs.recv(1) == b""


async def test_a_peer_that_takes_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    with gathering(1) as [(ours, theirs)]:
        await make_busy(ours, theirs)
        fill(ours)
        await ours.send_all(b"question")
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError, match="took nothing"):
            await ours.receive_some()
        assert trio.current_time() - began == STUCK_S


async def test_an_error_shows_at_the_next_send_and_what_was_said_before_is_read() -> None:
    with gathering(1) as [(ours, theirs)], trio.fail_after(DEADLINE_S):
        await make_busy(ours, theirs)
        theirs.send(b"last words")
        theirs.close()
        await ours.send_all(b"too late")
        assert await ours.receive_some() == b"last words"
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"once more")
        assert await ours.receive_some() == b""


async def test_what_was_gathered_leaves_before_the_end() -> None:
    with gathering(2) as pairs, trio.fail_after(DEADLINE_S):
        (one, theirs), (other, others) = pairs
        await make_busy(one, theirs)
        await one.send_all(b"bye")
        await other.send_all(b"bye")
        await one.aclose()
        await other.send_eof()
        assert theirs.recv(10) == others.recv(10) == b"bye"
        assert theirs.recv(10) == others.recv(10) == b""
        with pytest.raises(trio.ClosedResourceError):
            await one.send_all(b"x")


async def test_what_waits_is_forgotten_with_the_socket() -> None:
    """The loop goes on when a connection is gone before the end of the pass."""
    with gathering(2) as pairs, trio.fail_after(DEADLINE_S):
        (one, theirs), (other, others) = pairs
        await make_busy(other, others)
        await one.send_all(b"never sent")
        await other.send_all(b"sent")
        one.socket.close()
        await trio.lowlevel.checkpoint()
        assert others.recv(10) == b"sent"
        assert theirs.recv(10) == b""
