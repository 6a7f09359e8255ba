# SPDX-License-Identifier: Apache-2.0
"""The pool's end when it is hurried (a second signal, or another part crashed), and with doors that still ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hepmaild.config import DeliverySettings, Misbehaviour, RouteKind
from hepmaild.delivery.job import Job, Result
from hepmaild.delivery.pool import CUT_S, DeliveryPool
from hepmaild.delivery.route import Route
from hepmaild.lifecycle import Lifecycle
from tests.delivery.memory_queue import MemoryQueue
from tests.delivery.peer import Network, Peer, after, hang
from tests.delivery.test_own import Ways
from tests.delivery.test_pool import now_us, smtp

LATEST_S = 2 * CUT_S + 5


@dataclass
class Ending:
    """A running pool.  scope: that of the daemon; lasted: until when."""

    pool: DeliveryPool
    queue: MemoryQueue
    peers: dict[str, Peer]
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            await self.pool.run(task_status=task_status)
        self.done.set()

    def begin_to_end(self, *, is_hurried: bool) -> None:
        """Cancel it, or let it drain."""
        if is_hurried:
            self.scope.cancel()
        else:
            self.lifecycle.draining.set()


@asynccontextmanager
async def running(*routes: Route, own: Ways | None = None, drain_timeout_s: float = 30.0) -> AsyncIterator[Ending]:
    routes = routes or (smtp("upstream"),)
    async with trio.open_nursery() as outside:
        peers = {route.host: Peer() for route in routes if route.host}
        queue, lifecycle = MemoryQueue(now_us), Lifecycle()
        pool = DeliveryPool(
            DeliverySettings(),
            routes,
            queue,
            lifecycle,
            "me.example",
            state_dir=Path("/nonexistent"),
            now_us=now_us,
            random=lambda: 0.5,
            connect=Network(outside, peers).connect,
            own=own,
            drain_timeout_s=drain_timeout_s,
        )
        ending = Ending(pool, queue, peers, lifecycle)
        await outside.start(ending.run)
        yield ending
        ending.scope.cancel()
        await ending.done.wait()
        outside.cancel_scope.cancel()
    queue.check_books(sum(len(peer.received) for peer in peers.values()))


@pytest.mark.parametrize("drained_s", [None, 0.0, 1.0, 25.0], ids=str)
async def test_when_it_is_cancelled_an_attempt_past_its_dot_is_in_doubt_and_soon(
    autojump_clock: MockClock, drained_s: float | None
) -> None:
    """drained_s: how long a drain had been under way."""
    async with running() as e:
        e.peers["upstream"].reactions["DOT"] = hang
        e.pool.offer_nowait(e.queue.add("m1", leased=True))
        await trio.sleep(1)
        if drained_s is not None:
            e.lifecycle.draining.set()
            await trio.sleep(drained_s)
        begun = trio.current_time()
        e.scope.cancel()
        await e.done.wait()
        assert trio.current_time() - begun <= LATEST_S
        assert e.queue.results("m1") == [Result.IN_DOUBT]


@pytest.mark.parametrize("drain_timeout_s", [1.0, 6.0, 30.0, 300.0])
async def test_a_drain_ends_in_its_time_however_short(autojump_clock: MockClock, drain_timeout_s: float) -> None:
    async with running(drain_timeout_s=drain_timeout_s) as e:
        e.peers["upstream"].reactions["DOT"] = hang
        e.pool.offer_nowait(e.queue.add("hung", leased=True))
        await trio.sleep(1)
        begun = trio.current_time()
        e.lifecycle.draining.set()
        await e.done.wait()
        assert drain_timeout_s / 2 < trio.current_time() - begun <= drain_timeout_s
        assert e.queue.results("hung") == [Result.IN_DOUBT]


@pytest.mark.parametrize("is_hurried", [False, True])
async def test_what_is_before_its_dot_is_forsaken_when_the_store_is_down(
    autojump_clock: MockClock, is_hurried: bool
) -> None:
    async with running() as e:
        e.peers["upstream"].reactions["MAIL"] = hang
        e.pool.offer_nowait(e.queue.add("m1", leased=True))
        await trio.sleep(1)
        e.queue.is_down = True
        begun = trio.current_time()
        e.begin_to_end(is_hurried=is_hurried)
        await e.done.wait()
        assert trio.current_time() - begun <= (LATEST_S if is_hurried else 30)
        assert e.queue.forsaken == ["m1"]


async def test_an_answer_that_comes_in_that_moment_is_still_heard(autojump_clock: MockClock) -> None:
    async with running() as e:
        e.peers["upstream"].reactions["DOT"] = after(1 + CUT_S / 2, b"250 2.0.0 ok\r\n")
        e.pool.offer_nowait(e.queue.add("m1", leased=True))
        await trio.sleep(1)
        e.scope.cancel()
        await e.done.wait()
        assert e.queue.results("m1") == [Result.DELIVERED]


@pytest.mark.parametrize("is_hurried", [False, True])
async def test_a_dot_that_leaves_after_the_end_began_has_no_more_time(
    autojump_clock: MockClock, is_hurried: bool
) -> None:
    """Its mark took so long.  A drain's bound holds for it too."""
    async with running() as e:
        e.peers["upstream"].reactions["DOT"] = hang
        e.queue.mark_s = 9.0 if not is_hurried else 2.0
        e.pool.offer_nowait(e.queue.add("m1", leased=True))
        await trio.sleep(1)
        begun = trio.current_time()
        e.begin_to_end(is_hurried=is_hurried)
        await e.done.wait()
        assert trio.current_time() - begun <= (LATEST_S if is_hurried else 30)
        assert e.queue.results("m1") == [Result.IN_DOUBT]


