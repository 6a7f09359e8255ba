# SPDX-License-Identifier: Apache-2.0
"""The real pool, scheduler and machines on memory streams and Trio's mock clock: time is exact and costs nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair

from hepmaild.config import DeliverySettings, RouteKind, TlsMode
from hepmaild.delivery.attempt import LEASE_MARGIN_S, LONGEST_RETRY_S
from hepmaild.delivery.hops import Resolve
from hepmaild.delivery.job import Attempt, Claim, Job, Result
from hepmaild.delivery.pool import DeliveryPool
from hepmaild.delivery.route import OwnWays, Route
from hepmaild.delivery.scheduler import LONGEST_BACKOFF_S
from hepmaild.errors import SpoolUnavailable
from hepmaild.lifecycle import Lifecycle
from hepmaild.mail.content import Content, ContentBuilder
from hepmaild.mail.reply import Reply
from hepmaild.mail.wire import Flaw
from tests.conftest import LogEvents
from tests.delivery.memory_queue import MemoryQueue
from tests.delivery.peer import EHLO, Network, Peer, after, hang, hang_up

EPOCH_US = 1_800_000_000_000_000


def now_us() -> int:
    return EPOCH_US + int(trio.current_time() * 1_000_000)


@dataclass
class World:
    pool: DeliveryPool
    queue: MemoryQueue
    network: Network
    peers: dict[str, Peer]
    lifecycle: Lifecycle
    reported: list[Attempt]
    done: trio.Event

    @property
    def peer(self) -> Peer:
        return self.peers["upstream"]

    def break_store_at(self, step: str, answer: bytes) -> None:
        """The store goes away while the peer answers so."""

        async def break_store(_peer: Peer, _line: bytes) -> bytes:
            self.queue.is_down = True
            return answer

        self.peer.reactions[step] = break_store


def smtp(name: str, **more: object) -> Route:
    return Route(name, RouteKind.SMTP, name, 25, TlsMode.NONE, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def world(
    *routes: Route,
    settings: DeliverySettings | None = None,
    setup: Callable[[MemoryQueue], None] | None = None,
    state_dir: Path = Path("/nonexistent"),
    resolve: Resolve | None = None,
    is_paused: Callable[[str, str], bool] = lambda *_: False,
    own: OwnWays | None = None,
) -> AsyncIterator[World]:
    """A running pool with a well-behaved peer for each host of a route; ended by its drain, after which its books must
    hold."""
    routes = routes or (smtp("upstream"),)
    peers = {host.name: Peer() for route in routes if route.kind is RouteKind.SMTP for host in route.hosts}
    reported: list[Attempt] = []
    async with trio.open_nursery() as outside:
        network = Network(outside, peers)
        queue = MemoryQueue(now_us)
        if setup is not None:
            setup(queue)
        lifecycle = Lifecycle()
        pool = DeliveryPool(
            settings or DeliverySettings(),
            routes,
            queue,
            lifecycle,
            "me.example",
            state_dir=state_dir,
            now_us=now_us,
            random=lambda: 0.5,
            connect=network.connect,
            resolve=resolve,
            on_reported=reported.append,
            is_paused=is_paused,
            own=own,
        )
        done = trio.Event()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await pool.run(task_status=task_status)
            done.set()

        await outside.start(run)
        yield World(pool, queue, network, peers, lifecycle, reported, done)
        lifecycle.draining.set()
        await done.wait()
        outside.cancel_scope.cancel()
    queue.check_books(sum(len(peer.received) for peer in network.peers.values()))


async def test_offered_mail_is_delivered_without_the_store_being_read(autojump_clock: MockClock) -> None:
    async with world() as w:
        await trio.sleep(1)
        claims = w.queue.claims
        assert w.pool.offer_nowait(w.queue.add("m1", ["a@x.example", "b@x.example"], leased=True))
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.claims == claims
        assert w.queue.results("m1") == [Result.DELIVERED] * 2
        assert w.peer.received == [b"Subject: x\r\n\r\nhello"]
        attempt = w.reported[0]
        assert attempt.host == "upstream:25"
        assert [step.text for step in attempt.steps if step.who == "us"][:2] == [
            "EHLO me.example",
            "MAIL FROM:<s@example.com> SIZE=21",
        ]


async def test_waiting_mail_is_claimed_when_it_is_due(autojump_clock: MockClock) -> None:
    async with world(setup=lambda q: (q.add("now"), q.add("later", due_us=EPOCH_US + 50_000_000))[0] and None) as w:
        await w.queue.until(lambda: len(w.reported) == 2)
        assert [a.job.message_id for a in w.reported] == ["now", "later"]
        assert 50 <= trio.current_time() < 50.1


async def test_retries_begin_a_little_apart_unless_more_is_wanted(autojump_clock: MockClock) -> None:
    def setup(queue: MemoryQueue) -> None:
        for n in range(4):
            queue.add(f"m{n}", attempts=1)

    for wanted_at_us, begun_us in ((None, [0, 10_000, 20_000, 30_000]), (15_000, [0, 10_000, 15_000, 15_000])):
        async with world(setup=setup) as w:
            first_us = now_us()
            if wanted_at_us is not None:
                await trio.sleep(wanted_at_us / 1_000_000)
                w.pool.wake()
            await w.queue.until(lambda: len(w.reported) == 4)
            assert w.queue.claims == 1 + (wanted_at_us is not None)
            begun = sorted(a.started_at_us - first_us for a in w.reported)
            assert [round(us, -3) for us in begun] == begun_us


async def test_what_falls_due_earlier_than_all_else_costs_no_claim_in_vain(autojump_clock: MockClock) -> None:
    """The scheduler sleeps until then, and then it has time: nobody waits for this claim."""
    async with world(setup=lambda q: q.add("late", due_us=EPOCH_US + 50_000_000) and None) as w:
        await trio.sleep(1)
        assert (w.queue.claims, w.queue.patient_claims) == (1, 0)
        w.pool._scheduler.note_due(EPOCH_US + 20_000_000)
        w.pool._scheduler.note_due(EPOCH_US + 30_000_000)
        w.queue.add("early", due_us=EPOCH_US + 20_000_000)
        await trio.sleep(18)
        assert w.queue.claims == 1
        await w.queue.until(lambda: len(w.reported) == 1)
        assert 20 <= trio.current_time() < 20.1
        assert (w.queue.claims, w.queue.patient_claims) == (2, 1)
        w.queue.add("now")
        w.pool.wake()
        await w.queue.until(lambda: len(w.reported) == 2)
        assert (w.queue.claims, w.queue.patient_claims) == (3, 1)
        await w.queue.until(lambda: len(w.reported) == 3)
        assert [a.job.message_id for a in w.reported] == ["early", "now", "late"]
        assert 50 <= trio.current_time() < 50.1


async def test_a_retry_that_is_noted_while_a_claim_is_under_way_is_not_forgotten(autojump_clock: MockClock) -> None:
    """The claim has looked before the report was written, and would have us sleep for a minute."""

    def setup(queue: MemoryQueue) -> None:
        claim = queue.claim

        async def claim_slowly(*args: Any, **more: Any) -> Claim:
            found = await claim(*args, **more)
            await trio.sleep(1)
            return found

        queue.claim = claim_slowly  # type: ignore[method-assign]

    async with world(setup=setup, settings=DeliverySettings(retry_after_s=(5,))) as w:
        w.peer.reactions["DATA"] = after(0.5, b"451 4.3.0 not now\r\n")
        assert w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: len(w.queue.attempts) == 1)
        assert w.queue.claims == 1  # its answer is on its way
        assert trio.current_time() < 1
        del w.peer.reactions["DATA"]
        await w.queue.until(lambda: len(w.queue.attempts) == 2)
        assert trio.current_time() < 10
        assert w.queue.results("m1") == [Result.DEFERRED, Result.DELIVERED]


async def test_claimed_mail_that_was_never_tried_begins_at_once(autojump_clock: MockClock) -> None:
    def setup(queue: MemoryQueue) -> None:
        for n in range(6):
            queue.add(f"m{n}", attempts=n % 2)

    async with world(setup=setup) as w:
        first_us = now_us()
        await w.queue.until(lambda: len(w.reported) == 6)
        begun = {a.job.message_id: round(a.started_at_us - first_us, -3) for a in w.reported}
        assert [begun[f"m{n}"] for n in (0, 2, 4)] == [0, 0, 0]
        assert sorted(begun[f"m{n}"] for n in (1, 3, 5)) == [0, 10_000, 20_000]


async def test_an_idle_pool_does_nothing(autojump_clock: MockClock) -> None:
    async with world() as w:
        await trio.sleep(3600)
        assert w.queue.claims <= 62


async def test_connections_are_reused_and_then_renewed(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream", connections=1, messages_per_connection=3)) as w:
        for n in range(7):
            assert w.pool.offer_nowait(w.queue.add(f"m{n}", leased=True))
        await w.queue.until(lambda: len(w.reported) == 7)
        assert w.peer.connections == 3
        assert w.peer.lines.count(b"QUIT") == 2
        assert w.peer.most_open == 1


async def test_no_more_transactions_on_a_connection_than_the_next_hop_wants(autojump_clock: MockClock) -> None:
    """RFC 9422.  One too many was put off, where it is refused with 452."""
    async with world(smtp("upstream", connections=1)) as w:
        w.peer.ehlo = b"250-peer\r\n250 LIMITS MAILMAX=2\r\n"

        async def two_only(peer: Peer, line: bytes) -> bytes:
            mails = sum(line.startswith(b"MAIL") for line in peer.lines)
            return b"250 ok\r\n" if mails <= 2 * peer.connections else b"452 4.3.2 too many messages\r\n"

        w.peer.reactions["MAIL"] = two_only
        for n in range(5):
            w.pool.offer_nowait(w.queue.add(f"m{n}", leased=True))
        await w.queue.until(lambda: len(w.reported) == 5)
        assert len(w.peer.received) == 5
        assert w.peer.connections == 3
        assert w.peer.lines.count(b"QUIT") == 2


async def test_kept_connections_are_closed_when_idle(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: bool(w.reported))
        await trio.sleep(100)
        assert w.peer.open_now == 0
        assert w.peer.lines[-1] == b"QUIT"


async def test_a_kept_connection_that_died_costs_nothing(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: len(w.reported) == 1)

        async def die_once(peer: Peer, line: bytes) -> bytes:
            del peer.reactions["MAIL"]
            return await hang_up(peer, line) or b""

        w.peer.reactions["MAIL"] = die_once
        w.pool.offer_nowait(w.queue.add("m2", leased=True))
        await w.queue.until(lambda: len(w.reported) == 2)
        assert w.queue.results("m2") == [Result.DELIVERED]
        assert w.peer.connections == 2
        assert any("connection was lost" in step.text for step in w.reported[1].steps)


async def test_a_kept_connection_that_is_not_wanted_any_more_is_closed(autojump_clock: MockClock) -> None:
    """The next hop says so and leaves the closing to us."""
    async with world() as w:
        await trio.sleep(1)
        for n in range(5):
            w.pool.offer_nowait(w.queue.add(f"m{n}", leased=True))
            await w.queue.until(lambda n=n: len(w.reported) == n + 1)  # type: ignore[misc]
            assert w.queue.results(f"m{n}") == [Result.DELIVERED]

            async def busy_once(peer: Peer, line: bytes) -> bytes:
                del peer.reactions["MAIL"]
                return b"421 4.3.2 too long\r\n"

            w.peer.reactions["MAIL"] = busy_once
            assert w.peer.open_now == 1
        assert w.peer.connections == 5


@pytest.mark.parametrize(("seconds", "result"), [(599, Result.DELIVERED), (601, Result.IN_DOUBT)])
async def test_the_answer_to_the_dot_may_take_ten_minutes(
    autojump_clock: MockClock, seconds: int, result: Result
) -> None:
    """RFC 5321 §4.5.3.2.6."""
    async with world() as w:
        w.peer.reactions["DOT"] = after(seconds, b"250 2.0.0 at last\r\n")
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [result]
        assert trio.current_time() == pytest.approx(min(seconds, 600), abs=1)


async def test_lost_after_the_dot_is_in_doubt_and_tried_again(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.reactions["DOT"] = hang_up
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: len(w.reported) == 1)
        w.peer.reactions.clear()
        await w.queue.until(lambda: len(w.reported) == 2)
        assert w.queue.results("m1") == [Result.IN_DOUBT, Result.DELIVERED]
        assert trio.current_time() == pytest.approx(60, abs=2)


async def test_the_mark_comes_before_the_dot(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.queue.on_mark = lambda job: marks.append(len(w.peer.received))
        marks: list[int] = []
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: bool(w.reported))
        assert marks == [0]


async def test_without_the_lease_the_dot_stays_here(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.queue.refuse_mark = True
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await trio.sleep(5)
        assert w.peer.received == []
        assert w.peer.open_now == 0
        assert w.reported == []


async def test_what_was_paused_is_given_back_untried(autojump_clock: MockClock) -> None:
    paused: set[tuple[str, str]] = set()
    async with world(is_paused=lambda route, destination: (route, destination) in paused) as w:
        paused.add(("upstream", ""))
        w.pool.offer_nowait(w.queue.add("m1", leased=True, due_us=now_us() + 60_000_000))
        await w.queue.until(lambda: bool(w.queue.released))
        assert (w.queue.released, w.network.dials) == (["m1"], 0)
        paused.clear()
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [Result.DELIVERED]


@pytest.mark.parametrize("size", [100, 200_000])
async def test_store_down_at_the_mark(autojump_clock: MockClock, size: int) -> None:
    async with world() as w:
        w.break_store_at("DATA", b"354 go\r\n")
        body = b"Subject: x\r\n\r\n" + b"y" * 60 + b"\r\n" * (size // 2)
        w.pool.offer_nowait(w.queue.add("m1", leased=True, body=body))
        await trio.sleep(20)
        assert w.peer.received == []
        w.peer.reactions.clear()
        w.queue.is_down = False
        await w.queue.until(lambda: bool(w.reported))
        assert trio.current_time() < 20 + 1.1 * (LONGEST_RETRY_S + LONGEST_BACKOFF_S)
        assert w.queue.released == ["m1"]
        assert w.queue.results("m1") == [Result.DELIVERED]
        assert len(w.peer.received) == 1


async def test_store_down_at_the_report(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.break_store_at("DOT", b"250 2.0.0 ok\r\n")
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await trio.sleep(100)
        w.queue.is_down = False
        await w.queue.until(lambda: bool(w.reported))
        assert trio.current_time() < 100 + 1.1 * LONGEST_RETRY_S
        assert w.queue.results("m1") == [Result.DELIVERED]
        assert len(w.peer.received) == 1


async def test_store_down_for_the_claims(autojump_clock: MockClock) -> None:
    async with world(setup=lambda q: setattr(q, "is_down", True)) as w:
        await trio.sleep(30)
        w.queue.add("m1")
        w.queue.is_down = False
        await w.queue.until(lambda: bool(w.reported))
        assert trio.current_time() < 45
        for name in ("m2", "m3"):  # all is as before
            await trio.sleep(60)
            begun = trio.current_time()
            w.queue.add(name)
            w.pool.wake()
            await w.queue.until(lambda name=name: name in w.queue.outcomes)  # type: ignore[misc]
            assert trio.current_time() == begun


async def test_a_dead_route_does_not_delay_the_others(autojump_clock: MockClock) -> None:
    def setup(queue: MemoryQueue) -> None:
        for n in range(500):
            queue.add(f"dead{n}", route="dead")
        for n in range(200):
            queue.add(f"hang{n}", route="hang", due_us=EPOCH_US + 1)

    async with world(smtp("dead", connections=64), smtp("hang", connections=64), smtp("good")) as w:
        del w.peers["dead"]
        w.network.hanging.add("hang")
        setup(w.queue)
        w.pool.wake()
        await trio.sleep(3)
        begun = trio.current_time()
        for n in range(50):
            assert w.pool.capacity_hint("good") > 0
            assert w.pool.offer_nowait(w.queue.add(f"good{n}", route="good", leased=True))
        w.queue.add("good-claimed", route="good")
        w.pool.wake()
        await w.queue.until(lambda: len(w.peers["good"].received) == 51)
        assert trio.current_time() - begun < 1
        assert w.pool.capacity_hint("dead") == 0
        assert w.network.dials < 150


async def test_a_route_that_comes_back_is_used_soon(autojump_clock: MockClock) -> None:
    async with world() as w:
        peer = w.peers.pop("upstream")
        for n in range(100):
            w.queue.add(f"m{n}")
        w.pool.wake()
        await trio.sleep(300)
        tried = {a.job.message_id for a in w.reported}
        assert len(tried) < 60  # most have not wasted an attempt
        w.peers["upstream"] = peer
        await w.queue.until(lambda: len(peer.received) >= 100 - len(tried))
        assert trio.current_time() < 340
        assert "refused" in str(w.reported[0].outcomes[0].reply)


async def test_many_messages_of_one_route_do_not_starve_another(autojump_clock: MockClock) -> None:
    async with world(smtp("slow", connections=2), smtp("other"), settings=DeliverySettings(workers=4)) as w:
        w.peers["slow"].reactions["DOT"] = after(10, b"250 ok\r\n")
        for n in range(300):
            w.queue.add(f"slow{n}", route="slow")
        w.pool.wake()
        await trio.sleep(25)
        w.queue.add("other", route="other")
        w.pool.wake()
        await w.queue.until(lambda: "other" in w.queue.outcomes)
        assert trio.current_time() < 26
        assert w.peers["slow"].most_open == 2


async def test_too_many_recipients_go_in_the_next_transaction(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.ehlo = EHLO.replace(b"250 SMTPUTF8", b"250-SMTPUTF8\r\n250 LIMITS RCPTMAX=2")
        w.pool.offer_nowait(w.queue.add("m1", [f"r{n}@x.example" for n in range(5)], leased=True))
        await w.queue.until(lambda: w.queue.messages["m1"].done)
        assert len(w.peer.received) == 3
        assert trio.current_time() < 5


@pytest.mark.parametrize("answer", [b"452 4.5.3 Too many recipients\r\n", b"450 4.7.1 Rate: 1 message in 1 second\r\n"])
async def test_a_next_hop_that_never_takes_anybody_is_left_alone(answer: bytes, autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.reactions["RCPT"] = answer
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await trio.sleep(3600)
        assert 3 <= len(w.reported) <= 6


@pytest.mark.parametrize("answer", [b"452 4.5.3 too many\r\n", b"452 too many\r\n", b"550 5.5.3 too many\r\n"])
async def test_a_next_hop_that_takes_one_recipient_at_a_time_gets_them_quickly(
    answer: bytes, autojump_clock: MockClock
) -> None:
    """RFC 5321 §4.5.3.1.10, however often it says so, and whether it has enhanced codes or not."""
    taken: dict[int, int] = {}

    async def one_only(peer: Peer, line: bytes) -> bytes:
        transactions = sum(line.startswith(b"MAIL") for line in peer.lines)
        taken[transactions] = taken.get(transactions, 0) + 1
        return b"250 ok\r\n" if taken[transactions] == 1 else answer

    async with world() as w:
        w.peer.reactions["RCPT"] = one_only
        w.pool.offer_nowait(w.queue.add("m1", [f"r{n}@x.example" for n in range(6)], leased=True))
        await w.queue.until(lambda: w.queue.messages["m1"].done)
        assert len(w.peer.received) == 6
        assert trio.current_time() < 10


async def test_hints_of_the_peer_are_believed(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.reactions["RCPT"] = b"451 4.7.1 Greylisted, try again in 200 seconds\r\n"
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: len(w.reported) == 1)
        w.peer.reactions.clear()
        await w.queue.until(lambda: len(w.reported) == 2)
        assert trio.current_time() == pytest.approx(210, abs=2)
        assert len(w.peer.received) == 1


async def test_content_that_cannot_be_sent_fails_here(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.pool.offer_nowait(w.queue.add("m1", leased=True, body=b"Subject: x\r\n\r\nevil\n.\r\nMAIL"))
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [Result.FAILED]
        assert w.peer.received == []
        await trio.sleep(1)
        assert w.peer.open_now == 0


async def test_eight_bit_content_stays_as_it_is_whatever_the_next_hop_offers(autojump_clock: MockClock) -> None:
    """RFC 6152 §3 wants it made 7-bit; the contract wants it byte for byte (docs/quirks.md)."""
    body = "Subject: x\r\n\r\nGrüße".encode() + b" \xff\r\n"
    async with world() as w:
        for n, (ehlo, said) in enumerate([(EHLO, True), (EHLO.replace(b"250-8BITMIME\r\n", b""), False)]):
            w.peer.ehlo = ehlo
            w.pool.offer_nowait(w.queue.add(f"m{n}", leased=True, body=body))
            await w.queue.until(lambda n=n: w.queue.results(f"m{n}") == [Result.DELIVERED])
            assert w.peer.received[n] + b"\r\n" == body
            (mail,) = [line for line in w.peer.lines if line.startswith(b"MAIL")][n:]
            assert (b"BODY=8BITMIME" in mail) is said
            await trio.sleep(3600)  # the kept connection ends


async def test_large_and_spooled_content_arrives_whole(autojump_clock: MockClock) -> None:
    async with world() as w:
        body = b"Subject: x\r\n\r\n" + b"..dots\r\n.\r\nand lines\r\n" * 10_000
        w.pool.offer_nowait(w.queue.add("m1", leased=True, body=body))
        await w.queue.until(lambda: bool(w.reported))
        assert w.peer.received[0].replace(b"\r\n..", b"\r\n.") + b"\r\n" == body


class Stuck(Peer):
    """Takes a little of large content and no more, without a word."""

    async def _until(self, stream: trio.abc.Stream, buffer: bytearray, end: bytes) -> bytes:
        if end == b"\r\n.\r\n":
            await stream.receive_some(1000)
            await trio.sleep_forever()
        return await super()._until(stream, buffer, end)


@pytest.mark.parametrize("is_drained", [False, True])
async def test_a_peer_that_takes_no_more_of_large_content(is_drained: bool, autojump_clock: MockClock) -> None:
    """RFC 5321 §4.5.3.2.5: a block has so long, whatever is read beside it.  A drain does not wait for it."""
    async with world() as w:
        w.network.pair = lockstep_stream_pair
        w.peers["upstream"] = Stuck()
        began = trio.current_time()
        w.pool.offer_nowait(w.queue.add("m1", leased=True, body=b"x" * 70 + b"\r\n" * 400_000))
        if is_drained:
            await trio.sleep(5)
            w.lifecycle.draining.set()
            await w.done.wait()
            assert w.queue.released == ["m1"]
        else:
            await w.queue.until(lambda: bool(w.reported))
            assert trio.current_time() - began == pytest.approx(180, abs=2)
            assert w.queue.results("m1") == [Result.DEFERRED]
            assert "no answer in time" in str(w.reported[0].outcomes[0].reply)


async def test_large_content_that_may_not_leave_fails_here(autojump_clock: MockClock) -> None:
    """Where the flaw is found while the peer is listened to."""
    async with world() as w:
        body = (b"x" * 70 + b"\r\n") * 8000 + b"evil\n.\r\nMAIL\r\n"
        w.pool.offer_nowait(w.queue.add("m1", leased=True, body=body))
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [Result.FAILED]
        assert w.reported[0].outcomes[0].reply == Reply(550, "5.6.0", Flaw.BARE_LF.sentence)
        assert w.peer.received == []
        await trio.sleep(1)
        assert w.peer.open_now == 0


async def test_spooled_content_arrives_whole_and_is_closed() -> None:
    async with world() as w:
        builder = ContentBuilder()
        line = b"x" * 70 + b"\r\n"
        for _ in range(30):
            builder.write(line * 1000)
        content = builder.finish()
        assert content.is_spooled
        job = w.queue.add("m1", leased=True)
        w.peer.ehlo = b"250 peer\r\n"
        w.pool.offer_nowait(replace(job, content=content, size=content.size))
        with trio.fail_after(30):
            await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [Result.DELIVERED]
        assert w.peer.received[0] + b"\r\n" == line * 30_000
        with pytest.raises(ValueError, match="closed"):
            content.head(1)


async def test_spooled_content_that_is_given_back_is_closed(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream", connections=1)) as w:
        w.peer.ehlo = b"250 peer\r\n"
        w.peer.reactions["MAIL"] = hang
        contents = []
        for n in range(2):
            builder = ContentBuilder()
            for _ in range(30):
                builder.write((b"x" * 70 + b"\r\n") * 1000)
            contents.append(builder.finish())
            job = w.queue.add(f"m{n}", leased=True)
            w.pool.offer_nowait(replace(job, content=contents[n], size=contents[n].size))
        await trio.sleep(1)
        w.lifecycle.draining.set()
        await w.done.wait()
        assert sorted(w.queue.released) == ["m0", "m1"]  # the one under way, and the one that stood ready
        for content in contents:
            assert content.is_spooled
            with pytest.raises(ValueError, match="closed"):
                content.head(1)


async def test_a_refusal_in_the_middle_of_large_content(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.ehlo = b"250 peer\r\n"

        async def refuse(peer: Peer, line: bytes) -> bytes:
            return b"354 go\r\n552 5.3.4 too large for us\r\n"

        w.peer.reactions["DATA"] = refuse
        w.pool.offer_nowait(w.queue.add("m1", leased=True, body=b"x\r\n" * 100_000))
        await w.queue.until(lambda: bool(w.reported))
        # Both in one read: out of step, and so not believed.
        assert w.queue.results("m1") == [Result.DEFERRED]


async def test_a_crash_in_an_attempt_is_a_deferral(autojump_clock: MockClock, log_events: LogEvents) -> None:
    log_events.expect_error("attempt_crashed")
    async with world() as w:

        def crash(job: object) -> None:
            w.queue.on_mark = None
            raise RuntimeError("a defect")

        w.queue.on_mark = crash
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: len(w.reported) == 1)
        assert w.queue.results("m1") == [Result.DEFERRED]
        assert w.peer.received == []
        await w.queue.until(lambda: len(w.reported) == 2)
        assert w.queue.results("m1")[-1] is Result.DELIVERED


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_content_that_is_gone_is_a_deferral_unless_the_message_was_cancelled(
    autojump_clock: MockClock, log_events: LogEvents, is_cancelled: bool
) -> None:
    if not is_cancelled:
        log_events.expect_error("content_gone")
    async with world() as w:

        async def gone(job: Job) -> Content:
            if is_cancelled:
                w.queue.messages[job.message_id].leased = False
                w.queue.messages[job.message_id].held = True
            raise LookupError("the store has no content of m1")

        w.queue.load = gone  # type: ignore[method-assign]
        w.queue.add("m1")
        w.pool.wake()
        await trio.sleep(5)
        assert w.queue.results("m1") == ([] if is_cancelled else [Result.DEFERRED])
        assert w.queue.refused == is_cancelled
        assert len(log_events.named("content_gone")) == (not is_cancelled)


async def test_content_that_finds_no_room_here_is_tried_again_and_says_why(autojump_clock: MockClock) -> None:
    """Large content is spooled on its way out, and the disk may be full."""
    async with world() as w:

        async def load(_job: Job) -> Content:
            raise SpoolUnavailable("No space left on device")

        w.queue.load = load  # type: ignore[method-assign]
        w.queue.add("m1")
        w.pool.wake()
        await w.queue.until(lambda: "m1" in w.queue.outcomes)
        (outcome,) = w.queue.outcomes["m1"]
        assert outcome.result is Result.DEFERRED
        assert str(outcome.reply) == "451 4.3.0 here: the content could not be read: No space left on device"
        assert not w.peer.lines


async def test_a_silent_peer_is_left_after_its_time(autojump_clock: MockClock) -> None:
    """RFC 5321 §4.5.3.2."""
    async with world() as w:
        w.peer.reactions["GREETING"] = hang
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: bool(w.reported))
        assert trio.current_time() == pytest.approx(300, abs=1)
        assert w.queue.results("m1") == [Result.DEFERRED]


@pytest.mark.parametrize("ehlo", [EHLO, b"250 peer\r\n"], ids=["pipelined", "one by one"])
async def test_each_recipient_has_its_own_time(autojump_clock: MockClock, ehlo: bytes) -> None:
    """RFC 5321 §4.5.3.2.3: five minutes for each RCPT.  Those that left together had five in all, at every attempt:
    what takes seconds to look at each of a hundred recipients never got the message."""
    async with world() as w:
        w.peer.ehlo = ehlo
        w.peer.reactions["RCPT"] = after(8, b"250 2.1.5 ok\r\n")
        w.pool.offer_nowait(w.queue.add("m1", [f"u{n}@example.net" for n in range(100)], leased=True))
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [Result.DELIVERED] * 100
        assert trio.current_time() == pytest.approx(800, abs=1)


async def test_a_reply_now_and_then_does_not_hold_an_attempt_beyond_its_time(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.reactions["RCPT"] = after(299, b"250 2.1.5 ok\r\n")
        w.pool.offer_nowait(w.queue.add("m1", [f"u{n}@example.net" for n in range(100)], leased=True))
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [Result.DEFERRED] * 100
        assert trio.current_time() == pytest.approx(DeliverySettings().attempt_timeout_s - LEASE_MARGIN_S, abs=1)


async def test_drain_lets_quick_attempts_finish(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.reactions["MAIL"] = after(5, b"250 ok\r\n")
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await trio.sleep(1)
        w.lifecycle.draining.set()
        await trio.sleep(1)
        assert w.pool.capacity_hint("upstream") == 0
        assert not w.pool.offer_nowait(w.queue.add("early", leased=True))
        w.queue.elsewhere.add("early")
        w.queue.add("due")
        claims = w.queue.claims
        w.pool.wake()
        await w.done.wait()
        assert w.queue.claims == claims
        assert w.queue.results("m1") == [Result.DELIVERED]
        assert trio.current_time() < 7
        assert w.peer.open_now == 0
        assert not w.pool.offer_nowait(w.queue.add("m2", leased=True))
        w.queue.elsewhere.add("m2")
        assert w.pool.capacity_hint("upstream") == 0


async def test_drain_gives_back_what_nobody_works_on_in_few_units(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream", connections=1)) as w:
        w.peer.reactions["MAIL"] = hang
        for n in range(40):
            w.pool.offer_nowait(w.queue.add(f"m{n}", leased=True))
        await trio.sleep(1)
        w.lifecycle.draining.set()
        before = w.queue.units
        await w.queue.until(lambda: len(w.queue.released) >= 30)
        assert w.queue.units - before <= 2
        assert trio.current_time() == 1  # at once: others may have it
        await w.done.wait()
        assert len(set(w.queue.released)) == 40


async def test_drain_gives_back_what_is_before_the_dot(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream", connections=1)) as w:
        w.peer.reactions["MAIL"] = hang
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        w.pool.offer_nowait(w.queue.add("m2", leased=True))
        await trio.sleep(1)
        w.lifecycle.draining.set()
        await w.done.wait()
        assert sorted(w.queue.released) == ["m1", "m2"]
        assert w.reported == []
        assert trio.current_time() < 31


async def test_drain_says_in_doubt_of_what_is_past_the_dot(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.reactions["DOT"] = hang
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await trio.sleep(1)
        w.lifecycle.draining.set()
        await w.done.wait()
        assert w.queue.results("m1") == [Result.IN_DOUBT]
        assert 20 < trio.current_time() < 31


async def test_drain_with_the_store_down_ends_in_time(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream", connections=1)) as w:
        w.peer.reactions["DOT"] = after(2, b"250 ok\r\n")
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        w.pool.offer_nowait(w.queue.add("m2", leased=True))
        await trio.sleep(1)
        w.queue.is_down = True
        w.lifecycle.draining.set()
        await w.done.wait()
        assert trio.current_time() < 32


async def test_a_drain_waits_no_longer_for_a_store_that_was_down_before_it(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.break_store_at("DOT", b"250 2.0.0 ok\r\n")
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await trio.sleep(60)
        w.lifecycle.draining.set()
        await w.done.wait()
        assert trio.current_time() < 60 + 31
        assert w.queue.forsaken == ["m1"]


async def test_sandbox_keeps_the_octets(tmp_path: Path) -> None:
    route = Route("sandbox", RouteKind.SANDBOX, directory="kept")
    async with world(route, state_dir=tmp_path) as w:
        body = b"Subject: x\r\n\r\n.dot\r\nno end"
        with trio.fail_after(20):
            w.pool.offer_nowait(w.queue.add("0123456789abcdef", leased=True, route="sandbox", body=body))
            w.pool.offer_nowait(w.queue.add("../escape", leased=True, route="sandbox", body=body))
            await w.queue.until(lambda: len(w.reported) == 2)
        assert (tmp_path / "kept" / "0123456789abcdef.eml").read_bytes() == body
        envelope = json.loads((tmp_path / "kept" / "0123456789abcdef.json").read_text())
        assert envelope["recipients"] == ["a@example.net"]
        assert len(list(tmp_path.rglob("*"))) == 3  # noqa: ASYNC240
        assert w.queue.results("../escape") == [Result.DEFERRED]


async def test_contents_that_stand_ready_are_bounded(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream", connections=1)) as w:
        w.peer.reactions["DOT"] = after(10, b"250 ok\r\n")
        taken = 0
        while w.pool.capacity_hint("upstream") and taken < 5000:
            w.pool.offer_nowait(w.queue.add(f"m{taken}", leased=True))
            taken += 1
        assert 5 < taken < 2000
        assert w.pool.capacity_hint("upstream") == 0
        for n in range(30):
            w.queue.add(f"q{n}")
        w.pool.wake()
        await w.queue.until(lambda: len(w.reported) == taken + 30)
