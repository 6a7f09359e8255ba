# SPDX-License-Identifier: Apache-2.0
"""Routes of kind `mx` on memory streams and the mock clock: who shares what, and who delays nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.abc import Stream
from trio.testing import MockClock

from hepmaild.config import DeliverySettings, RouteKind
from hepmaild.delivery.connections import connect_first
from hepmaild.delivery.hops import Hop, Hops, NoHops, TlsLevel, TlsPolicy
from hepmaild.delivery.job import Result
from hepmaild.delivery.pool import READY_OCTETS
from hepmaild.delivery.route import Route
from hepmaild.delivery.track import READY_LANE, STUCK_MX, Track
from hepmaild.mail.reply import Reply
from tests.delivery.peer import Peer, after, hang, hang_up
from tests.delivery.test_pool import World, world

MX = Route("direct", RouteKind.MX, port=25)
CLEAR = TlsPolicy(TlsLevel.NONE)


class Names:
    """A resolver: what it knows, or a host of its own for each destination, with the address `10.DESTINATION`."""

    def __init__(self, known: dict[str, Hops | NoHops] | None = None) -> None:
        self.known = known or {}
        self.asked: list[str] = []
        self.hanging: set[str] = set()

    async def __call__(self, destination: str) -> Hops | NoHops:
        self.asked.append(destination)
        await trio.lowlevel.checkpoint()
        if destination in self.hanging:
            await trio.sleep_forever()
        found = self.known.get(destination)
        return found or hops((f"mx.{destination}", (f"10.{destination}",)), group=f"g.{destination}")


def hops(*hosts: tuple[str, tuple[str, ...]], group: str, tls: TlsPolicy = CLEAR) -> Hops:
    return Hops(tuple(Hop(name, addresses, tls) for name, addresses in hosts), group)


class Everybody(dict[str, Peer]):
    """A peer at every address that is asked for, unless it is said to be dead."""

    def __init__(self, dead: set[str]) -> None:
        super().__init__()
        self.dead = dead

    def __contains__(self, host: object) -> bool:
        return host not in self.dead

    def __missing__(self, host: str) -> Peer:
        self[host] = peer = Peer()
        return peer


@asynccontextmanager
async def direct(
    names: Names, *, dead: set[str] | None = None, settings: DeliverySettings | None = None, route: Route = MX
) -> AsyncIterator[World]:
    async with world(route, resolve=names, settings=settings) as w:
        w.network.peers = w.peers = Everybody(dead or set())
        yield w


def track_of(w: World, name: str = "direct") -> Track:
    track = w.pool._tracks.get(name)
    assert track is not None
    return track


async def test_a_message_goes_to_its_destination(autojump_clock: MockClock) -> None:
    async with direct(Names()) as w:
        assert w.pool.capacity_hint("direct", ["a.example"]) > 0
        w.pool.offer_nowait(w.queue.add("m1", ["x@a.example"], route="direct", destination="a.example", leased=True))
        w.queue.add("m2", ["x@b.example"], route="direct", destination="b.example")
        w.pool.wake()
        await w.queue.until(lambda: len(w.reported) == 2)
        assert [len(w.peers[f"10.{d}"].received) for d in ("a.example", "b.example")] == [1, 1]
        assert {a.host for a in w.reported} == {"mx.a.example[10.a.example]:25", "mx.b.example[10.b.example]:25"}
        assert {a.tls_level for a in w.reported} == {"none"}
        await trio.sleep(60)
        assert not track_of(w).lanes
        assert not [place for place in track_of(w).places.values() if place.kept]


async def test_hosts_are_tried_in_order_and_the_first_that_gives_a_session_decides(autojump_clock: MockClock) -> None:
    """RFC 5321 §5.1."""
    known = hops(("mx1", ("10.1",)), ("mx2", ("10.2",)), ("mx3", ("10.3",)), ("mx4", ("10.4",)), group="g")
    async with direct(Names({"a.example": known}), dead={"10.1"}) as w:
        w.peers["10.2"].reactions["GREETING"] = b"421 4.3.2 not now\r\n"
        w.peers["10.3"].reactions["RCPT"] = b"550 5.1.1 nobody\r\n"
        w.queue.add("m1", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [Result.FAILED]
        assert w.reported[0].host == "mx3[10.3]:25"
        assert w.peers["10.4"].connections == 0
        notes = " ".join(step.text for step in w.reported[0].steps)
        assert "mx1:25: connection refused" in notes
        assert "421" in notes


@pytest.mark.parametrize(
    ("reply", "result"),
    [(Reply(556, "5.1.10", "takes no mail"), Result.FAILED), (Reply(451, "4.4.3", "no answer"), Result.DEFERRED)],
)
async def test_nowhere_to_go(autojump_clock: MockClock, reply: Reply, result: Result) -> None:
    """RFC 5321 §5.1, RFC 7505."""
    async with direct(Names({"a.example": NoHops(reply)})) as w:
        w.queue.add("m1", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [result]
        assert w.reported[0].outcomes[0].reply == reply


async def test_a_look_up_that_never_ends_is_a_deferral(autojump_clock: MockClock) -> None:
    names = Names()
    names.hanging.add("a.example")
    async with direct(names) as w:
        w.queue.add("m1", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await w.queue.until(lambda: bool(w.reported))
        assert trio.current_time() == pytest.approx(120, abs=1)
        assert "4.4.3" in str(w.reported[0].outcomes[0].reply)


async def test_without_a_resolver_mail_is_deferred(autojump_clock: MockClock) -> None:
    async with world(MX) as w:
        w.queue.add("m1", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [Result.DEFERRED]


async def test_concurrency_begins_with_two_and_grows_for_all_who_share_the_hosts(autojump_clock: MockClock) -> None:
    shared = hops(("mx", ("10.mx",)), group="g")
    names = Names({f"d{n}.example": shared for n in range(20)})
    async with direct(names) as w:
        peer = w.peers["10.mx"]
        peer.reactions["DOT"] = after(1, b"250 ok\r\n")
        seen = []
        for n in range(200):
            w.queue.add(f"m{n}", [f"x@d{n % 20}.example"], route="direct", destination=f"d{n % 20}.example")
        w.pool.wake()
        for _ in range(4):
            await trio.sleep(0.5)
            seen.append(peer.open_now)
            await trio.sleep(0.5)
        await w.queue.until(lambda: len(w.reported) == 200)
        assert seen == [2, 4, 8, 16]
        assert peer.most_open == 20
        assert peer.connections < 30
        assert trio.current_time() < 15


async def test_one_hung_destination_of_a_thousand_delays_nobody(autojump_clock: MockClock) -> None:
    async with direct(Names()) as w:
        w.network.hanging.add("10.d0.example")
        for n in range(1000):
            w.queue.add(f"m{n}", [f"x@d{n}.example"], route="direct", destination=f"d{n}.example")
        for n in range(200):
            w.queue.add(f"h{n}", ["x@d0.example"], route="direct", destination="d0.example")
        w.pool.wake()
        await w.queue.until(lambda: sum(len(p.received) for p in w.peers.values()) == 999)
        assert trio.current_time() < 1
        assert w.network.dials < 1010
        await trio.sleep(500)
        assert w.network.dials < 1050  # what waits for it has few attempts wasted
        assert w.pool.active <= 3


@pytest.mark.parametrize(("hung", "most_s"), [(10, 0.2), (100, 10.0)])
async def test_many_hung_destinations(autojump_clock: MockClock, hung: int, most_s: float) -> None:
    async with direct(Names()) as w:
        for n in range(hung):
            w.network.hanging.add(f"10.h{n}.example")
            for m in range(20):
                w.queue.add(f"h{n}-{m}", [f"x@h{n}.example"], route="direct", destination=f"h{n}.example")
        w.pool.wake()
        await trio.sleep(0.1)
        for n in range(50):
            w.queue.add(f"m{n}", [f"x@d{n}.example"], route="direct", destination=f"d{n}.example")
        w.pool.wake()
        await w.queue.until(lambda: sum(len(p.received) for p in w.peers.values()) == 50)
        assert trio.current_time() < most_s
        # Those that work are known to work now: nothing that hangs is before them.
        await trio.sleep(40)
        begun = trio.current_time()
        for n in range(50):
            w.queue.add(f"again{n}", [f"x@d{n}.example"], route="direct", destination=f"d{n}.example")
        w.pool.wake()
        await w.queue.until(lambda: sum(len(p.received) for p in w.peers.values()) == 100)
        assert trio.current_time() - begun < 1
        await trio.sleep(0.5)
        assert w.pool.active <= 2 * hung


async def test_a_dead_destination_is_left_alone_and_others_are_claimed(autojump_clock: MockClock) -> None:
    async with direct(Names(), dead={"10.dead.example"}) as w:
        for n in range(3000):
            w.queue.add(f"dead{n}", ["x@dead.example"], route="direct", destination="dead.example")
        for n in range(300):
            w.queue.add(f"m{n}", [f"x@d{n}.example"], route="direct", destination=f"d{n}.example")
        w.pool.wake()
        await w.queue.until(lambda: sum(len(p.received) for p in w.peers.values()) == 300)
        assert trio.current_time() < 1
        assert w.pool.capacity_hint("direct", ["dead.example"]) == 0
        assert w.pool.capacity_hint("direct", ["d1.example"]) > 0
        await trio.sleep(600)
        assert w.pool.left("direct", ["dead.example", "d1.example"]) == ["dead.example"]
        assert len(w.reported) < 340
        assert len(track_of(w).lanes) <= 1
        assert track_of(w).ready <= 256 + READY_LANE
        w.network.peers.dead.clear()  # type: ignore[attr-defined]
        await w.queue.until(lambda: sum(len(p.received) for p in w.peers.values()) > 3200)
        assert trio.current_time() < 600 + 150


async def test_what_many_destinations_leave_behind_is_bounded(autojump_clock: MockClock) -> None:
    dead = {f"10.d{n}.example" for n in range(0, 4000, 2)}
    async with direct(Names(), dead=dead) as w:
        for n in range(4000):
            w.queue.add(f"m{n}", [f"x@d{n}.example"], route="direct", destination=f"d{n}.example")
        w.pool.wake()
        await w.queue.until(lambda: len(w.reported) == 4000)
        track = track_of(w)
        assert len(track.places) <= 1000
        assert not track.lanes
        assert track.ready == track.active == 0
        assert track.unstalled == [0, 0, 0]


async def test_ready_work_waits_while_its_place_pauses(autojump_clock: MockClock) -> None:
    shared = hops(("mx", ("10.mx",)), group="g")
    names = Names({f"d{n}.example": shared for n in range(30)})
    async with direct(names, dead={"10.mx"}) as w:
        for n in range(30):
            w.queue.add(f"m{n}", [f"x@d{n}.example"], route="direct", destination=f"d{n}.example")
        w.pool.wake()
        await trio.sleep(0.5)
        assert len(w.reported) <= 6
        assert w.pool.figures()["direct"][3] == 1
        w.network.peers.dead.clear()  # type: ignore[attr-defined]
        await w.queue.until(lambda: len(w.peers["10.mx"].received) >= 24)
        assert trio.current_time() < 10


async def test_a_tls_policy_that_cannot_be_met_is_the_destinations_own_trouble(autojump_clock: MockClock) -> None:
    hosts = ("mx", ("10.mx",))
    strict = hops(hosts, group="g", tls=TlsPolicy(TlsLevel.VERIFIED, "mta-sts enforce"))
    names = Names({"strict.example": strict, "lax.example": hops(hosts, group="g")})
    async with direct(names) as w:
        for n in range(100):
            w.queue.add(f"strict{n}", ["x@strict.example"], route="direct", destination="strict.example")
        for n in range(20):
            w.queue.add(f"lax{n}", ["x@lax.example"], route="direct", destination="lax.example")
        w.pool.wake()
        await w.queue.until(lambda: len(w.peers["10.mx"].received) == 20)
        assert trio.current_time() < 1
        await trio.sleep(30)
        refused = [a for a in w.reported if a.job.destination == "strict.example"]
        assert 3 <= len(refused) < 40
        assert {o.result for a in refused for o in a.outcomes} == {Result.DEFERRED}
        assert "STARTTLS is required but not offered (mta-sts enforce)" in str(refused[0].outcomes[0].reply)
        assert len(w.peers["10.mx"].received) == 20


async def test_a_kept_connection_is_not_used_below_the_policy(autojump_clock: MockClock) -> None:
    hosts = ("mx", ("10.mx",))
    names = Names({"a.example": hops(hosts, group="g")})
    async with direct(names) as w:
        w.queue.add("m1", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await w.queue.until(lambda: len(w.reported) == 1)
        names.known["a.example"] = hops(hosts, group="g", tls=TlsPolicy(TlsLevel.ENCRYPTED, "dane"))
        w.queue.add("m2", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await w.queue.until(lambda: len(w.reported) == 2)
        assert w.queue.results("m2") == [Result.DEFERRED]
        assert w.peers["10.mx"].connections == 2


async def test_mail_accepted_for_another_kind_of_route_goes_to_each_domain(autojump_clock: MockClock) -> None:
    async with direct(Names()) as w:
        w.queue.add("m1", ["x@a.example", "y@b.example", "z@A.example"], route="direct")
        w.pool.wake()
        await w.queue.until(lambda: w.queue.messages["m1"].done)
        assert [len(w.peers[f"10.{d}"].received) for d in ("a.example", "b.example")] == [1, 1]
        assert sum(line.startswith(b"RCPT") for line in w.peers["10.a.example"].lines) == 2
        assert trio.current_time() < 5


@pytest.mark.parametrize("order", [("a", "gone"), ("gone", "a", "later")], ids=str)
async def test_of_it_only_those_fail_whose_domain_takes_no_mail(
    order: tuple[str, ...], autojump_clock: MockClock
) -> None:
    names = Names()
    names.known["gone.example"] = NoHops(Reply(556, "5.1.10", "gone.example takes no mail"))
    names.known["later.example"] = NoHops(Reply(451, "4.4.3", "no answer"))
    async with direct(names) as w:
        w.queue.add("m1", [f"x@{where}.example" for where in order], route="direct")
        w.pool.wake()
        await trio.sleep(3600)
        ends: dict[str, list[Result]] = {}
        for outcome in w.queue.outcomes["m1"]:
            ends.setdefault(order[outcome.recipient_id - 1], []).append(outcome.result)
        assert ends["a"][-1] is Result.DELIVERED
        assert ends["gone"][-1] is Result.FAILED
        assert set(ends.get("later", [Result.DEFERRED])) == {Result.DEFERRED}


async def test_a_dead_domain_does_not_delay_the_others_of_such_mail(autojump_clock: MockClock) -> None:
    """Who could not be reached waits for the schedule; whose servers nobody tried goes next."""
    async with direct(Names(), dead={"10.dead.example"}) as w:
        w.queue.add("m1", ["x@dead.example", "y@b.example", "z@dead.example"], route="direct")
        w.pool.wake()
        await w.queue.until(lambda: bool(w.reported))
        first = w.reported[0]
        waits_s = [round(((o.retry_at_us or 0) - first.ended_at_us) / 1e6) for o in first.outcomes]
        assert waits_s == [60, 1, 60]
        assert ["refused" in str(o.reply) for o in first.outcomes] == [True, False, True]


async def test_no_more_than_so_many_stand_ready_for_hosts_that_are_dead(autojump_clock: MockClock) -> None:
    """Many destinations turn out to share them: what finds no room is deferred untried, and says why."""
    shared, count = hops(("mx", ("10.g",)), group="g"), STUCK_MX + 100
    async with direct(Names({f"d{n}.example": shared for n in range(count)}), dead={"10.g"}) as w:

        def offer(n: int) -> None:
            where = f"d{n}.example"
            w.pool.offer_nowait(w.queue.add(f"m{n}", [f"x@{where}"], route="direct", destination=where, leased=True))

        for n in range(3):
            offer(n)
        await w.queue.until(lambda: len(w.reported) == 3)
        for n in range(3, count):
            offer(n)
        await trio.sleep(0.5)
        assert w.network.dials == 3
        assert w.pool.figures()["direct"][1] == STUCK_MX
        replies = [str(attempt.outcomes[0].reply) for attempt in w.reported[3:]]
        assert len(replies) == 97
        assert all("the hosts of d" in reply and "many messages wait for them" in reply for reply in replies)
        w.network.peers.dead.clear()  # type: ignore[attr-defined]
        await w.queue.until(lambda: all(w.queue.messages[f"m{n}"].done for n in range(count)))
        assert {w.queue.results(f"m{n}")[-1] for n in range(count)} == {Result.DELIVERED}


async def test_contents_that_wait_for_dead_hosts_count_among_those_in_memory(autojump_clock: MockClock) -> None:
    """Also once it turned out where they go, and they were put back."""
    shared = hops(("mx", ("10.g",)), group="g")
    async with direct(Names({f"d{n}.example": shared for n in range(4)}), dead={"10.g"}) as w:
        for n in range(4):
            where = f"d{n}.example"
            job = w.queue.add(f"m{n}", [f"x@{where}"], route="direct", destination=where, leased=True)
            w.pool.offer_nowait(replace(job, size=READY_OCTETS + 1) if n == 3 else job)
            if n < 3:
                await w.queue.until(lambda n=n: len(w.reported) == n + 1)  # type: ignore[misc]
        await trio.sleep(0.5)
        assert w.network.dials == 3
        assert w.pool.capacity_hint("direct", ["another.example"]) == 0
        w.network.peers.dead.clear()  # type: ignore[attr-defined]
        await w.queue.until(lambda: Result.DELIVERED in w.queue.results("m3"))
        assert w.pool.capacity_hint("direct", ["another.example"]) > 0


async def test_a_route_changes_its_kind_and_goes(autojump_clock: MockClock) -> None:
    async with direct(Names()) as w:
        w.peers["10.a.example"].reactions["MAIL"] = after(5, b"250 ok\r\n")
        for n in range(10):
            w.queue.add(f"m{n}", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await trio.sleep(1)
        w.pool.replace_routes([Route("direct", RouteKind.SMTP, "hub", 25)])
        await w.queue.until(lambda: len(w.reported) == 10)
        assert len(w.peers["hub"].received) >= 8
        w.pool.replace_routes([])
        w.queue.add("late", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await w.queue.until(lambda: bool(w.queue.put_offs))
        ((message_id, why),) = w.queue.put_offs
        assert message_id == "late"
        assert "there is no route 'direct'" in why
        w.pool.replace_routes([MX])
        await w.queue.until(lambda: w.queue.messages["late"].done)
        await trio.sleep(60)
        assert all(peer.open_now == 0 for peer in w.peers.values())


async def test_a_drain_gives_back_what_no_one_works_on(autojump_clock: MockClock) -> None:
    async with direct(Names()) as w:
        w.network.hanging.add("10.a.example")
        for n in range(10):
            w.queue.add(f"m{n}", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await trio.sleep(5)
        w.lifecycle.draining.set()
        await w.done.wait()
        assert sorted(set(w.queue.released)) == sorted(f"m{n}" for n in range(10))
        assert not any(waiting.leased for waiting in w.queue.messages.values())


async def test_the_peer_that_breaks_off_mid_session_makes_room_smaller(autojump_clock: MockClock) -> None:
    async with direct(Names()) as w:
        for n in range(60):
            w.queue.add(f"m{n}", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await w.queue.until(lambda: len(w.reported) >= 30)
        place = track_of(w).places["g.a.example"]
        grown = place.allowed
        assert grown > 10
        w.peers["10.a.example"].reactions["DATA"] = hang_up
        w.queue.add("cut", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await w.queue.until(lambda: "cut" in w.queue.outcomes)
        assert place.allowed <= grown // 2


# Addresses


@pytest.mark.parametrize(
    ("addresses", "alive", "winner", "seconds"),
    [
        (("::1", "::2", "1.1.1.1"), {"::1"}, "::1", 0),
        (("::1", "::2", "1.1.1.1"), {"1.1.1.1"}, "1.1.1.1", 0.25),
        (("::1", "::2", "1.1.1.1", "1.1.1.2"), {"1.1.1.2"}, "1.1.1.2", 0.75),
    ],
)
async def test_addresses_are_tried_quickly(
    autojump_clock: MockClock, addresses: tuple[str, ...], alive: set[str], winner: str, seconds: float
) -> None:
    """RFC 8305 §5."""
    opened: list[Stream] = []

    async def connect(host: str, port: int) -> Stream:
        if host not in alive:
            await trio.sleep(20)
            raise OSError(113, "No route to host")
        ours, theirs = trio.testing.memory_stream_pair()
        opened.append(theirs)
        return ours

    begun = trio.current_time()
    _, address = await connect_first(connect, addresses, 25)
    assert address == winner
    assert trio.current_time() - begun == pytest.approx(seconds)
    with pytest.raises(OSError, match="no address"):
        await connect_first(connect, ["9.9.9.9", "::9"], 25)


async def test_refused_addresses_do_not_wait(autojump_clock: MockClock) -> None:
    async def connect(host: str, port: int) -> Stream:
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(OSError, match="no address"):
        await connect_first(connect, ["::1", "1.1.1.1", "1.1.1.2"], 25)
    assert trio.current_time() < 0.1


async def test_a_hung_dot_holds_nobody(autojump_clock: MockClock) -> None:
    async with direct(Names(), settings=DeliverySettings(workers=4)) as w:
        for n in range(6):
            w.peers[f"10.h{n}.example"].reactions["DOT"] = hang
            w.queue.add(f"h{n}", [f"x@h{n}.example"], route="direct", destination=f"h{n}.example")
        w.pool.wake()
        await trio.sleep(10)
        assert w.pool.stalled == 6
        w.queue.add("m", ["x@a.example"], route="direct", destination="a.example")
        w.pool.wake()
        await w.queue.until(lambda: "m" in w.queue.outcomes)
        assert trio.current_time() < 11
        await w.queue.until(lambda: len(w.reported) == 7)
        assert w.queue.results("h0") == [Result.IN_DOUBT]
        await trio.sleep(1)
        assert w.pool.stalled == w.pool.active == 0
