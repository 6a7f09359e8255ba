# SPDX-License-Identifier: Apache-2.0
"""From a destination to the hosts that take its mail, and what TLS to each must be worth (Trio).

    MX ──► hosts by preference ──► addresses ──► TLSA, where all before was secure
    _mta-sts TXT ──► policy, fetched or kept ──► which hosts may be used

The rules are pure (`mx`, `dane`, `mta_sts`); this puts the questions and keeps the answers.  Where the mail of a
destination goes is the business of whoever runs it: an MX that points to a private or loopback address is obeyed, as by
every other mail server.  Who must not let senders reach such hosts forbids it in the firewall.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from hepmaild.delivery import mx
from hepmaild.delivery.flights import Flights
from hepmaild.delivery.hops import Hop, Hops, NoHops, Resolve
from hepmaild.delivery.lookups import FAILURE_TTL_S, Lookups
from hepmaild.delivery.mx_search import Search, Seen
from hepmaild.delivery.sts_policies import Found, StsPolicies
from hepmaild.errors import StoreUnavailable
from hepmaild.mail.reply import Reply

RESOLVE_S = 90.0  # four questions one after the other, a policy, and some
DESTINATIONS_KEPT = 10_000
OCTETS_KEPT = 32 * 2**20  # of what is kept of these; the usual ones need a third
LEAST_S = 1.0  # for those who asked at the same time


class MxRoute(Protocol):
    """What a route of kind `mx` says about looking up.  port: where its servers listen; 25 but in tests."""

    @property
    def port(self) -> int: ...
    @property
    def mta_sts(self) -> bool: ...
    @property
    def dane(self) -> bool: ...
    @property
    def ipv6(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Flags:
    """A route's wishes, as far as they change an answer.  tlsa_port: 0: no DANE."""

    mta_sts: bool = False
    tlsa_port: int = 0
    ipv6: bool = True


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is kept of a destination, with the preference of each host: equals are shuffled anew for each who asks."""

    hops: tuple[tuple[int, Hop], ...]
    group: str


def _octets_of(plan: _Plan | NoHops) -> int:
    """How much memory what others wrote into DNS takes in it, roughly."""
    if isinstance(plan, NoHops):
        return 0
    hops = [hop for _, hop in plan.hops]
    texts = (text for hop in hops for text in (hop.name, *hop.addresses, *hop.tls.names))
    return sum(map(sys.getsizeof, (plan.group, *texts, *(row.data for hop in hops for row in hop.tls.tlsa))))


class Resolver:
    """lookups: DNS.  sts: MTA-STS; None: not used at all.  dice: [0, 1), for the order among equals."""

    def __init__(self, lookups: Lookups, sts: StsPolicies | None, dice: Callable[[], float]) -> None:
        self._lookups = lookups
        self._sts = sts
        self._dice = dice
        self._plans: Flights[tuple[str, Flags], _Plan | NoHops] = Flights(DESTINATIONS_KEPT, OCTETS_KEPT, _octets_of)
        self._policies: Flights[str, Found] = Flights(DESTINATIONS_KEPT, OCTETS_KEPT, Found.octets)

    def for_route(self, route: MxRoute) -> Resolve:
        """How this route's destinations are looked up.  Two routes that wish the same share what is known."""
        flags = Flags(
            mta_sts=route.mta_sts and self._sts is not None,
            tlsa_port=(route.port or 25) if route.dane and self._lookups.trusts_ad else 0,
            ipv6=route.ipv6,
        )

        async def resolve(destination: str) -> Hops | NoHops:
            return await self.resolve(destination, flags)

        return resolve

    async def resolve(self, destination: str, flags: Flags) -> Hops | NoHops:
        """Where mail of a destination (a domain, lower case, A-labels) goes.

        Raises nothing; cancelled, it does nothing to others who wait for the same.  Takes `RESOLVE_S` at most, and no
        time when the answer is known.
        """
        found = await self._plans.get((destination, flags), lambda: self._bounded(destination, flags))
        if isinstance(found, NoHops):
            return found
        ordered = sorted(found.hops, key=lambda member: (member[0], self._dice()))
        return Hops(tuple(hop for _, hop in ordered), found.group)

    def forget(self) -> None:
        """Look everything up again; policies that are kept stay in force."""
        self._plans.forget()
        self._policies.forget()
        self._lookups.forget()

    async def _bounded(self, destination: str, flags: Flags) -> tuple[_Plan | NoHops, float]:
        with trio.move_on_after(RESOLVE_S):
            found, until = await self._look(destination, flags)
            return found, max(until, trio.current_time() + LEAST_S)
        return mx.temporary(f"looking up {destination} takes too long"), trio.current_time() + FAILURE_TTL_S

    async def _look(self, destination: str, flags: Flags) -> tuple[_Plan | NoHops, float]:
        """The answer, and until when it holds."""
        if not mx.is_host(destination):
            return NoHops(Reply(550, "5.1.2", f"{destination[:80]!a} is no domain name")), 0.0
        answer = await self._lookups.mx(destination)
        rows = mx.hosts_of(destination, answer)
        if isinstance(rows, NoHops):
            return rows, answer.until
        search = Search(self._lookups, destination, answer, ipv6=flags.ipv6, tlsa_port=flags.tlsa_port)
        policy: list[Found | StoreUnavailable] = []
        async with trio.open_nursery() as nursery:
            if flags.mta_sts:
                nursery.start_soon(self._find_policy, destination, policy)
            nursery.start_soon(search.find_hosts, rows)
        return self._judge(search.seen(), policy[0] if policy else None)

    async def _find_policy(self, destination: str, into: list[Found | StoreUnavailable]) -> None:
        try:
            into.append(await self._policies.get(destination, lambda: self._policy_for(destination)))
        except StoreUnavailable as error:
            into.append(error)

    async def _policy_for(self, destination: str) -> tuple[Found, float]:
        if self._sts is None:
            return Found(None, 0.0), 0.0
        found = await self._sts.policy_for(destination)
        return found, found.until

    def _judge(self, seen: Seen, found: Found | StoreUnavailable | None) -> tuple[_Plan | NoHops, float]:
        """Which of the hosts may be used, and until when this holds."""
        if isinstance(found, StoreUnavailable):
            reply = Reply(451, "4.3.0", f"the store cannot say whether {seen.destination} demands TLS (MTA-STS)")
            return NoHops(reply), 0.0
        until = seen.until if found is None else min(seen.until, found.until)
        hops = seen.hops(None if found is None else found.policy, self._dice)
        if isinstance(hops, NoHops):
            return hops, until
        return _Plan(hops, mx.group_of(hop for _, hop in hops)), until
