# SPDX-License-Identifier: Apache-2.0
"""Kept connections: each has one owner at a time, whatever happens while another one is closed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trio
from trio.abc import Stream
from trio.testing import MockClock, memory_stream_pair

from hepmaild.delivery.connections import Connection
from hepmaild.delivery.job import Result
from hepmaild.delivery.pool import KEEP_IDLE_S
from tests.delivery.peer import after
from tests.delivery.test_pool import World, smtp, world


@dataclass
class SlowToClose(Stream):
    """While it is closed, others have their turn: it is that of the task that closes idle connections."""

    stream: Stream
    meanwhile: Any

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        self.meanwhile()
        await self.stream.aclose()


def keep_slow_to_close(w: World) -> None:
    def pair() -> tuple[Stream, Stream]:
        ours, theirs = memory_stream_pair()
        look = lambda: w.pool._tracks.take_idle(trio.current_time() - KEEP_IDLE_S)  # noqa: E731
        return SlowToClose(ours, look), theirs

    w.network.pair = pair


async def keep(w: World, count: int) -> list[Connection]:
    """So many connections, kept after a message each; the one used last is the last."""
    w.peer.reactions["DOT"] = after(0.1, b"250 2.0.0 ok\r\n")
    for n in range(count):
        w.pool.offer_nowait(w.queue.add(f"w{n}", leased=True))
    await w.queue.until(lambda: len(w.reported) == count)
    track = w.pool._tracks.get("upstream")
    assert track is not None
    kept = track.places[""].kept
    assert len(kept) == count
    return kept


async def test_two_attempts_never_have_one_connection(autojump_clock: MockClock) -> None:
    """Of three that are kept the one used last has died.  Closing it yields; an attempt past its dot lost its
    connection to the next one then, which was in doubt, and its mail was sent twice."""
    async with world(smtp("upstream", connections=4)) as w:
        keep_slow_to_close(w)
        (*_, dead) = await keep(w, 3)
        dead.machine.eof()
        w.peer.reactions["DOT"] = after(0.5, b"250 2.0.0 ok\r\n")
        for n in range(4):
            w.pool.offer_nowait(w.queue.add(f"m{n}", leased=True))
            await trio.sleep(0.1)
        await w.queue.until(lambda: len(w.reported) == 7)
        assert [w.queue.results(f"m{n}") for n in range(4)] == [[Result.DELIVERED]] * 4
        assert len(w.peer.received) == 7
        assert w.peer.connections == 5
        await trio.sleep(3 * KEEP_IDLE_S)
        assert w.peer.open_now == 0


async def test_one_that_was_taken_is_closed_when_its_attempt_is_cancelled_meanwhile(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream", connections=4)) as w:
        keep_slow_to_close(w)
        (*_, dead) = await keep(w, 2)
        dead.machine.eof()
        assert isinstance(dead._stream, SlowToClose)
        assert w.pool._workers is not None
        dead._stream.meanwhile = w.pool._workers.cancel_scope.cancel
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.done.wait()
        assert w.queue.released == ["m1"]
        assert w.peer.open_now == 0
