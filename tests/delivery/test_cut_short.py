# SPDX-License-Identifier: Apache-2.0
"""Cancelled at any step: nobody keeps a lease, what left is said to have left, and what was learnt is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hepmaild.config import DeliverySettings
from hepmaild.delivery.answers import Answer as DnsAnswer
from hepmaild.delivery.job import Result
from hepmaild.delivery.mta_sts import Kept
from hepmaild.delivery.pool import DeliveryPool
from hepmaild.delivery.sts_policies import StsPolicies
from hepmaild.lifecycle import Lifecycle
from tests.delivery.memory_queue import MemoryQueue
from tests.delivery.peer import Answer, Network, Peer, hang
from tests.delivery.test_pool import now_us, smtp
from tests.peers.cancelling import MOST_CUTS, Cut, cut_at

MANY = 130  # more than go back in two units


@dataclass
class Run:
    """One pool with one worker, and `jobs` that it is given before it has begun with one.  It drains when all are
    reported, or at once.  is_paused: all of it."""

    jobs: int
    peer: Peer
    is_paused: bool = False
    drains_at_once: bool = False
    queue: MemoryQueue = field(default_factory=lambda: MemoryQueue(now_us))

    async def cut_at(self, number: int) -> Cut:
        async with trio.open_nursery() as outside:
            lifecycle = Lifecycle()
            pool = DeliveryPool(
                DeliverySettings(workers=1),
                [smtp("upstream")],
                self.queue,
                lifecycle,
                "me.example",
                state_dir=Path("/nonexistent"),
                now_us=now_us,
                random=lambda: 0.5,
                connect=Network(outside, {"upstream": self.peer}).connect,
                is_paused=lambda *_: self.is_paused,
            )

            async def deliver() -> None:
                async with trio.open_nursery() as nursery:
                    await nursery.start(pool.run)
                    for n in range(self.jobs):
                        assert pool.offer_nowait(self.queue.add(f"m{n}", leased=True))
                    while not self.drains_at_once and len(self.queue.attempts) < self.jobs:
                        self.queue.changed = trio.Event()
                        await self.queue.changed.wait()
                    lifecycle.draining.set()

            cut = await cut_at(number, deliver)
            outside.cancel_scope.cancel()
        self.queue.check_books(len(self.peer.received))
        assert self.peer.open_now == 0
        return cut


@pytest.mark.parametrize("answer", [b"250 2.0.0 ok\r\n", b"451 4.3.0 later\r\n", b"550 5.7.1 no\r\n"])
async def test_an_attempt_that_is_cut_short_is_given_back_or_said(autojump_clock: MockClock, answer: Answer) -> None:
    said: set[tuple[Result, ...]] = set()
    for number in range(MOST_CUTS):
        run = Run(1, Peer({"DOT": answer}))
        cut = await run.cut_at(number)
        said.add(tuple(run.queue.results("m0")))
        assert not run.queue.forsaken
        if not cut.is_reached:
            break
    whole = {b"2": Result.DELIVERED, b"4": Result.DEFERRED, b"5": Result.FAILED}[(answer or b"")[:1]]
    assert said == {(), (whole,)}  # no doubt: the peer answers within `CUT_S`


@pytest.mark.parametrize("is_paused", [False, True])
async def test_what_stands_ready_goes_back_however_often_that_is_cut_short(
    autojump_clock: MockClock, is_paused: bool
) -> None:
    """A worker hangs, or gives back what is paused, while a drain gives back the rest in several units."""
    for number in range(MOST_CUTS):
        run = Run(MANY, Peer({"MAIL": hang}), is_paused, drains_at_once=True)
        cut = await run.cut_at(number)
        assert not run.queue.attempts
        if not cut.is_reached:
            break


class Policies:
    """Everything that `StsPolicies` asks: DNS, the policy's server and the store, each of which takes a moment."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.fetched = 0

    async def txt(self, name: str) -> DnsAnswer[str]:
        await trio.lowlevel.checkpoint()
        return DnsAnswer(("v=STSv1; id=1",), True, False, name, trio.current_time() + 60)

    async def fetch(self, _domain: str) -> str:
        await trio.lowlevel.checkpoint()
        self.fetched += 1
        return "version: STSv1\r\nmode: enforce\r\nmx: mx.x.example\r\nmax_age: 604800\r\n"

    async def load(self, domain: str) -> Kept | None:
        await trio.lowlevel.checkpoint()
        return self.kept.get(domain)

    async def save(self, kept: Kept) -> None:
        await trio.lowlevel.checkpoint()
        self.kept[kept.domain] = kept


async def test_a_policy_whose_first_asker_was_cancelled_is_saved_for_the_next() -> None:
    """It was remembered before: then no one saved it until it changed, and a restart forgot it (RFC 8461 §5.1)."""
    for number in range(MOST_CUTS):
        world = Policies()
        sts = StsPolicies(world, world.fetch, world, now_us)  # type: ignore[arg-type]
        cut = await cut_at(number, lambda: sts.policy_for("x.example"))  # noqa: B023
        found = await sts.policy_for("x.example")
        assert found.policy is not None
        assert set(world.kept) == {"x.example"}
        assert world.fetched <= 2
        if not cut.is_reached:
            break
    assert world.fetched == 1
