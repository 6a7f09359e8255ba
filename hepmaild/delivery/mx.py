# SPDX-License-Identifier: Apache-2.0
"""Which hosts take a destination's mail, in which order, and what it means when there are none; pure.

RFC 5321 §5.1 (MX, or the address of the domain itself), RFC 7505 (Null MX).  Own addresses are not looked for: this
daemon takes no mail from strangers, so that mail cannot loop through it, and the MX may well be another server on the
same machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hepmaild.delivery.answers import Answer, Failed, MxRow
from hepmaild.delivery.hops import Hop, NoHops, TlsLevel
from hepmaild.mail.reply import Reply

MAX_HOSTS = 10
MAX_SEARCHED = 30  # as long as certainly none of those before has an address
MAX_ADDRESSES = 4  # of each family

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER_AT_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def is_host(name: str) -> bool:
    """Whether this can be a host's name: lower case, no address in the clothes of a name (RFC 5321 §5.1)."""
    return len(name) <= 253 and _NAME.fullmatch(name) is not None and _NUMBER_AT_END.fullmatch(name) is None


def hosts_of(destination: str, answer: Answer[MxRow] | Failed) -> tuple[MxRow, ...] | NoHops:
    """The hosts that the answer to the MX question names; the destination itself when there are no MX records."""
    if isinstance(answer, Failed):
        return temporary(f"the MX records of {destination} cannot be looked up now: {answer.why}")
    if not answer.exists:
        return NoHops(Reply(550, "5.1.2", f"the domain {destination} does not exist"))
    if not answer.values:
        return (MxRow(0, destination),)
    named = [row for row in answer.values if row.exchange]
    if not named:
        return NoHops(Reply(556, "5.1.10", f"{destination} takes no mail (Null MX, RFC 7505)"))
    best: dict[str, MxRow] = {}
    for row in sorted(named, key=lambda row: row.preference):
        if is_host(row.exchange):
            best.setdefault(row.exchange, row)
    if not best:
        shown = ", ".join(sorted(row.exchange for row in named)[:3])
        return unroutable(f"the MX records of {destination} name no host: {_plain(shown)}")
    return tuple(best.values())


def in_order(hosts: Iterable[MxRow]) -> list[MxRow]:
    """The most preferred ones first; always the same among equals, so that the group of the best stays the same."""
    return sorted(hosts, key=lambda row: (row.preference, row.exchange))


@dataclass(frozen=True, slots=True)
class Host:
    """A host and its addresses.

    secure: all of its addresses are, and canonical with them.  failed: why not all is known; "" when it is.
    """

    row: MxRow
    ipv6: tuple[str, ...]
    ipv4: tuple[str, ...]
    secure: bool
    canonical: str
    until: float
    failed: str = ""

    @property
    def has_addresses(self) -> bool:
        """Whether there is anything to connect to."""
        return bool(self.ipv6 or self.ipv4)

    def addresses(self, dice: Callable[[], float]) -> tuple[str, ...]:
        """Which to try, in this order: IPv6 first, of each family some in random order.  dice: [0, 1)."""
        families = (sorted(family, key=lambda _: dice())[:MAX_ADDRESSES] for family in (self.ipv6, self.ipv4))
        return tuple(address for family in families for address in family)


def with_addresses(row: MxRow, ipv6: Answer[str] | Failed | None, ipv4: Answer[str] | Failed) -> Host:
    """The host of this MX record.  ipv6: None when it is not used."""
    answers = [answer for answer in (ipv6, ipv4) if isinstance(answer, Answer)]
    failed = [answer.why for answer in (ipv6, ipv4) if isinstance(answer, Failed)]
    return Host(
        row=row,
        ipv6=_values(ipv6),
        ipv4=_values(ipv4),
        secure=bool(answers) and all(answer.secure for answer in answers),
        canonical=answers[0].canonical if answers else row.exchange,
        until=min(answer.until for answer in (ipv6, ipv4) if answer is not None),
        failed=failed[0] if failed else "",
    )


def _values(answer: Answer[str] | Failed | None) -> tuple[str, ...]:
    return tuple(sorted(answer.values)) if isinstance(answer, Answer) else ()


def without_addresses(destination: str, hosts: Iterable[Host], *, ipv6: bool, implicit: bool, not_asked: int) -> NoHops:
    """None of the hosts has an address.

    Certain: RFC 5321 §5.1 wants it reported, and does not let us fall back to the domain's own address; 550.  One of
    them could not be asked for, or there are others: temporary.  implicit: the domain stands for its MX records.
    not_asked: how many others there are.
    """
    hosts = list(hosts)
    unknown = next((host for host in hosts if host.failed), None)
    if unknown is not None:
        return temporary(f"the addresses of {unknown.row.exchange} cannot be looked up now: {unknown.failed}")
    only = "" if ipv6 else " of IPv4, and this route uses no other"
    if implicit:
        return NoHops(Reply(550, "5.1.2", f"{destination} takes no mail: no MX records, no addresses{only}"))
    names = ", ".join(host.row.exchange for host in hosts[:3])
    if not_asked:
        first = f"the first {len(hosts)} of {len(hosts) + not_asked} MX hosts"
        return temporary(f"none of {first} of {destination} has an address{only}: {names}")
    return unroutable(f"none of the MX hosts of {destination} has an address{only}: {names}")


def group_of(hops: Iterable[Hop]) -> str:
    """The same for destinations whose mail may share connections: the hosts, and what TLS to them must be worth.

    Two domains with the same hosts but different demands are two groups, or mail of the one could leave over a
    connection that was good enough for the other only.  (TLSA records and their first name belong to the host.)
    """
    return " ".join(sorted(_group_member(hop) for hop in hops))


def _group_member(hop: Hop) -> str:
    if hop.tls.level is TlsLevel.OPPORTUNISTIC:
        return hop.name
    return "/".join((hop.name, hop.tls.level, *hop.tls.names[1:]))


def temporary(text: str) -> NoHops:
    """Nothing is known now: try again."""
    return NoHops(Reply(451, "4.4.3", text))


def unroutable(text: str) -> NoHops:
    """What DNS says for certain leads nowhere."""
    return NoHops(Reply(550, "5.4.4", text))


def _plain(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")
