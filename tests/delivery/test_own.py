# SPDX-License-Identifier: Apache-2.0
"""Accounts' own SMTP servers in the pool: looked for before each attempt, changed, paused, removed; many of them."""

from __future__ import annotations

import itertools
import socket
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hepmaild.config import DeliverySettings, RouteKind, TlsMode
from hepmaild.delivery.client import Credentials
from hepmaild.delivery.job import Job, JobRecipient, Result
from hepmaild.delivery.public import connect_public, is_public
from hepmaild.delivery.route import Away, Route
from hepmaild.delivery.tracks import MAX_OWN, Tracks
from hepmaild.errors import SecretsUnavailable
from tests.conftest import LogEvents
from tests.delivery.peer import EHLO, Peer, after, hang
from tests.delivery.test_pool import smtp, world

OWN = "own:1"
DEFAULT_THREADS = 40  # of Trio, for all who bring no limiter of their own


def server(name: str = OWN, host: str = "mine", **more: object) -> Route:
    return Route(name, RouteKind.SMTP, host, 587, TlsMode.NONE, **more)  # type: ignore[arg-type]


@dataclass
class Ways:
    """What each server is now; `opened`: how often a password was read."""

    servers: dict[str, Route | Away] = field(default_factory=lambda: {OWN: server()})
    exist: bool = True
    asked: int = 0
    opened: list[str] = field(default_factory=list)
    is_broken: bool = False

    def placeholder(self, name: str) -> Route:
        return Route(name, RouteKind.SMTP, connections=5)

    async def find(self, name: str) -> Route | Away:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        return self.servers.get(name, Away.REMOVED)

    def open(self, route: Route) -> Credentials | None:
        if self.is_broken:
            raise SecretsUnavailable("no key")
        self.opened.append(route.username)
        return Credentials(route.username, "secret")


async def test_a_server_is_a_route_of_its_own_and_known_at_once(autojump_clock: MockClock) -> None:
    ways = Ways()
    async with world(own=ways) as w:
        w.peers["mine"] = Peer()
        assert w.pool.capacity_hint(OWN) > 0
        assert w.pool.offer_nowait(w.queue.add("m1", route=OWN, leased=True))
        await w.queue.until(lambda: "m1" in w.queue.outcomes)
        w.queue.add("m2", route=OWN)  # another process accepted it
        w.pool.wake()
        await w.queue.until(lambda: "m2" in w.queue.outcomes)
        assert w.queue.results("m1") == w.queue.results("m2") == [Result.DELIVERED]
        assert w.peers["mine"].connections == 1
        assert not w.peer.lines
        assert set(w.pool.figures()) == {"upstream", "own:*"}


async def test_mail_for_a_server_nobody_used_yet_is_claimed_while_every_route_is_full(
    autojump_clock: MockClock,
) -> None:
    async with world(own=Ways()) as w:
        w.peers["mine"] = Peer()
        w.network.hanging.add("upstream")
        for n in range(3000):
            w.queue.add(f"u{n}")
        w.queue.add("m1", route=OWN)
        w.pool.wake()
        await w.queue.until(lambda: "m1" in w.queue.outcomes)
        assert w.queue.results("m1") == [Result.DELIVERED]


async def test_a_password_is_read_for_a_login_only_and_kept_nowhere(autojump_clock: MockClock) -> None:
    ways = Ways({OWN: replace(server(), username="user", sealed=b"sealed")})
    async with world(own=ways) as w:
        w.peers["mine"] = Peer(ehlo=EHLO.replace(b"250 SMTPUTF8", b"250 AUTH PLAIN"))
        for name in ("m1", "m2"):
            w.pool.offer_nowait(w.queue.add(name, route=OWN, leased=True))
            await w.queue.until(lambda name=name: name in w.queue.outcomes)  # type: ignore[misc]
        assert ways.opened == ["user"]
        track = w.pool._tracks.get(OWN)
        assert track is not None
        (kept,) = track.places[""].kept
        assert kept.machine._credentials is None
        assert not kept.machine._secrets
        assert track.route.credentials is None
        assert not any("secret" in step.text for attempt in w.queue.attempts for step in attempt.steps)


async def test_a_password_that_cannot_be_read_defers(autojump_clock: MockClock, log_events: LogEvents) -> None:
    log_events.expect_error("smtp_server_unusable")
    ways = Ways({OWN: replace(server(), username="user", sealed=b"sealed")}, is_broken=True)
    async with world(own=ways) as w:
        w.peers["mine"] = Peer()
        w.pool.offer_nowait(w.queue.add("m1", route=OWN, leased=True))
        await w.queue.until(lambda: "m1" in w.queue.outcomes)
        assert w.queue.results("m1") == [Result.DEFERRED]


