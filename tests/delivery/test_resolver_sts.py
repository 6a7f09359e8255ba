# SPDX-License-Identifier: Apache-2.0
"""MTA-STS with real DNS, a real HTTPS server on loopback and the real store."""

from __future__ import annotations

import gzip
import random
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection
from trio.testing import MockClock

from hepmaild.config import DAY_US, DatabaseSettings, DnsSettings
from hepmaild.delivery import mta_sts, sts_fetch, sts_policies
from hepmaild.delivery import resolver as resolver_module
from hepmaild.delivery.hops import Hops, NoHops, TlsLevel, TlsPolicy
from hepmaild.delivery.lookups import Lookups
from hepmaild.delivery.mta_sts import Kept
from hepmaild.delivery.resolver import Flags, Resolver
from hepmaild.delivery.sts_fetch import Fetcher
from hepmaild.delivery.sts_policies import StsPolicies
from hepmaild.errors import StoreUnavailable
from hepmaild.storage.store import Store, open_store
from hepmaild.storage.sts import StsTable
from tests.delivery.zones import STS_NAMES
from tests.peers.nameservers import Nameservers
from tests.peers.policy_server import PolicyServer, http

VERIFIED = TlsPolicy(TlsLevel.VERIFIED, "mta-sts enforce")
OPPORTUNISTIC = TlsPolicy(TlsLevel.OPPORTUNISTIC)
OF_POLICIES = (tracemalloc.Filter(True, mta_sts.__file__), tracemalloc.Filter(True, sts_fetch.__file__))


def policy(mode: str = "enforce", *mx: str, max_age: int = 86_400 * 10) -> str:
    lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {pattern}" for pattern in mx), f"max_age: {max_age}"]
    return "\r\n".join(lines) + "\r\n"


class World:
    """Everything of one process: forget it and make another one, and it is a restart."""

    def __init__(self, nameservers: Nameservers, server: PolicyServer, store: Store) -> None:
        self.nameservers = nameservers
        self.server = server
        self.table = StsTable(store)
        self.ahead_us = 0
        self.restart()

    def restart(self) -> None:
        self.lookups = Lookups(DnsSettings(servers=(f"127.0.0.1:{self.nameservers.resolver}",), trust_ad=True))
        fetcher = Fetcher(self.lookups, port=self.server.port, context=self.server.context)
        self.sts = StsPolicies(self.lookups, fetcher.fetch, self.table, self.now_us)
        self.resolver = Resolver(self.lookups, self.sts, random.Random(1).random)

    def now_us(self) -> int:
        return time.time_ns() // 1000 + self.ahead_us

    def answer(self, name: str, answer: bytes | str | None) -> None:
        self.server.answers[f"mta-sts.{name}.plain.test"] = http(answer) if isinstance(answer, str) else answer

    def fetched(self, name: str) -> int:
        return self.server.requests[f"mta-sts.{name}.plain.test"]

    async def policies(self, name: str, *, again: bool = False) -> dict[str, TlsPolicy]:
        found = await self.look(name, again=again)
        assert isinstance(found, Hops), found
        return {hop.name.removesuffix(".plain.test"): hop.tls for hop in found.hops}

    async def look(self, name: str, *, again: bool = False) -> Hops | NoHops:
        if again:
            self.resolver.forget()
        name = name if "." in name else f"{name}.plain.test"
        return await self.resolver.resolve(name, Flags(mta_sts=True, tlsa_port=25))

    async def kept(self, name: str) -> Kept | None:
        return await self.table.load(f"{name}.plain.test")


def no_unit(conn: Connection, members: list[object]) -> list[object]:
    raise AssertionError


@asynccontextmanager
async def new_world(nameservers: Nameservers, folder: Path) -> AsyncIterator[World]:
    good = [f"mta-sts.{name}.plain.test" for name in STS_NAMES if name != "wrong-certificate"]
    server = PolicyServer([*good, "mta-sts.both.signed.test"])
    settings = DatabaseSettings(url="sqlite:///t.db")
    async with open_store(settings, folder, no_unit, exclusive=True) as store, server.run():
        await store.upgrade()
        yield World(nameservers, server, store)


@pytest.fixture
async def world(nameservers: Nameservers, tmp_path: Path) -> AsyncIterator[World]:
    async with new_world(nameservers, tmp_path) as made:
        yield made


# What a policy does


async def test_enforce(world: World) -> None:
    world.answer("enforce", policy("enforce", "*.plain.test"))
    assert await world.policies("enforce") == {"mx1": VERIFIED, "mx2": VERIFIED}
    found = await world.look("enforce")
    assert isinstance(found, Hops)
    assert found.group == "mx1.plain.test/verified mx2.plain.test/verified"
    assert world.fetched("enforce") == 1
    [head] = world.server.heads
    assert head.startswith("GET /.well-known/mta-sts.txt HTTP/1.1\r\n")


