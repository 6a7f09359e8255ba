# SPDX-License-Identifier: Apache-2.0
"""Mail of a route that this process does not know: no attempt is made of it, and nobody else's is kept from it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from hepmaild.delivery.job import Result
from hepmaild.delivery.scheduler import CLAIM_LIMIT
from hepmaild.delivery.track import MISSING_S
from tests.delivery.peer import Peer
from tests.delivery.test_pool import smtp, world

GONE = smtp("gone")


async def test_it_is_put_off_and_says_why(autojump_clock: MockClock) -> None:
    async with world() as w:
        assert not w.pool.offer_nowait(w.queue.add("m0", route="gone", leased=True))
        w.queue.elsewhere.add("m0")
        w.queue.add("m1", route="gone")
        w.pool.wake()
        await trio.sleep(4 * 3600)
        assert not w.reported
        assert w.queue.messages["m1"].job.recipients[0].attempts == 0
        assert {why for _, why in w.queue.put_offs} == {
            "451 4.3.0 here: there is no route 'gone' in the settings of this process"
        }
        assert len(w.queue.put_offs) == pytest.approx(4 * 3600 / MISSING_S, rel=0.1)


@pytest.mark.parametrize("missing_s", [600, 4 * 3600 + 7])
async def test_it_leaves_within_a_minute_when_the_route_is_there(autojump_clock: MockClock, missing_s: int) -> None:
    async with world() as w:
        w.queue.add("m1", route="gone")
        w.pool.wake()
        await trio.sleep(missing_s)
        w.peers["gone"] = Peer()
        w.pool.replace_routes([smtp("upstream"), GONE])
        w.queue.add("m2", route="gone")
        await w.queue.until(lambda: all(Result.DELIVERED in w.queue.results(name) for name in ("m1", "m2")))
        assert trio.current_time() - missing_s <= MISSING_S + 1
        assert w.queue.results("m1") == w.queue.results("m2") == [Result.DELIVERED]


async def test_a_process_leaves_it_to_those_that_know_the_route(autojump_clock: MockClock) -> None:
    """Of a large backlog it takes a few claims each minute, and holds none of it."""
    async with world() as w:
        for n in range(5000):
            w.queue.add(f"m{n}", route="gone")
        w.pool.wake()
        await trio.sleep(MISSING_S / 2)
        assert len(w.queue.put_offs) <= CLAIM_LIMIT
        assert not any(waiting.leased for waiting in w.queue.messages.values())
        w.queue.add("other")
        w.pool.wake()
        await w.queue.until(lambda: len(w.reported) == 1)
        claims = w.queue.claims
        await trio.sleep(3600)
        assert w.queue.claims - claims < 6 * 3600 / MISSING_S


async def test_it_expires(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.queue.add("m1", route="gone", life_s=3600)
        w.pool.wake()
        await w.queue.until(lambda: w.queue.expired == ["m1"])
        assert trio.current_time() == pytest.approx(3600, abs=MISSING_S + 1)


async def test_a_route_that_is_taken_away_puts_off_what_stands_ready(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream"), smtp("gone", connections=1)) as w:
        w.network.hanging.add("gone")
        for n in range(3):
            w.pool.offer_nowait(w.queue.add(f"m{n}", route="gone", leased=True))
        await trio.sleep(1)
        w.pool.replace_routes([smtp("upstream")])
        await w.queue.until(lambda: len(w.queue.put_offs) >= 2)
        assert w.pool.capacity_hint("gone") == 0
