# SPDX-License-Identifier: Apache-2.0
"""The pure checks of the intake, in the order of the contract.  No store, no clock: what they need is an argument.

Each gives None (or what was asked for) when all is well, and a `Refusal` otherwise.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hepmaild.config import Plan
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.address import key_of
from hepmaild.mail.submission import Door, KeyIdentity, Permission, Recipient
from hepmaild.storage.directory import KeyRow, SenderRow

_STANDARD = Plan()


def plan_of(plans: dict[str, Plan], name: str) -> Plan:
    """The plan of this name; one that left the settings counts as `standard`."""
    return plans.get(name) or plans.get("standard") or _STANDARD


def check_key(row: KeyRow, door: Door, peer_ip: str, now_us: int, needs: Permission | None = None) -> Refusal | None:
    """Whether the key may be used here and now (api-keys.md; order: send-api.md "Errors").

    needs: what it must be allowed instead of the door.
    """
    if row.status == "disabled":
        return Refusal(ErrorKind.KEY_DISABLED, "this API key is disabled: enable it in the dashboard, or use another")
    if row.expires_at_us is not None and row.expires_at_us <= now_us:
        return Refusal(ErrorKind.KEY_EXPIRED, "this API key has expired: give it a later expiry, or use another")
    if row.addresses is not None and not _is_inside(peer_ip, row.addresses):
        return Refusal(ErrorKind.IP_NOT_ALLOWED, "this API key may not be used from this IP address")
    if row.permissions is not None and (needs or door).value not in row.permissions:
        if needs is not None:
            return Refusal(ErrorKind.CHANNEL_NOT_ALLOWED, f"this API key has not the permission {needs.value}")
        return Refusal(ErrorKind.CHANNEL_NOT_ALLOWED, f"this API key may not be used over {door.value.upper()}")
    if row.account_status != "active":
        return Refusal(ErrorKind.ACCOUNT_SUSPENDED, "the account is suspended: ask its operator")
    return None


def _is_inside(peer_ip: str, networks: Sequence[str]) -> bool:
    try:
        address = ipaddress.ip_address(peer_ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in ipaddress.ip_network(network, strict=False) for network in networks)


def client_of(peer_ip: str) -> str:
    """What limits count as one client: the IPv4 address, or the /64 of an IPv6 one."""
    try:
        address = ipaddress.ip_address(peer_ip.partition("%")[0])
    except ValueError:
        return peer_ip
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def identity_of(row: KeyRow, secret_hash: bytes, plans: dict[str, Plan]) -> KeyIdentity:
    """The identity that doors carry around."""
    return KeyIdentity(
        key_id=row.key_id,
        key_name=row.name,
        last_five=row.last_five,
        account_id=row.account_id,
        account_email=row.account_email,
        plan=row.plan,
        calls_per_minute=plan_of(plans, row.plan).calls_per_minute,
        secret_hash=secret_hash,
        senders=row.senders,
        chaos=row.chaos,
        permissions=row.permissions,
    )


@dataclass(frozen=True, slots=True)
class SenderBook:
    """The senders one account may use: its own before global ones."""

    by_key: dict[str, SenderRow]
    default: SenderRow | None


def make_book(own_and_global: Iterable[SenderRow], from_settings: Iterable[SenderRow]) -> SenderBook:
    """Join database and settings senders.  The first of an address wins: own, global, settings; so with defaults."""
    by_key: dict[str, SenderRow] = {}
    default: SenderRow | None = None
    for row in (*own_and_global, *from_settings):
        by_key.setdefault(row.address_key, row)
        if row.is_default and default is None:
            default = row
    return SenderBook(by_key, default)


def pick_sender(book: SenderBook, wanted: Sequence[str], allowed: frozenset[str] | None) -> SenderRow | Refusal:
    """The sender of a message that shows `wanted` in From; none: the default.  Every address must be the account's."""
    if not wanted:
        if book.default is None:
            text = "the message names no sender and the account has no default one: set From"
            return Refusal(ErrorKind.SENDER_NOT_ALLOWED, text, field="from")
        wanted = (book.default.address,)
    rows = []
    for address in wanted:
        row = book.by_key.get(key_of(address))
        if row is None:
            text = f"the account may not send from <{address}>: use one of its sender addresses"
            return Refusal(ErrorKind.SENDER_NOT_ALLOWED, text, field="from")
        if allowed is not None and row.address_key not in allowed:
            text = f"this API key may not send from <{address}>: use a sender it is allowed, or another key"
            return Refusal(ErrorKind.SENDER_NOT_ALLOWED, text, field="from")
        rows.append(row)
    return rows[0]


def distinct(recipients: Iterable[Recipient]) -> tuple[Recipient, ...]:
    """Recipients without repetition, compared case-insensitively as a whole; the first of each stays."""
    seen: dict[str, Recipient] = {}
    for recipient in recipients:
        seen.setdefault(key_of(recipient.address), recipient)
    return tuple(seen.values())


class FailedKeys:
    """Counts failures with unknown keys for each client (money-and-limits.md "Other limits").

    `limit` in any 60 seconds are answered as they are; every further one with a wait of 1 s, doubling up to
    `MAX_WAIT_S`.  Only failures wait: a valid key never meets this class.  Memory is bounded: the clients that failed
    longest ago are forgotten first.  limit: as the settings have it now.
    """

    MAX_CLIENTS = 20_000
    MAX_WAIT_S = 60
    WINDOW_US = 60_000_000

    def __init__(self, limit: Callable[[], int], now_us: Callable[[], int]) -> None:
        self._limit = limit
        self._now_us = now_us
        self._failures: OrderedDict[str, list[int]] = OrderedDict()

    def note(self, peer_ip: str) -> int:
        """Count a failure; the seconds it has to wait, 0 when it is not one too many."""
        now, limit = self._now_us(), self._limit()
        client = client_of(peer_ip)
        times = self._failures.pop(client, [])
        times = [at for at in times if at > now - self.WINDOW_US][-(limit + 7) :]
        times.append(now)
        self._failures[client] = times
        if len(self._failures) > self.MAX_CLIENTS:
            self._failures.popitem(last=False)
        over = len(times) - limit
        return 0 if over <= 0 else int(min(2 ** (over - 1), self.MAX_WAIT_S))