async def test_enforce_leaves_out_what_the_policy_does_not_name(world: World) -> None:
    world.answer("enforce-some", policy("enforce", "mx2.plain.test", "other.test"))
    assert await world.policies("enforce-some") == {"mx2": VERIFIED}
    world.answer("enforce-none", policy("enforce", "*.other.test"))
    found = await world.look("enforce-none")
    assert isinstance(found, NoHops)
    assert str(found.reply) == "451 4.7.0 the MTA-STS policy of enforce-none.plain.test names none of its MX hosts"


async def test_testing_delivers_all_the_same(world: World) -> None:
    world.answer("testing", policy("testing", "mx1.plain.test"))
    found = await world.policies("testing")
    assert {tls.level for tls in found.values()} == {TlsLevel.OPPORTUNISTIC}
    assert all(tls.testing for tls in found.values())
    assert found["mx2"].why == "mta-sts testing: the policy does not name this host"


async def test_mode_none(world: World) -> None:
    world.answer("mode-none", policy("none"))
    assert await world.policies("mode-none") == {"mx1": OPPORTUNISTIC, "mx2": OPPORTUNISTIC}


async def test_a_route_may_ignore_it(world: World) -> None:
    world.answer("enforce", policy("enforce", "*.plain.test"))
    found = await world.resolver.resolve("enforce.plain.test", Flags())
    assert isinstance(found, Hops)
    assert found.hops[0].tls == OPPORTUNISTIC
    assert world.fetched("enforce") == 0


async def test_dane_goes_before_it(world: World) -> None:
    """The host with TLSA records is used although the policy does not name it; the other one is not (RFC 8461 §2)."""
    world.server.answers["mta-sts.both.signed.test"] = http(policy("enforce", "mx-other.signed.test"))
    found = await world.look("both.signed.test")
    assert isinstance(found, Hops)
    assert [(hop.name, hop.tls.level) for hop in found.hops] == [("mx-ee.signed.test", TlsLevel.DANE)]


# What cannot be a policy


@pytest.mark.parametrize(
    ("name", "answer", "why"),
    [
        ("wrong-certificate", http(policy("enforce", "*.plain.test")), "the certificate is not good"),
        ("redirect", http("", "302 Found", location="https://mta-sts.enforce.plain.test/"), "the answer is 302"),
        ("oversize", http(policy("enforce", "x.test") + "a: b\n" * 20_000), "longer than 65536 octets"),
        ("garbage-policy", http("<html>"), "line 1 is not of the form"),
        ("html", http(policy("enforce", "x.test"), content_type="text/html"), "of type 'text/html'"),
        ("absent", http("", "404 Not Found"), "the answer is 404"),
        (
            "compressed",
            http(gzip.compress(policy("enforce", "x.test").encode()), content_encoding="gzip"),
            "compressed",
        ),
        ("not-utf8", http(b"version: STSv1\nmode: \xff\n"), "not UTF-8"),
        ("short", http(policy("enforce", "x.test"), content_length="5000"), ""),
        ("slow", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000, ""),
        ("changing", b"\x00\xff nonsense", ""),
    ],
)
async def test_what_is_no_policy_changes_nothing(
    world: World, log_events: object, name: str, answer: bytes, why: str
) -> None:
    """RFC 8461 §3.3."""
    world.answer(name, answer)
    assert await world.policies(name) == {"mx1": OPPORTUNISTIC, "mx2": OPPORTUNISTIC}
    [event] = log_events.named("sts_policy_not_fetched")  # type: ignore[attr-defined]
    assert why in event["error"]
    assert await world.kept(name) is None


async def test_a_server_that_hangs(world: World, mock_clock: MockClock) -> None:
    """Time stands still until it has the request, however long DNS and TLS take here."""

    async def let_time_pass() -> None:
        await world.server.keeps_somebody_waiting.wait()
        mock_clock.jump(sts_fetch.FETCH_S)

    world.answer("slow", None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_time_pass)
        assert (await world.policies("slow"))["mx1"] == OPPORTUNISTIC
        nursery.cancel_scope.cancel()
    assert world.fetched("slow") == 1
    assert trio.current_time() == sts_fetch.FETCH_S


async def test_a_fetch_in_vain_is_not_repeated_at_once(world: World) -> None:
    """RFC 8461 §3.3."""
    for _ in range(3):
        assert (await world.policies("absent", again=True))["mx1"] == OPPORTUNISTIC
    assert world.fetched("absent") == 1


# What is kept


async def test_a_restart_forgets_nothing(world: World) -> None:
    """RFC 8461 §3.3."""
    world.answer("enforce", policy("enforce", "*.plain.test"))
    await world.policies("enforce")
    world.server.is_up = False
    world.restart()
    assert (await world.policies("enforce"))["mx1"] == VERIFIED
    assert world.fetched("enforce") == 1


