# SPDX-License-Identifier: Apache-2.0
"""What may be asked of a key: its expiry and the addresses it may be used from (contract: api-keys.md).  Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Far from the end of what a date can say, so that no zone and no rounding leads past it.  Key expiries lie before it.
LATEST_US = (datetime(9999, 12, 31, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
MAPPED_BITS = 96  # before the IPv4 address in ::ffff:0:0/96 (RFC 4291 §2.5.5.2)


def parse_expiry(text: str) -> int:
    """A date (the end of that day, UTC) or an instant with its zone, as Unix microseconds; else ValueError."""
    allowed = (
        "a date (2027-01-31: until the end of that day, UTC) or an instant with its zone (2027-01-31T12:00:00+01:00)"
    )
    text = text.strip()
    try:
        if len(text) == 10:
            day = date.fromisoformat(text)
            found = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
        else:
            found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not {allowed}") from None
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no zone: give {allowed}")
    at_us = (found - EPOCH) // timedelta(microseconds=1)
    if at_us >= LATEST_US:
        raise ValueError(f"{text!r} is too far ahead: give {allowed} before 9999-12-30, or none for a key without end")
    return at_us


def parse_networks(texts: Iterable[str]) -> list[str]:
    """Addresses and CIDR ranges in their normal form, each once; else ValueError.

    IPv4 written as IPv6 (::ffff:192.0.2.1) is IPv4: so clients are looked at, by whichever socket they came.
    """
    found: dict[str, None] = {}
    for text in texts:
        try:
            network = ipaddress.ip_network(text.strip())
        except ValueError as error:
            hint = " (host bits are set)" if "host bits" in str(error) else ""
            raise ValueError(
                f"{text!r} is no IP address or CIDR range such as 192.0.2.0/24 or 2001:db8::/32{hint}"
            ) from None
        found[str(_unmapped(network))] = None
    return list(found)


def _unmapped(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is None or network.prefixlen < MAPPED_BITS:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - MAPPED_BITS))