async def test_the_crash_of_a_part_ends_it_as_quickly(autojump_clock: MockClock) -> None:
    async with running() as e:
        e.peers["upstream"].reactions["DOT"] = hang
        e.pool.offer_nowait(e.queue.add("m1", leased=True))
        await trio.sleep(1)
        begun = trio.current_time()
        assert e.pool._workers is not None
        e.pool._workers.cancel_scope.cancel()  # as when one of them raises
        await e.done.wait()
        assert trio.current_time() - begun <= LATEST_S
        assert e.queue.results("m1") == [Result.IN_DOUBT]


async def test_what_was_delivered_but_could_not_be_reported_is_not_given_back_as_untried(
    autojump_clock: MockClock,
) -> None:
    """The store is back a moment after its time was over.  The mark stays, and who takes the lease back says so."""
    async with running() as e:
        forsaken: list[str] = []

        def forsake(job: Job) -> None:
            forsaken.append(job.message_id)  # as the outbox: only noted, until the store can be told
            e.queue.elsewhere.add(job.message_id)
            e.queue.is_down = False

        e.queue.forsake = forsake  # type: ignore[method-assign]
        e.peers["upstream"].reactions["DOT"] = after(1, b"250 2.0.0 ok\r\n")
        e.pool.offer_nowait(e.queue.add("m1", leased=True))
        await trio.sleep(0.5)
        e.queue.is_down = True
        e.scope.cancel()
        await e.done.wait()
        assert forsaken == ["m1"]
        assert e.queue.released == []
        assert e.queue.messages["m1"].marked


async def test_a_sandbox_that_says_nothing_keeps_nobody(autojump_clock: MockClock) -> None:
    box = Route("upstream", RouteKind.SANDBOX, misbehave=Misbehaviour.SLOW_DOT, misbehave_s=300)
    async with running(box) as e:
        e.pool.offer_nowait(e.queue.add("m1", leased=True))
        await trio.sleep(1)
        begun = trio.current_time()
        e.scope.cancel()
        await e.done.wait()
        assert trio.current_time() - begun <= LATEST_S


@pytest.mark.parametrize("is_hurried", [False, True])
async def test_doors_may_ask_while_kept_connections_are_closed(autojump_clock: MockClock, is_hurried: bool) -> None:
    """The last transactions of a drain ask for room by servers that nobody used yet, which have no track."""
    async with running(smtp("upstream"), smtp("second"), own=Ways()) as e:
        for name in ("upstream", "second"):
            e.pool.offer_nowait(e.queue.add(name, route=name, leased=True))
            e.peers[name].reactions["QUIT"] = after(1, b"221 bye\r\n")
        await e.queue.until(lambda: len(e.queue.outcomes) == 2)
        await trio.sleep(1)
        begun = trio.current_time()
        e.begin_to_end(is_hurried=is_hurried)
        await trio.sleep(0.5)
        for route in ("upstream", "own:2", "chaos:slow-dot"):
            assert e.pool.capacity_hint(route) == 0
            e.pool.left(route, [""])
            assert not e.pool.offer_nowait(e.queue.add(f"late {route}", route=route, leased=True))
            e.queue.elsewhere.add(f"late {route}")
        await e.done.wait()
        assert trio.current_time() - begun == pytest.approx(1)  # all at once
        assert [peer.lines[-1] for peer in e.peers.values()] == [b"QUIT"] * 2
