# SPDX-License-Identifier: Apache-2.0
"""What the intake left to the store is asked for when there is room for it, and not before; nothing claimed is lost."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hepmaild.delivery.job import Result
from hepmaild.delivery.scheduler import UNIT_TIMEOUT_S
from tests.delivery.peer import after
from tests.delivery.test_pool import smtp, world


async def test_a_dead_route_costs_no_claims(autojump_clock: MockClock) -> None:
    async with world(smtp("good"), smtp("dead")) as w:
        dead = w.network.peers.pop("dead")
        for n in range(3):
            w.pool.offer_nowait(w.queue.add(f"first{n}", route="dead", leased=True))
        await w.queue.until(lambda: len(w.reported) == 3)
        await wait_all_tasks_blocked()  # the pause that begins is looked at once
        claims = w.queue.claims
        for n in range(100):
            assert w.pool.capacity_hint("dead") == 0
            w.queue.add(f"left{n}", route="dead")
            w.pool.left("dead", [""])
            await trio.sleep(0.001)
        assert w.queue.claims == claims
        w.network.peers["dead"] = dead
        await w.queue.until(lambda: len(w.queue.outcomes) == 103)
        assert trio.current_time() < 5  # when the pause is over, not when the pool looks by itself


async def test_a_next_hop_that_was_away_for_long_is_told_until_it_is_back(autojump_clock: MockClock) -> None:
    """So that nobody waits for it; one that is away for a moment is waited for."""
    async with world(smtp("dead")) as w:
        dead, away_at = w.network.peers.pop("dead"), []
        for n in range(60):
            w.queue.add(f"m{n}", route="dead")
            if w.pool.left("dead", [""]):
                away_at.append(n)
            await trio.sleep(1)
        assert 15 <= away_at[0] <= 45
        assert away_at == list(range(away_at[0], 60))  # also while somebody tries it
        w.network.peers["dead"] = dead
        await w.queue.until(lambda: len(w.queue.outcomes) == 60)
        assert w.pool.left("dead", [""]) == []


async def test_nothing_is_forgotten_when_the_lane_was_full(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream", connections=1)) as w:
        w.peer.reactions["DOT"] = after(1, b"250 2.0.0 ok\r\n")
        count = 0
        while w.pool.capacity_hint("upstream"):
            w.pool.offer_nowait(w.queue.add(f"m{count}", leased=True))
            count += 1
        await trio.sleep(0.5)
        for n in range(20):
            w.queue.add(f"left{n}")
            w.pool.left("upstream", [""])
        await w.queue.until(lambda: len(w.reported) == count + 20)
        assert trio.current_time() < count + 20 + 30  # at once behind the others, not when the pool looks by itself
        assert all(w.queue.results(f"left{n}") == [Result.DELIVERED] for n in range(20))


@pytest.mark.parametrize("ready", [0, 5])
async def test_what_is_committed_while_a_claim_looks_is_looked_for_again(autojump_clock: MockClock, ready: int) -> None:
    """Behind what stands ready, too: the claim would say that the store has no more."""
    async with world(smtp("upstream", connections=1)) as w:
        w.peer.reactions["DOT"] = after(1, b"250 2.0.0 ok\r\n")
        for n in range(ready):
            w.pool.offer_nowait(w.queue.add(f"m{n}", leased=True))
        claim = w.queue.claim

        async def slow(limit: int, **kinds: Any) -> Any:
            jobs = await claim(limit, **kinds)
            await trio.sleep(1)
            return jobs

        w.queue.claim = slow  # type: ignore[assignment]
        w.pool.wake()
        await trio.sleep(0.5)
        w.queue.add("late")
        w.pool.left("upstream", [""])
        await w.queue.until(lambda: "late" in w.queue.outcomes)
        assert trio.current_time() < ready + 5


async def test_retries_are_not_lost_when_the_time_of_their_look_ends(autojump_clock: MockClock) -> None:
    """A claim that took nearly all of it: the rest begin at once."""
    async with world() as w:
        claim = w.queue.claim

        async def slow(limit: int, **kinds: Any) -> Any:
            found = await claim(limit, **kinds)
            await trio.sleep(UNIT_TIMEOUT_S - 0.025)
            return found

        w.queue.claim = slow  # type: ignore[method-assign]
        await trio.sleep(1)
        for n in range(5):
            w.queue.add(f"m{n}", attempts=1)
        w.pool.wake()
        with trio.fail_after(300):
            await w.queue.until(lambda: len(w.reported) == 5)
        assert [w.queue.results(f"m{n}") for n in range(5)] == [[Result.DELIVERED]] * 5