async def test_a_new_id_brings_a_new_policy(world: World) -> None:
    """RFC 8461 §3.1, §5.1."""
    world.answer("changing", policy("enforce", "*.plain.test"))
    assert (await world.policies("changing"))["mx1"] == VERIFIED
    world.answer("changing", policy("none"))
    assert (await world.policies("changing", again=True))["mx1"] == VERIFIED
    old, new = ('_mta-sts.changing TXT "v=STSv1; id=id1;"', '_mta-sts.changing TXT "v=STSv1; id=id2;"')
    await trio.to_thread.run_sync(world.nameservers.change, "plain.test", old, new)
    try:
        assert (await world.policies("changing", again=True))["mx1"] == OPPORTUNISTIC
    finally:
        await trio.to_thread.run_sync(world.nameservers.change, "plain.test", new, old)
    assert world.fetched("changing") == 2
    kept = await world.kept("changing")
    assert kept is not None
    assert kept.policy_id == "id2"


async def test_the_previous_one_holds_while_the_new_one_cannot_be_fetched(world: World) -> None:
    world.answer("changing", policy("enforce", "*.plain.test"))
    await world.policies("changing")
    world.server.is_up = False
    old, new = ('_mta-sts.changing TXT "v=STSv1; id=id1;"', '_mta-sts.changing TXT "v=STSv1; id=id9;"')
    await trio.to_thread.run_sync(world.nameservers.change, "plain.test", old, new)
    try:
        assert (await world.policies("changing", again=True))["mx1"] == VERIFIED
    finally:
        await trio.to_thread.run_sync(world.nameservers.change, "plain.test", new, old)


async def test_it_holds_without_its_record_until_it_ends(world: World) -> None:
    """RFC 8461 §5.1."""
    world.answer("short", policy("enforce", "*.plain.test", max_age=3600))
    await world.policies("short")
    old, new = ('_mta-sts.short TXT "v=STSv1; id=id1;"', '_mta-sts.short TXT "gone"')
    await trio.to_thread.run_sync(world.nameservers.change, "plain.test", old, new)
    try:
        world.ahead_us = 3500 * 1_000_000
        assert (await world.policies("short", again=True))["mx1"] == VERIFIED
        world.ahead_us = 3601 * 1_000_000
        assert (await world.policies("short", again=True))["mx1"] == OPPORTUNISTIC
        world.restart()
        assert (await world.policies("short"))["mx1"] == OPPORTUNISTIC
    finally:
        await trio.to_thread.run_sync(world.nameservers.change, "plain.test", new, old)
    assert world.fetched("short") == 1


async def test_it_is_renewed_before_its_end(world: World) -> None:
    world.answer("enforce", policy("enforce", "*.plain.test"))
    await world.policies("enforce")
    first = await world.kept("enforce")
    world.ahead_us = 6 * DAY_US
    await world.policies("enforce", again=True)
    second = await world.kept("enforce")
    assert world.fetched("enforce") == 2
    assert first is not None
    assert second is not None
    assert second.expires_at_us - first.expires_at_us >= 6 * DAY_US


async def test_without_the_store_nothing_is_decided(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(domain: str) -> Kept | None:
        raise StoreUnavailable("down")

    monkeypatch.setattr(world.table, "load", down)
    found = await world.look("enforce")
    assert isinstance(found, NoHops)
    assert found.reply.code == 451
    assert found.reply.enhanced == "4.3.0"


async def test_many_who_ask_fetch_once(world: World) -> None:
    world.answer("enforce", policy("enforce", "*.plain.test"))
    async with trio.open_nursery() as nursery:
        for n in range(30):
            flags = Flags(mta_sts=True, ipv6=bool(n % 2))
            nursery.start_soon(world.resolver.resolve, "enforce.plain.test", flags)
    assert world.fetched("enforce") == 1


async def test_what_is_remembered_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sts_policies, "REMEMBERED", 2)
    for name in ("enforce", "testing", "mode-none", "enforce"):
        world.answer(name, policy("enforce", "*.plain.test"))
        assert (await world.policies(name, again=True))["mx1"] == VERIFIED
    assert world.fetched("enforce") == 1


async def test_what_is_remembered_of_large_policies_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 KB of text may be thousands of patterns, and anybody may have a domain that says so."""
    monkeypatch.setattr(sts_policies, "OCTETS_REMEMBERED", 2**20)
    monkeypatch.setattr(resolver_module, "OCTETS_KEPT", 2**20)
    world.restart()
    names = [name for name in STS_NAMES if name != "wrong-certificate"]
    for name in names:
        world.answer(name, policy("enforce", "*.plain.test", *(f"m{n}.test" for n in range(3_500))))
    tracemalloc.start()
    try:
        for name in names:
            assert (await world.policies(name))["mx1"] == VERIFIED
        kept = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(OF_POLICIES).traces)
    finally:
        tracemalloc.stop()
    assert kept < 1.5 * 2**20
    assert (await world.policies(names[0], again=True))["mx1"] == VERIFIED  # from the store
    assert world.fetched(names[0]) == 1
