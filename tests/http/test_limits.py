# SPDX-License-Identifier: Apache-2.0
"""Clients, proxies, the memory gate, and bodies that nobody reads: on the bare parts, with a clock that jumps."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hepmaild.errors import ErrorKind, RefusedError
from hepmaild.http.compat import BODY_HIGH_WATER, Body
from hepmaild.http.limits import ConnectionCounter, MemoryGate, TrustedProxies, client_of, parse_ip


def client(text: str) -> str:
    address = parse_ip(text)
    assert address is not None
    return client_of(address)


def test_clients() -> None:
    assert client("192.0.2.7") == "192.0.2.7"
    assert client("::ffff:192.0.2.7") == "192.0.2.7"
    assert client("2001:db8:1:2:3::4") == client("2001:db8:1:2::") != client("2001:db8:1:3::")
    assert client("fe80::1%eth0") == "fe80::/64"
    assert parse_ip("nonsense") is None


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ("", "10.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
        ("6.6.6.6, 192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("6.6.6.6, nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("192.0.2.7:1234", "192.0.2.7"),
        ("[2001:db8::1]:1234", "2001:db8::1"),
        (",,,", "10.0.0.1"),
    ],
)
def test_the_client_behind_proxies(forwarded: str, expected: str) -> None:
    proxies = TrustedProxies(["10.0.0.0/8", "::1/128"])
    peer = parse_ip("10.0.0.1")
    assert peer is not None
    assert peer in proxies
    assert parse_ip("192.0.2.7") not in proxies
    assert str(proxies.client_behind(peer, forwarded)) == expected


def test_counter() -> None:
    counter = ConnectionCounter(2)
    assert [counter.enter("a"), counter.enter("a"), counter.enter("b")] == [1, 2, 1]
    counter.leave("a")
    assert counter.total == 2
    counter.leave("a")
    counter.leave("b")
    assert counter.total == 0


async def test_the_gate_lets_in_what_fits_in_order() -> None:
    gate = MemoryGate(10, wait_s=100)
    order: list[str] = []
    leave = {name: trio.Event() for name in ("b", "small", "huge", "c")}

    async def hold(name: str, octets: int) -> None:
        async with gate.admit(octets):
            order.append(name)
            assert gate.held <= 10
            await leave[name].wait()

    async with trio.open_nursery() as nursery:
        async with gate.admit(6):
            for name, octets in (("b", 6), ("small", 2), ("huge", 99), ("c", 1)):
                nursery.start_soon(hold, name, octets)
                await wait_all_tasks_blocked()
            assert order == []  # nobody overtakes, so nobody starves
        await wait_all_tasks_blocked()
        assert set(order) == {"b", "small"}  # admitted together; which of the two runs first is Trio's choice
        leave["b"].set()
        await wait_all_tasks_blocked()
        assert len(order) == 2
        leave["small"].set()
        await wait_all_tasks_blocked()
        assert order[2:] == ["huge"]
        leave["huge"].set()
        await wait_all_tasks_blocked()
        assert order[2:] == ["huge", "c"]
        leave["c"].set()
    assert gate.held == 0


async def test_the_gate_refuses_whoever_waits_too_long(autojump_clock: MockClock) -> None:
    gate = MemoryGate(10, wait_s=5)
    started = autojump_clock.current_time()
    async with gate.admit(10):
        with pytest.raises(RefusedError) as caught:
            async with gate.admit(1):
                pass
    assert caught.value.refusal.kind is ErrorKind.UNAVAILABLE
    assert autojump_clock.current_time() - started == pytest.approx(5)
    assert gate.held == 0


async def test_a_place_in_the_gate_is_given_back_by_whoever_is_cancelled(autojump_clock: MockClock) -> None:
    gate = MemoryGate(10, wait_s=50)
    async with gate.admit(10):
        with trio.move_on_after(1):
            async with gate.admit(5):
                pytest.fail("there was no room")
    async with gate.admit(10):
        assert gate.held == 10
    assert gate.held == 0
    assert autojump_clock.current_time() > 0


async def test_a_body_that_nobody_reads_makes_the_connection_wait(autojump_clock: MockClock) -> None:
    body = Body(None, None)
    fed = 0

    async def feed() -> None:
        nonlocal fed
        for _ in range(100):
            await body.feed(b"x" * 65536, is_last=False)
            fed += 65536
        await body.feed(b"", is_last=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        await wait_all_tasks_blocked()
        assert fed <= BODY_HIGH_WATER + 65536
        read = len(await anext(body))
        await wait_all_tasks_blocked()
        assert fed > read
        async for octets in body:
            read += len(octets)
        assert read == 6_553_600
    assert body.is_complete
    del autojump_clock


async def test_a_body_can_be_awaited_whole_or_dropped(autojump_clock: MockClock) -> None:
    for drop in (False, True):
        body = Body(None, None)

        async def feed(body: Body) -> None:
            for _ in range(30):
                await body.feed(b"x" * 65536, is_last=False)
            await body.feed(b"", is_last=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed, body)
            await wait_all_tasks_blocked()
            if drop:
                assert await body.drop(5, 5)
            else:
                assert len(await body) == 30 * 65536
    never = Body(None, None)
    assert not await never.drop(5, 5)
    del autojump_clock


@pytest.mark.parametrize(
    ("pieces", "pause_s", "is_whole", "took_s"),
    [(6, 4, True, 24), (2, 6, False, 5), (9, 4, False, 30)],
)
async def test_a_body_is_dropped_for_as_long_as_it_comes(
    autojump_clock: MockClock, pieces: int, pause_s: float, is_whole: bool, took_s: float
) -> None:
    """Who sent 20 MB by a slow line for more than five seconds was reset, and never read why it was refused."""
    body = Body(None, None)

    async def feed() -> None:
        for left in reversed(range(pieces)):
            await trio.sleep(pause_s)
            await body.feed(b"x", is_last=not left)

    begun = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        assert await body.drop(5, 30) is is_whole
        assert autojump_clock.current_time() - begun == pytest.approx(took_s)
