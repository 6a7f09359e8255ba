# SPDX-License-Identifier: Apache-2.0
"""The connection is cut at every octet, in both directions: nothing is lost, nothing is twice without doubt."""

from __future__ import annotations

import pytest
import trio
from trio.abc import Stream
from trio.testing import MockClock, memory_stream_pair

from hepmaild.delivery.job import Result
from tests.delivery.peer import Peer
from tests.delivery.test_pool import smtp, world

BODY = b"Subject: x\r\n\r\nhello\r\n"


class Cut(Stream):
    """The peer's end of a connection that breaks after so many octets sent or received."""

    def __init__(self, inner: Stream, *, sends: int | None = None, receives: int | None = None) -> None:
        self.inner = inner
        self.sends = sends
        self.receives = receives

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.sends is not None:
            part = bytes(data)[: self.sends]
            self.sends -= len(part)
            if len(part) < len(data):
                await self.inner.send_all(part)
                await self.inner.aclose()
                raise trio.BrokenResourceError
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.receives is None:
            return await self.inner.receive_some(max_bytes)
        if self.receives == 0:
            return b""
        data = await self.inner.receive_some(min(self.receives, max_bytes or self.receives))
        self.receives -= len(data)
        return data

    async def aclose(self) -> None:
        await self.inner.aclose()


@pytest.mark.parametrize("direction", ["sends", "receives"])
@pytest.mark.parametrize("offers", [b"250-peer\r\n250 PIPELINING\r\n", b"250 peer\r\n"])
async def test_cut_at_every_octet(autojump_clock: MockClock, direction: str, offers: bytes) -> None:
    seen: set[Result] = set()
    for octets in range(400):
        async with world(smtp("upstream", messages_per_connection=1)) as w:
            w.peer.ehlo = offers
            cuts = [octets]

            async def connect(
                host: str,
                port: int,
                w=w,
                cuts: list[int] = cuts,  # type: ignore[no-untyped-def]
            ) -> Stream:
                ours, theirs = memory_stream_pair()
                stream: Stream = Cut(theirs, **{direction: cuts.pop()}) if cuts else theirs
                w.network.nursery.start_soon(w.peer.serve, stream)
                return ours

            w.pool._runner._courier._connect = connect
            w.pool.offer_nowait(w.queue.add("m1", ["a@x.example", "b@x.example"], leased=True, body=BODY))
            await w.queue.until(lambda w=w: w.queue.messages["m1"].done)
            first = w.queue.outcomes["m1"][0].result
            results = w.queue.results("m1")
            seen.add(first)
            assert results[-1] is Result.DELIVERED
            copies = len(w.peer.received)
            if first is Result.IN_DOUBT:
                assert copies in {1, 2}
            else:
                assert copies == 1
            if first is Result.DELIVERED:
                break
    assert seen == {Result.DEFERRED, Result.IN_DOUBT, Result.DELIVERED}


async def test_a_peer_that_stalls_at_every_step(autojump_clock: MockClock) -> None:
    from tests.delivery.peer import hang

    for verb in ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT", "QUIT"):
        begun = trio.current_time()
        async with world(smtp("upstream", messages_per_connection=1)) as w:
            peer: Peer = w.peer
            peer.reactions[verb] = hang
            w.pool.offer_nowait(w.queue.add("m1", leased=True, body=BODY))
            await w.queue.until(lambda w=w: bool(w.reported))
            expected = {"DOT": Result.IN_DOUBT, "QUIT": Result.DELIVERED}.get(verb, Result.DEFERRED)
            assert w.queue.results("m1") == [expected], verb
            assert trio.current_time() - begun <= 605
            peer.reactions.clear()
            await w.queue.until(lambda w=w: w.queue.messages["m1"].done)
