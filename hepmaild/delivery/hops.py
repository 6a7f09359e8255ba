# SPDX-License-Identifier: Apache-2.0
"""Where mail of a destination goes and what the TLS there must be worth, as data; pure.

The resolver makes it (RFC 5321 §5.1, RFC 7505, RFC 8461, RFC 7672), the engine obeys it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from hepmaild.mail.reply import Reply


class TlsLevel(StrEnum):
    """What a connection must offer before mail goes over it."""

    NONE = "none"  # clear text
    OPPORTUNISTIC = "opportunistic"  # TLS if it is offered and works, unverified (RFC 7435)
    ENCRYPTED = "encrypted"  # TLS, unverified: TLSA records exist, but none can be used (RFC 7672 §2.2)
    VERIFIED = "verified"  # TLS whose certificate names the host, from a trusted authority (RFC 8461 §4.1)
    DANE = "dane"  # TLS whose certificate fits a TLSA record (RFC 7672 §3.1)


@dataclass(frozen=True, slots=True)
class Tlsa:
    """A TLSA record that can be used for SMTP: usage 2 (DANE-TA) or 3 (DANE-EE)."""

    usage: int
    selector: int
    matching: int
    data: bytes


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """level: what is required.  why: for the log, as in "mta-sts enforce".  tlsa: with DANE.

    names: with DANE-TA the names that the certificate may have (RFC 7672 §3.2.2).
    testing: MTA-STS in mode "testing": say in the transcript what would have been refused, deliver all the same.
    """

    level: TlsLevel
    why: str = ""
    tlsa: tuple[Tlsa, ...] = ()
    names: tuple[str, ...] = ()
    testing: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    """One host that takes mail of the destination.  addresses: IP addresses in the order to try, IPv6 first."""

    name: str
    addresses: tuple[str, ...]
    tls: TlsPolicy


@dataclass(frozen=True, slots=True)
class Hops:
    """The answer for a destination.

    hops: in the order to try; equal preferences were shuffled.  group: the same for destinations whose mail goes to the
    same hosts; connections and their limits are shared by it.
    """

    hops: tuple[Hop, ...]
    group: str


@dataclass(frozen=True, slots=True)
class NoHops:
    """There is nowhere to send it.

    reply: 5yz when that is so for good (Null MX: 556 5.1.10, no such domain: 550 5.1.2), else 451 4.4.3.
    """

    reply: Reply


Resolve = Callable[[str], Awaitable[Hops | NoHops]]
