# SPDX-License-Identifier: Apache-2.0
"""The resolver against real DNS servers: who takes the mail, and what is said when nobody does."""

from __future__ import annotations

import math
import random
import socket
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio
from trio.testing import MockClock

from hepmaild.config import DnsSettings
from hepmaild.delivery import lookups as lookups_module
from hepmaild.delivery.answers import Answer, Failed
from hepmaild.delivery.hops import Hops, NoHops
from hepmaild.delivery.lookups import Lookups
from hepmaild.delivery.resolver import Flags, Resolver
from hepmaild.delivery.turns import Turns
from tests.peers.nameservers import Nameservers
from tests.peers.small_dns import small_dns

DEADLINE_S = 60


def settings(*ports: int, **more: float) -> DnsSettings:
    return DnsSettings(servers=tuple(f"127.0.0.1:{port}" for port in ports), **more)  # type: ignore[arg-type]


def make_resolver(*ports: int, seed: int = 1, **more: float) -> Resolver:
    return Resolver(Lookups(settings(*ports, **more)), None, random.Random(seed).random)


@pytest.fixture
def resolver(nameservers: Nameservers) -> Resolver:
    return make_resolver(nameservers.resolver)


async def hosts(resolver: Resolver, name: str, **flags: bool) -> list[tuple[str, tuple[str, ...]]]:
    found = await resolver.resolve(name, Flags(**flags))
    assert isinstance(found, Hops), found
    return [(hop.name.removesuffix(".plain.test"), hop.addresses) for hop in found.hops]


async def refused(resolver: Resolver, name: str, **flags: bool) -> str:
    found = await resolver.resolve(name, Flags(**flags))
    assert isinstance(found, NoHops), found
    return str(found.reply)


# Where it goes


async def test_hosts_by_preference(resolver: Resolver) -> None:
    """RFC 5321 §5.1."""
    expected = [("mx1", ("192.0.2.1",)), ("mx2", ("192.0.2.2",)), ("mx3", ("192.0.2.3",))]
    assert await hosts(resolver, "order.plain.test") == expected


async def test_equal_preferences_share_the_load(resolver: Resolver) -> None:
    """RFC 5321 §5.1."""
    first = Counter()
    for _ in range(600):
        names = [name for name, _ in await hosts(resolver, "equal.plain.test")]
        assert names[3] == "mx4"
        assert sorted(names[:3]) == ["mx1", "mx2", "mx3"]
        first[names[0]] += 1
    assert min(first.values()) > 150


async def test_the_same_seed_gives_the_same_order(nameservers: Nameservers) -> None:
    runs = []
    for _ in range(2):
        resolver = make_resolver(nameservers.resolver, seed=7)
        runs.append([await hosts(resolver, "equal.plain.test") for _ in range(20)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("only-a", ("192.0.2.10",)),
        ("only-aaaa", ("2001:db8::12",)),
        ("both", ("2001:db8::11", "192.0.2.11")),
        ("alone-is-no-mx", None),
    ],
)
async def test_a_domain_without_mx_stands_for_itself(
    resolver: Resolver, name: str, addresses: tuple[str, ...] | None
) -> None:
    """RFC 5321 §5.1."""
    if addresses is None:
        assert (await refused(resolver, f"{name}.plain.test")).startswith("550 5.1.2 ")
    else:
        assert await hosts(resolver, f"{name}.plain.test") == [(name, addresses)]


async def test_without_ipv6(resolver: Resolver) -> None:
    assert await hosts(resolver, "both.plain.test", ipv6=False) == [("both", ("192.0.2.11",))]
    reply = await refused(resolver, "only-aaaa.plain.test", ipv6=False)
    assert reply.startswith("550 5.1.2 ")
    assert "IPv4" in reply


async def test_aliases_are_followed(resolver: Resolver) -> None:
    assert await hosts(resolver, "alias.plain.test") == await hosts(resolver, "order.plain.test")
    assert await hosts(resolver, "mx-alias.plain.test") == [("mx-is-alias", ("192.0.2.1",))]


async def test_internationalised_names(resolver: Resolver) -> None:
    """RFC 5891."""
    assert await hosts(resolver, "xn--bcher-kva.plain.test") == [("xn--mx-eka", ("192.0.2.20",))]


