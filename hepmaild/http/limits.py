# SPDX-License-Identifier: Apache-2.0
"""Who a client is for the limits, how many connections it has, and how much of large bodies is in memory at once."""

from __future__ import annotations

import ipaddress
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from hepmaild.errors import ErrorKind, Refusal, RefusedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_ip(text: str) -> Address | None:
    """An IP address, or None.  IPv4 that came by an IPv6 socket is IPv4; zone indexes are left out."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def client_of(address: Address) -> str:
    """Whom limits count: the address for IPv4, the /64 for IPv6 (contract, README)."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Every wait of the door, in seconds.

    handshake: TLS.  idle: until the header of the next request has come completely.  body: for a whole request body;
    body_idle: between two pieces of it.  send: until a client has taken what it is sent; below
    `server.drain_timeout_s`.  linger: between two pieces of what a client still sends when its answer is ready;
    linger_most: for all of that.  close: for TLS to end.  gate: for room in memory.  grace: for running requests when
    we stop; the daemon's is `server.drain_timeout_s`.
    """

    handshake_s: float = 20
    idle_s: float = 60
    body_s: float = 300
    body_idle_s: float = 30
    send_s: float = 20
    linger_s: float = 5
    linger_most_s: float = 30
    close_s: float = 5
    gate_s: float = 120
    grace_s: float = 25


class TrustedProxies:
    """The networks that may say whom they speak for."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network, strict=False) for network in networks)

    def __contains__(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)

    def client_behind(self, peer: Address, forwarded_for: str) -> Address:
        """The nearest address in `X-Forwarded-For` that is no proxy of ours: those left of it may be invented."""
        client = peer
        for word in reversed(forwarded_for.split(",")):
            address = parse_ip(_without_port(word.strip()))
            if address is None:
                return client
            client = address
            if address not in self:
                return client
        return client


def _without_port(word: str) -> str:
    if word.startswith("["):
        return word[1:].partition("]")[0]
    return word.partition(":")[0] if word.count(":") == 1 else word


class ConnectionCounter:
    """Connections of each client at this door."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._counts: Counter[str] = Counter()

    def enter(self, client: str) -> int:
        """Count one more; how many there are now.  `leave` must follow."""
        self._counts[client] += 1
        return self._counts[client]

    def leave(self, client: str) -> None:
        """Count one less."""
        self._counts[client] -= 1
        if self._counts[client] <= 0:
            del self._counts[client]

    @property
    def total(self) -> int:
        """All connections."""
        return self._counts.total()


@dataclass(eq=False, slots=True)
class _Waiter:
    octets: int
    admitted: trio.Event = field(default_factory=trio.Event)


class MemoryGate:
    """Lets large bodies into memory while their sum stays below `capacity` octets, in the order in which they came."""

    def __init__(self, capacity: int, wait_s: float) -> None:
        self.capacity = capacity
        self.held = 0
        self._wait_s = wait_s
        self._waiting: deque[_Waiter] = deque()

    @asynccontextmanager
    async def admit(self, octets: int) -> AsyncIterator[None]:
        """Hold `octets` (at most the capacity) for the block.

        Raises RefusedError with UNAVAILABLE when there is no room for `wait_s` seconds.  Cancel-safe.
        """
        octets = min(octets, self.capacity)
        await self._enter(octets)
        try:
            yield
        finally:
            self.held -= octets
            self._admit_next()

    async def _enter(self, octets: int) -> None:
        waiter = _Waiter(octets)
        self._waiting.append(waiter)
        self._admit_next()
        try:
            with trio.move_on_after(self._wait_s):
                await waiter.admitted.wait()
        except BaseException:  # cancelled: give back the place, or what was just given
            self._give_up(waiter)
            raise
        if not waiter.admitted.is_set():
            self._give_up(waiter)
            text = "Too many large requests are being worked on; try again in a moment."
            raise RefusedError(Refusal(ErrorKind.UNAVAILABLE, text, retry_after_s=10))

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter.admitted.is_set():
            self.held -= waiter.octets
        else:
            self._waiting.remove(waiter)
        self._admit_next()

    def _admit_next(self) -> None:
        while self._waiting and self.held + self._waiting[0].octets <= self.capacity:
            waiter = self._waiting.popleft()
            self.held += waiter.octets
            waiter.admitted.set()