async def test_after_a_change_old_connections_are_not_used(autojump_clock: MockClock) -> None:
    ways = Ways()
    async with world(own=ways) as w:
        w.peers["mine"], w.peers["other"] = Peer(), Peer()
        w.pool.offer_nowait(w.queue.add("m1", route=OWN, leased=True))
        await w.queue.until(lambda: "m1" in w.queue.outcomes)
        ways.servers[OWN] = server(host="other")
        w.pool.offer_nowait(w.queue.add("m2", route=OWN, leased=True))
        await w.queue.until(lambda: "m2" in w.queue.outcomes)
        assert len(w.peers["mine"].received) == len(w.peers["other"].received) == 1
        await trio.sleep(60)
        assert not w.peers["mine"].open_now
        ways.servers[OWN] = replace(server(host="other"), sealed=b"another")  # the password only
        w.pool.offer_nowait(w.queue.add("m3", route=OWN, leased=True))
        await w.queue.until(lambda: "m3" in w.queue.outcomes)
        assert w.peers["other"].connections == 2


async def test_what_waits_for_a_server_that_was_removed_fails(autojump_clock: MockClock) -> None:
    ways = Ways({})
    async with world(own=ways) as w:
        w.pool.offer_nowait(w.queue.add("m1", ["a@x.example", "b@x.example"], route=OWN, leased=True))
        await w.queue.until(lambda: "m1" in w.queue.outcomes)
        assert w.queue.results("m1") == [Result.FAILED] * 2
        reply = w.queue.outcomes["m1"][0].reply
        assert reply is not None
        assert str(reply) == "550 5.3.5 the SMTP server that this message was to leave by was removed from its account"


async def test_what_waits_for_a_paused_server_is_given_back_untried(autojump_clock: MockClock) -> None:
    ways = Ways({OWN: Away.PAUSED})
    async with world(own=ways) as w:
        w.peers["mine"] = Peer()
        w.queue.add("m1", route=OWN, leased=True)
        job = w.queue.messages["m1"].job
        w.queue.messages["m1"].held = True  # as the pause in the store keeps it from being claimed again
        assert w.pool.offer_nowait(job)
        await w.queue.until(lambda: "m1" in w.queue.released)
        assert not w.queue.attempts
        ways.servers[OWN] = server()
        w.queue.messages["m1"].held = False
        w.pool.wake()
        await w.queue.until(lambda: "m1" in w.queue.outcomes)
        assert w.queue.results("m1") == [Result.DELIVERED]


async def test_servers_that_hang_leave_workers_for_everybody_else(autojump_clock: MockClock) -> None:
    names = [f"own:{n}" for n in range(40)]
    ways = Ways({name: server(name, host=name) for name in names})
    settings = DeliverySettings(workers=8)
    async with world(smtp("upstream"), own=ways, settings=settings) as w:
        for name in names:
            w.peers[name] = Peer(reactions={"GREETING": hang})
            for n in range(5):
                w.queue.add(f"{name}-{n}", route=name)
        w.pool.wake()
        await trio.sleep(1)
        began = trio.current_time()
        assert w.pool.active == 6  # three quarters
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: "m1" in w.queue.outcomes)
        assert trio.current_time() - began < 1
        await trio.sleep(120)
        assert w.pool.stalled == 8 * 8 // 2
        for n in range(20):
            w.pool.offer_nowait(w.queue.add(f"u{n}", leased=True))
        begun = trio.current_time()
        await w.queue.until(lambda: all(f"u{n}" in w.queue.outcomes for n in range(20)))
        assert trio.current_time() - begun < 1