async def test_what_is_no_host_is_passed_over(resolver: Resolver) -> None:
    assert await hosts(resolver, "some-garbage.plain.test") == [("mx1", ("192.0.2.1",))]
    assert await hosts(resolver, "mixed-null.plain.test") == [("mx1", ("192.0.2.1",))]
    assert await hosts(resolver, "case.plain.test") == [("mx1", ("192.0.2.1",))]


async def test_a_host_that_cannot_be_looked_up_is_passed_over(resolver: Resolver) -> None:
    assert await hosts(resolver, "half-lame.plain.test") == [("mx2", ("192.0.2.2",))]


async def test_no_more_hosts_and_addresses_than_one_attempt_may_try(resolver: Resolver) -> None:
    assert len(await hosts(resolver, "many.plain.test")) == 10
    [(_, addresses)] = await hosts(resolver, "crowd.plain.test")  # the answer comes by TCP
    assert ["::" in address for address in addresses] == [True] * 4 + [False] * 4


async def test_ten_hosts_without_an_address_are_not_all(resolver: Resolver) -> None:
    """The eleventh had one, and mail to it was refused for good.  Where not all were asked, nothing is for good."""
    assert await hosts(resolver, "late-host.plain.test") == [("mx1", ("192.0.2.1",))]
    assert (await refused(resolver, "no-host.plain.test")).startswith("550 5.4.4 ")
    reply = await refused(resolver, "too-late-host.plain.test")
    assert reply.startswith(
        "451 4.4.3 none of the first 30 of 31 MX hosts of too-late-host.plain.test has an address: "
    )


async def test_the_same_hosts_are_one_group(resolver: Resolver) -> None:
    groups = []
    for name in ("same-mx-1", "same-mx-2", "case", "order"):
        found = await resolver.resolve(f"{name}.plain.test", Flags())
        assert isinstance(found, Hops)
        groups.append(found.group)
    assert groups == ["mx1.plain.test"] * 3 + ["mx1.plain.test mx2.plain.test mx3.plain.test"]


# Nowhere


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("null.plain.test", "556 5.1.10 "),
        ("nothing.plain.test", "550 5.1.2 "),
        ("dangling.plain.test", "550 5.1.2 "),
        ("txt-only.plain.test", "550 5.1.2 "),
        ("literal.plain.test", "550 5.4.4 "),
        ("garbage.plain.test", "550 5.4.4 "),
        ("no-addresses.plain.test", "550 5.4.4 "),
        ("192.0.2.1", "550 5.1.2 "),
        ("a..b", "550 5.1.2 "),
        (f"{'x' * 64}.test", "550 5.1.2 "),
        (".".join(["x" * 60] * 5), "550 5.1.2 "),
        ("bücher.plain.test", "550 5.1.2 "),
        ("", "550 5.1.2 "),
    ],
)
async def test_for_good(resolver: Resolver, name: str, start: str) -> None:
    """RFC 5321 §5.1, RFC 7505."""
    reply = await refused(resolver, name)
    assert reply.startswith(start)
    assert reply.isascii()


@pytest.mark.parametrize("name", ["lame.test", "bogus.test", "loop-a.plain.test", "lame-mx.plain.test"])
async def test_a_failure_is_never_a_bounce(resolver: Resolver, name: str) -> None:
    reply = await refused(resolver, name)
    assert reply.startswith("451 4.4.3 ")
    assert "SERVFAIL from 127.0.0.1:" in reply


