# SPDX-License-Identifier: Apache-2.0
"""A route is edited while attempts are under way: each of them goes wholly by the old one or wholly by the new one."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import MockClock

from hepmaild.config import DeliverySettings, RouteKind, TlsMode
from hepmaild.delivery.attempt import LEASE_MARGIN_S
from hepmaild.delivery.client import Credentials
from hepmaild.delivery.job import Result
from hepmaild.delivery.route import Route
from tests.delivery.peer import EHLO, Hangup, Peer, after
from tests.delivery.test_own import OWN, Ways, server
from tests.delivery.test_pool import smtp, world

EHLO_AUTH = EHLO.replace(b"250 SMTPUTF8", b"250 AUTH PLAIN")
LOAD_S = 10.0  # a large content on a slow store


class Passwords(Ways):
    """What is sealed is the password."""

    def open(self, route: Route) -> Credentials | None:
        assert route.sealed is not None
        return Credentials(route.username, route.sealed.decode())


def logins(peer: Peer) -> list[bytes]:
    return [base64.b64decode(line.split()[2]) for line in peer.lines if line.startswith(b"AUTH PLAIN ")]


def own(host: str, password: bytes) -> Route:
    return replace(server(host=host), username="user", sealed=password)


async def test_the_old_password_of_an_own_server_never_goes_to_its_new_host(autojump_clock: MockClock) -> None:
    """The attempt that looked the server up before the edit loads its content while the next one learns of the edit."""
    ways = Passwords({OWN: own("old", b"secret")})
    async with world(own=ways) as w:
        w.peers["old"], w.peers["new"] = Peer(ehlo=EHLO_AUTH), Peer(ehlo=EHLO_AUTH)
        w.queue.load_s = LOAD_S
        w.queue.add("m1", route=OWN)
        w.pool.wake()
        await trio.sleep(LOAD_S / 2)
        ways.servers[OWN] = own("new", b"another")
        w.pool.offer_nowait(w.queue.add("m2", route=OWN, leased=True))
        await w.queue.until(lambda: len(w.reported) == 2)
        assert logins(w.peers["new"]) == [b"\0user\0another"]
        assert logins(w.peers["old"]) == [b"\0user\0secret"]
        assert w.queue.results("m1") == [Result.DELIVERED]


async def test_the_old_password_of_a_route_never_goes_to_its_new_host(autojump_clock: MockClock) -> None:
    old = smtp("upstream", credentials=Credentials("user", "secret"))
    async with world(old) as w:
        w.peers["upstream"], w.peers["new"] = Peer(ehlo=EHLO_AUTH), Peer(ehlo=EHLO_AUTH)
        w.queue.load_s = LOAD_S
        w.queue.add("m1")
        w.pool.wake()
        await trio.sleep(LOAD_S / 2)
        w.pool.replace_routes([replace(old, host="new", credentials=Credentials("other", "another"))])
        await w.queue.until(lambda: len(w.reported) == 1)
        assert logins(w.peers["new"]) == []
        assert logins(w.peers["upstream"]) == [b"\0user\0secret"]
        assert w.queue.results("m1") == [Result.DELIVERED]


async def test_certificates_are_judged_by_the_authorities_of_the_attempts_own_route(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    authorities = {name: trustme.CA() for name in ("old", "new")}
    for name, authority in authorities.items():
        authority.cert_pem.write_to_path(str(tmp_path / name))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authorities["old"].issue_cert("upstream").configure_cert(context)
    old = replace(smtp("upstream"), tls=TlsMode.IMPLICIT, tls_ca=str(tmp_path / "old"))
    async with world(old) as w:
        w.peers["upstream"] = Peer(tls=context, implicit=True)
        w.queue.load_s = LOAD_S
        w.queue.add("m1")
        w.pool.wake()
        await trio.sleep(LOAD_S / 2)
        w.pool.replace_routes([replace(old, tls_ca=str(tmp_path / "new"))])
        await w.queue.until(lambda: len(w.reported) == 1)
        assert w.queue.results("m1") == [Result.DELIVERED]
        w.pool.offer_nowait(w.queue.add("m2", leased=True))
        await w.queue.until(lambda: len(w.reported) == 2)
        assert w.queue.results("m2") == [Result.DEFERRED]


@pytest.mark.parametrize("name", ["upstream", OWN])
async def test_authorities_are_read_anew_with_the_settings(
    autojump_clock: MockClock, tmp_path: Path, name: str
) -> None:
    """The file may have another content under its old name; a connection that was kept is not used on."""
    authorities, trusted = [trustme.CA(), trustme.CA()], tmp_path / "ca.pem"
    peer = Peer(tls=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), implicit=True)
    assert peer.tls is not None
    authorities[0].issue_cert("upstream").configure_cert(peer.tls)
    route = replace(smtp("upstream"), tls=TlsMode.IMPLICIT, tls_ca=str(trusted))
    ways = Ways({OWN: replace(route, name=OWN)})
    async with world(route, own=ways) as w:
        w.peers["upstream"] = peer

        async def attempt(number: int, authority: trustme.CA) -> list[Result | None]:
            authority.cert_pem.write_to_path(str(trusted))
            w.pool.replace_routes([replace(route)])
            w.pool.offer_nowait(w.queue.add(f"m{number}", route=name, leased=True))
            await w.queue.until(lambda: len(w.reported) == number)
            return w.queue.results(f"m{number}")

        assert await attempt(1, authorities[0]) == [Result.DELIVERED]
        assert await attempt(2, authorities[1]) == [Result.DEFERRED]
        assert await attempt(3, authorities[0]) == [Result.DELIVERED]


async def test_an_attempt_of_the_old_route_leaves_the_new_ones_connections_alone(autojump_clock: MockClock) -> None:
    """It takes none of them, closes none of them, and keeps none of its own beside them."""
    ways = Passwords({OWN: own("mine", b"secret")})
    async with world(own=ways) as w:
        peer = w.peers["mine"] = Peer(ehlo=EHLO_AUTH)
        w.queue.load_s = LOAD_S
        w.queue.add("m1", route=OWN)
        w.pool.wake()
        await trio.sleep(LOAD_S / 2)
        ways.servers[OWN] = own("mine", b"another")
        peer.reactions["AUTH"] = b"235 2.7.0 in\r\n"
        w.pool.offer_nowait(w.queue.add("m2", route=OWN, leased=True))
        await w.queue.until(lambda: len(w.reported) == 1)
        assert (peer.connections, peer.open_now) == (1, 1)
        await w.queue.until(lambda: len(w.reported) == 2)
        await trio.sleep(1)
        assert (peer.connections, peer.open_now) == (2, 1)  # the new one's
        w.pool.offer_nowait(w.queue.add("m3", route=OWN, leased=True))
        await w.queue.until(lambda: len(w.reported) == 3)
        assert logins(peer) == [b"\0user\0another", b"\0user\0secret"]
        assert peer.connections == 2


async def test_a_connection_made_for_the_old_route_is_not_kept_for_the_new_one(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.reactions["DOT"] = after(5, b"250 2.0.0 ok\r\n")
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await trio.sleep(1)
        w.pool.replace_routes([smtp("upstream", messages_per_connection=7)])
        await w.queue.until(lambda: len(w.reported) == 1)
        await trio.sleep(1)
        assert w.peer.open_now == 0


async def test_what_was_kept_for_a_route_of_another_kind_is_closed_at_the_end(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: len(w.reported) == 1)
        w.pool.replace_routes([Route("upstream", RouteKind.MX)])
        w.lifecycle.draining.set()
        await w.done.wait()
        assert w.peer.lines[-1] == b"QUIT"


@pytest.mark.parametrize("kind", ["route", "own"])
async def test_trouble_at_the_old_host_is_none_of_the_new_ones(autojump_clock: MockClock, kind: str) -> None:
    """Who mends a route while attempts hang at the old host is not to wait for each of them."""
    name = "upstream" if kind == "route" else OWN
    ways = Ways({OWN: server(host="upstream")})
    async with world(own=ways) as w:
        w.peer.reactions["GREETING"] = gone_after(5)
        for n in range(8):
            w.pool.offer_nowait(w.queue.add(f"m{n}", route=name, leased=True))
        await trio.sleep(1)
        w.peers["new"] = Peer()
        if kind == "route":
            w.pool.replace_routes([replace(smtp("upstream"), host="new")])
        ways.servers[OWN] = server(host="new")
        w.pool.offer_nowait(w.queue.add("first", route=name, leased=True))
        await w.queue.until(lambda: len(w.reported) == 9)
        begun = trio.current_time()
        for n in range(8):
            w.pool.offer_nowait(w.queue.add(f"n{n}", route=name, leased=True))
        await w.queue.until(lambda: all(f"n{n}" in w.queue.outcomes for n in range(8)))
        assert trio.current_time() == begun
        assert all(w.queue.results(f"n{n}") == [Result.DELIVERED] for n in range(8))


async def test_who_mends_a_route_does_not_wait_for_the_end_of_its_pause(autojump_clock: MockClock) -> None:
    """Nor does what was left in the store, which nobody looks for while the route pauses."""
    async with world() as w:
        del w.peers["upstream"]
        for n in range(3):
            w.pool.offer_nowait(w.queue.add(f"m{n}", leased=True))
        await w.queue.until(lambda: len(w.reported) == 3)
        await trio.sleep(0.1)
        w.queue.add("left")
        w.pool.left("upstream", [""])
        await trio.sleep(0.1)
        assert w.pool.figures()["upstream"][3] == 1
        w.peers["new"] = Peer()
        begun = trio.current_time()
        w.pool.replace_routes([replace(smtp("upstream"), host="new")])
        await w.queue.until(lambda: "left" in w.queue.outcomes)
        assert trio.current_time() == begun


async def test_attempts_that_begin_later_have_the_new_time(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.reactions["RCPT"] = after(299, b"250 2.1.5 ok\r\n")
        w.pool.take_settings(DeliverySettings(attempt_timeout_s=700))
        w.pool.offer_nowait(w.queue.add("m1", [f"u{n}@example.net" for n in range(100)], leased=True))
        await w.queue.until(lambda: bool(w.reported))
        assert trio.current_time() == pytest.approx(700 - LEASE_MARGIN_S, abs=1)


def gone_after(seconds: float) -> Callable[[Peer, bytes], Awaitable[bytes | None]]:
    """Says nothing, and is gone then."""

    async def reaction(_peer: Peer, _line: bytes) -> None:
        await trio.sleep(seconds)
        raise Hangup

    return reaction