async def test_servers_that_work_again_have_their_share_again(autojump_clock: MockClock) -> None:
    """More than they may hold at once, twice, of which the first hung for a minute."""
    names = [f"own:{n}" for n in range(10)]
    ways = Ways({name: server(name, host=name) for name in names})
    async with world(smtp("upstream"), own=ways, settings=DeliverySettings(workers=2)) as w:
        for name in names:
            w.peers[name] = Peer()
        for once_more in ("a", "b"):
            for name in names:
                w.peers[name].reactions["MAIL"] = after(60, b"250 2.1.0 ok\r\n")
                for n in range(3):
                    w.queue.add(f"{name}-{n}{once_more}", route=name)
            w.pool.wake()
            await trio.sleep(30)
            assert (w.pool.stalled, w.pool.active) == (2 * 8 // 2, 2 * 8 // 2 + 1)  # half of what may; and the share
            for name in names:
                w.peers[name].reactions.clear()
            sent = [f"{name}-{n}{once_more}" for name in names for n in range(3)]
            with trio.fail_after(600):
                await w.queue.until(lambda sent=sent: all(m in w.queue.outcomes for m in sent))  # type: ignore[misc]
        assert {outcome.result for outcomes in w.queue.outcomes.values() for outcome in outcomes} == {Result.DELIVERED}


async def test_tracks_of_servers_that_do_nothing_are_forgotten(autojump_clock: MockClock) -> None:
    tracks = Tracks(8, None, None, Ways())
    tracks.replace_routes([smtp("upstream")])
    at_work = tracks.get("own:at-work")
    assert at_work is not None
    who = (JobRecipient(1, "a@x.example"),)
    at_work.push(Job("m1", "acc", "own:at-work", "s@x.example", who, 1, 5, False, 0, 1), 0.0)
    for n in range(3 * MAX_OWN):
        assert tracks.get(f"own:{n}") is not None
        assert len(tracks) <= MAX_OWN + 1
    assert tracks.get("own:at-work") is at_work
    assert tracks.get("upstream") is not None
    assert tracks.get("nobody's") is None
    tracks.replace_routes([smtp("upstream")])
    track = tracks.get(f"own:{3 * MAX_OWN - 1}")
    assert track is not None
    assert track.route.connections == 5  # a reload is none of its business


# Addresses of the public Internet


@pytest.mark.parametrize("address", ["9.9.9.9", "2620:fe::fe", "64:ff9b::909:909", "::ffff:9.9.9.9", "2002:909:909::1"])
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "::",
        "::1",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:7f00:1:0:0:80ff:fffe",
        "localhost",
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


async def test_a_private_server_is_not_connected_to() -> None:
    async def connect(host: str, port: int) -> trio.abc.Stream:
        raise AssertionError(f"connected to {host}:{port}")

    for host in ("localhost", "127.0.0.1", "::1", "2130706433", "0x7f.1"):
        with pytest.raises(OSError, match=r"no address of the public Internet|Name or service"):
            await connect_public(connect, host, 25)
    asked = []

    async def refuse(host: str, port: int) -> trio.abc.Stream:
        asked.append((host, port))
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        await connect_public(refuse, "9.9.9.9", 2525)
    assert asked == [("9.9.9.9", 2525)]


async def test_names_that_nobody_answers_for_keep_no_route_from_its_next_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a thread for as long as the system's resolver waits, also when the attempt has given up long ago."""
    servers = [f"own:{n}" for n in range(9)]
    ways = Ways({own: replace(server(own, f"{own[4:]}.tarpit.example"), public_only=True) for own in servers})
    answered, many_wait, waiting = threading.Event(), trio.Event(), itertools.count(1)
    really = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:  # noqa: A002
        name = host.decode() if isinstance(host, bytes) else host
        if not name.endswith(".tarpit.example") or flags & socket.AI_NUMERICHOST:
            return really(host, port, family, type, proto, flags)
        if next(waiting) == DEFAULT_THREADS:
            trio.from_thread.run_sync(many_wait.set)
        answered.wait(300)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    try:
        async with world(own=ways) as w:
            monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
            for n in range(45):
                w.queue.add(f"m{n}", route=servers[n % 9])
            w.pool.wake()
            with trio.fail_after(60):
                await many_wait.wait()
            with trio.fail_after(60):
                await trio.socket.getaddrinfo("localhost", 25)  # as a next hop's name is looked up
            answered.set()
            await w.queue.until(lambda: len(w.reported) == 45)
    finally:
        answered.set()


async def test_the_pool_does_not_reach_into_our_network(autojump_clock: MockClock) -> None:
    ways = Ways({OWN: replace(server(host="127.0.0.1"), public_only=True)})
    async with world(own=ways) as w:
        w.peers["127.0.0.1"] = Peer()
        w.pool.offer_nowait(w.queue.add("m1", route=OWN, leased=True))
        with trio.fail_after(1000):
            await w.queue.until(lambda: "m1" in w.queue.outcomes)
        assert w.queue.results("m1") == [Result.DEFERRED]
        assert "no address of the public Internet" in str(w.queue.outcomes["m1"][0].reply)
        assert not w.peers["127.0.0.1"].connections