@pytest.fixture
def silent() -> AsyncIterator[int]:
    """A name server that never answers."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as ear:
        ear.bind(("127.0.0.1", 0))
        yield ear.getsockname()[1]


async def test_silence_is_temporary(silent: int) -> None:
    with trio.fail_after(DEADLINE_S):
        reply = await refused(make_resolver(silent, timeout_s=0.1, lifetime_s=0.25), "order.plain.test")
    assert reply.startswith("451 4.4.3 ")
    assert f"no answer from 127.0.0.1:{silent}" in reply


async def test_a_silent_server_is_no_obstacle_while_another_answers(silent: int, nameservers: Nameservers) -> None:
    resolver = make_resolver(silent, nameservers.resolver, timeout_s=0.1, lifetime_s=30)
    assert len(await hosts(resolver, "order.plain.test")) == 3


async def test_nobody_listens() -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.bind(("127.0.0.1", 0))
        unused = probe.getsockname()[1]
    with trio.fail_after(DEADLINE_S):
        reply = await refused(make_resolver(unused, timeout_s=0.1, lifetime_s=0.25), "order.plain.test")
    assert reply.startswith("451 4.4.3 ")


# What is asked, and how often


class Counting:
    """A name server of our own that counts questions and answers them once `open` is set."""

    def __init__(self) -> None:
        self.questions: Counter[str] = Counter()
        self.open = trio.Event()
        self.port = 0
        self.at_once = self.most_at_once = 0
        self.tarpit = ""  # of what is below it nothing is said; `badN.test` has ten hosts there
        self.respond: Callable[[dns.message.Message], dns.message.Message] = self.as_mx

    def as_mx(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        name, kind = query.question[0].name, query.question[0].rdtype
        record = {dns.rdatatype.MX: ["10 mx.example.test."], dns.rdatatype.A: ["192.0.2.1"]}.get(kind)
        if kind == dns.rdatatype.MX and name.to_text().startswith("bad"):
            record = [f"10 h{n}.{name.labels[0].decode()}.{self.tarpit}" for n in range(10)]
        if record is not None:
            response.answer.append(dns.rrset.from_text_list(name, 60, "IN", kind, record))
        return response

    async def serve(self, ear: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            data, address = await ear.recvfrom(65535)
            nursery.start_soon(self.answer, ear, data, address)

    async def answer(self, ear: trio.socket.SocketType, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        self.questions[dns.rdatatype.to_text(query.question[0].rdtype)] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.open.wait()
        if self.tarpit and query.question[0].name.to_text().endswith(self.tarpit):
            return
        self.at_once -= 1
        await ear.sendto(self.respond(query).to_wire(), address)


@asynccontextmanager
async def counting() -> AsyncIterator[Counting]:
    server = Counting()
    ear = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with ear:
        await ear.bind(("127.0.0.1", 0))
        server.port = ear.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, ear, nursery)
            yield server
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not condition():  # what the other side has received, it cannot tell us
            await trio.lowlevel.checkpoint()


async def test_many_who_ask_for_the_same_ask_once() -> None:
    async with counting() as server:
        resolver = make_resolver(server.port, timeout_s=30, lifetime_s=60)
        results: list[Hops | NoHops] = []

        async def ask() -> None:
            results.append(await resolver.resolve("example.test", Flags()))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
            await until(lambda: server.questions["MX"] == 1)
            server.open.set()
        assert all(isinstance(found, Hops) for found in results)
        assert len(results) == 50
        await ask()
        assert dict(server.questions) == {"MX": 1, "A": 1, "AAAA": 1}


async def test_who_asked_first_may_leave() -> None:
    async with counting() as server:
        resolver = make_resolver(server.port, timeout_s=30, lifetime_s=60)
        results: list[Hops | NoHops] = []

        async def ask(scope: trio.CancelScope) -> None:
            with scope:
                results.append(await resolver.resolve("example.test", Flags()))

        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()
            nursery.start_soon(ask, first)
            await until(lambda: server.questions["MX"] == 1)
            nursery.start_soon(ask, trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            await until(lambda: server.questions["MX"] == 2)
            server.open.set()
        assert len(results) == 1
        assert isinstance(results[0], Hops)


async def test_no_more_than_so_many_questions_at_once() -> None:
    async with counting() as server:
        lookups = Lookups(settings(server.port, timeout_s=30, lifetime_s=60), slow_s=math.inf)
        async with trio.open_nursery() as nursery:
            for n in range(250):
                nursery.start_soon(lookups.ipv4, f"host{n}.test")
            await until(lambda: server.at_once == 100)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert server.most_at_once == 100
            server.open.set()
        assert server.questions["A"] == 250


async def test_hosts_that_nobody_answers_for_keep_no_other_destination_waiting() -> None:
    """Thirty destinations with ten hosts each, whose name servers say nothing, and one whose do."""
    async with counting() as server:
        lookups = Lookups(settings(server.port, timeout_s=90, lifetime_s=180))
        resolver = Resolver(lookups, None, random.Random(1).random)
        silent = [f"bad{n}.test" for n in range(30)]
        server.tarpit = "tarpit.test."
        server.open.set()
        async with trio.open_nursery() as nursery:
            for name in silent:
                nursery.start_soon(resolver.resolve, name, Flags())
            await until(lambda: server.at_once >= 100)
            with trio.fail_after(DEADLINE_S):  # before any of the others is given up
                assert isinstance(await resolver.resolve("example.test", Flags()), Hops)
            await until(lambda: server.at_once == 30 * 8)  # two questions about each of four hosts
            nursery.cancel_scope.cancel()


async def test_who_takes_long_makes_room_up_to_a_bound(autojump_clock: MockClock) -> None:
    turns = Turns(quick=2, slow=3, patience_s=1)
    begun: list[float] = []

    async def work() -> None:
        begun.append(trio.current_time())
        await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(turns.run, work)
    assert begun == [0, 0, 1, 1, 2, 10, 10, 11]


async def test_a_failure_is_remembered_for_a_moment() -> None:
    async with counting() as server:
        server.open.set()

        def servfail(query: dns.message.Message) -> dns.message.Message:
            response = dns.message.make_response(query)
            response.set_rcode(dns.rcode.SERVFAIL)
            return response

        server.respond = servfail
        resolver = make_resolver(server.port)
        for _ in range(3):
            assert (await refused(resolver, "example.test")).startswith("451 4.4.3 ")
        assert server.questions["MX"] == 1
        server.respond = server.as_mx
        resolver.forget()
        assert isinstance(await resolver.resolve("example.test", Flags()), Hops)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 12, b"\xff" * 600])
async def test_garbage_is_no_answer(garbage: bytes) -> None:
    async with counting() as server:
        server.open.set()

        class Garbage:
            def to_wire(self) -> bytes:
                return garbage

        server.respond = lambda query: Garbage()  # type: ignore[assignment,return-value]
        reply = await refused(make_resolver(server.port, timeout_s=0.1, lifetime_s=0.25), "example.test")
        assert reply.startswith("451 4.4.3 ")


async def test_the_ad_bit_counts_only_where_it_is_trusted() -> None:
    """RFC 6840 §5.7, RFC 4035 §3.2.3, RFC 7672 §2.1.1."""
    async with counting() as server:
        server.open.set()

        def lie(query: dns.message.Message) -> dns.message.Message:
            response = server.as_mx(query)
            response.flags |= dns.flags.AD
            return response

        server.respond = lie
        for trusted in (False, True):
            answer = await Lookups(settings(server.port, trust_ad=trusted)).ipv4("example.test")
            assert isinstance(answer, Answer)
            assert answer.secure is trusted


# What is kept


async def test_what_is_kept_of_large_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is 60 KB on the wire and, for the sake of one character, four times as much in memory."""
    monkeypatch.setattr(lookups_module, "OCTETS_KEPT", 2**20)
    text = " ".join([f'"{"x" * 250}"'] * 239)
    with small_dns() as server:
        for n in range(8):
            server.publish(f'large{n}.test. TXT "\\240\\159\\152\\128" {text}\n')
        server.publish("small.test. TXT small\n")
        lookups = Lookups(settings(server.port))
        tracemalloc.start()
        try:
            for n in range(8):
                answer = await lookups.txt(f"large{n}.test")
                assert isinstance(answer, Answer)
                assert len(answer.values[0]) == 1 + 239 * 250
            assert (await lookups.lookup_txt("small.test")) == ("small",)
            kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, lookups_module.__file__)])
        finally:
            tracemalloc.stop()
        assert sum(trace.size for trace in kept.traces) < 1.3 * 2**20

        # The newest are still known.
        server.asked.clear()
        await lookups.txt("small.test")
        await lookups.txt("large7.test")
        assert not server.asked
        await lookups.txt("large0.test")
        assert server.asked


# Helpers for others


async def test_lookup_txt(nameservers: Nameservers) -> None:
    lookups = Lookups(settings(nameservers.resolver))
    assert await lookups.lookup_txt("texts.plain.test") == ("one two", "v=DKIM1; p=abc")
    assert await lookups.lookup_txt("nothing.plain.test") == ()
    assert await lookups.lookup_txt("only-a.plain.test") == ()
    assert await lookups.lookup_txt("no such..name") == ()
    assert isinstance(await lookups.lookup_txt("lame.test"), Failed)


async def test_the_systems_servers() -> None:
    assert Lookups(DnsSettings()).trusts_ad is False
