# SPDX-License-Identifier: Apache-2.0
"""The questions about each host of one destination: its addresses, and its TLSA records where DNSSEC reaches (Trio).

RFC 7672 §2.2: TLSA records are only asked for when the MX records and the host's addresses are secure; when asking for
them fails, the host is not used now, or somebody who suppresses answers could take TLS away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from hepmaild.delivery import dane, mta_sts, mx
from hepmaild.delivery.answers import Answer, Failed, MxRow
from hepmaild.delivery.hops import Hop, NoHops, TlsLevel, TlsPolicy
from hepmaild.delivery.lookups import Lookups
from hepmaild.delivery.mta_sts import Policy
from hepmaild.delivery.mx import Host
from hepmaild.mail.reply import Reply

HOSTS_AT_ONCE = 4  # of one destination: what its hosts' name servers do not answer is not to fill all turns
OPPORTUNISTIC = TlsPolicy(TlsLevel.OPPORTUNISTIC)


@dataclass(frozen=True, slots=True)
class Seen:
    """All that DNS said of a destination's hosts.

    tls: for each host what DANE demands; None: nothing; `Failed`: unknown.  implicit: the domain stands for its MX
    records.  until: when the first of the answers ends.  not_asked: how many more hosts it names.
    """

    destination: str
    hosts: tuple[tuple[Host, TlsPolicy | Failed | None], ...]
    implicit: bool
    ipv6: bool
    until: float
    not_asked: int

    def hops(self, policy: Policy | None, dice: Callable[[], float]) -> tuple[tuple[int, Hop], ...] | NoHops:
        """The hosts that may be used under this MTA-STS policy, with their preferences; DANE goes before it.

        RFC 8461 §2: a host whose TLSA records count is judged by those alone.  dice: [0, 1), which addresses first.
        """
        reachable = [(host, tls) for host, tls in self.hosts if host.has_addresses]
        if not reachable:
            hosts = [host for host, _ in self.hosts]
            return mx.without_addresses(
                self.destination, hosts, ipv6=self.ipv6, implicit=self.implicit, not_asked=self.not_asked
            )
        found, unknown = [], ""
        for host, demanded in reachable:
            name, addresses = host.row.exchange, host.addresses(dice)
            if isinstance(demanded, Failed):
                unknown = unknown or f"the TLSA records of {name} cannot be looked up now: {demanded.why}"
                continue
            tls: TlsPolicy | None = demanded or OPPORTUNISTIC
            if tls is not None and tls.level is not TlsLevel.DANE:
                tls = mta_sts.tls_policy(policy, name, at_least=tls)
            if tls is not None:
                found.append((host.row.preference, Hop(name, addresses, tls)))
        if found:
            return tuple(found)
        if unknown:
            return mx.temporary(unknown)
        text = f"the MTA-STS policy of {self.destination} names none of its MX hosts"
        return NoHops(Reply(451, "4.7.0", text))


class Search:
    """answer: to the MX question.  tlsa_port: whose TLSA records; 0: no DANE.

    `find_hosts`, then `seen`.
    """

    def __init__(
        self,
        lookups: Lookups,
        destination: str,
        answer: Answer[MxRow] | Failed,
        *,
        ipv6: bool,
        tlsa_port: int,
    ) -> None:
        self._lookups = lookups
        self._destination = destination
        self._implicit = isinstance(answer, Failed) or not answer.values
        secure = isinstance(answer, Answer) and answer.secure
        self._ipv6 = ipv6
        self._tlsa_port = tlsa_port if secure else 0
        self._canonical = answer.canonical if isinstance(answer, Answer) else destination
        self._until = [answer.until]
        self._limiter = trio.CapacityLimiter(HOSTS_AT_ONCE)
        self._hosts: list[tuple[Host, TlsPolicy | Failed | None]] = []
        self._not_asked = 0

    def seen(self) -> Seen:
        """What was found."""
        # In a fixed order, whichever answer came first: the same dice give the same result.
        hosts = sorted(self._hosts, key=lambda member: (member[0].row.preference, member[0].row.exchange))
        return Seen(self._destination, tuple(hosts), self._implicit, self._ipv6, min(self._until), self._not_asked)

    async def find_hosts(self, rows: Iterable[MxRow]) -> None:
        """Ask for everything about the `mx.MAX_HOSTS` most preferred ones, some at a time.

        Should certainly none of them have an address, mail may still go to the next ones.  Where one could not be asked
        for, that is said, and name servers that say nothing are not asked three times as much.
        """
        rows = mx.in_order(rows)
        asked = 0
        while asked < min(len(rows), mx.MAX_SEARCHED) and not any(h.has_addresses or h.failed for h, _ in self._hosts):
            async with trio.open_nursery() as nursery:
                for row in rows[asked : asked + mx.MAX_HOSTS]:
                    nursery.start_soon(self._find_in_turn, row)
            asked += mx.MAX_HOSTS
        self._not_asked = max(0, len(rows) - asked)

    async def _find_in_turn(self, row: MxRow) -> None:
        async with self._limiter:
            await self._find_host(row)

    async def _find_host(self, row: MxRow) -> None:
        answers: dict[int, Answer[str] | Failed] = {}

        async def ask(version: int) -> None:
            lookup = self._lookups.ipv6 if version == 6 else self._lookups.ipv4
            answers[version] = await lookup(row.exchange)

        async with trio.open_nursery() as nursery:
            for version in (6, 4) if self._ipv6 else (4,):
                nursery.start_soon(ask, version)
        host = mx.with_addresses(row, answers.get(6), answers[4])
        self._until.append(host.until)
        demanded = await self._dane(host) if host.has_addresses and self._tlsa_port else None
        self._hosts.append((host, demanded))

    async def _dane(self, host: Host) -> TlsPolicy | Failed | None:
        bases = await self._bases(host)
        if isinstance(bases, Failed):
            return bases
        for base in bases:
            answer = await self._lookups.tlsa(dane.tlsa_name(base, self._tlsa_port))
            self._until.append(answer.until)
            if isinstance(answer, Failed):
                return answer
            if answer.secure and answer.values:
                return dane.policy_of(answer.values, (base, self._destination, self._canonical))
        return None

    async def _bases(self, host: Host) -> tuple[str, ...] | Failed:
        """The names under which TLSA records may be, in order (RFC 7672 §2.2.2): what an alias stands for first."""
        name = host.row.exchange
        if host.canonical == name:
            return (name,) if host.secure else ()
        if host.secure:
            return (host.canonical, name)
        # The alias may be secure although what it stands for is not.
        alias = await self._lookups.cname(name)
        self._until.append(alias.until)
        if isinstance(alias, Failed):
            return alias
        return (name,) if alias.secure and alias.values else ()
