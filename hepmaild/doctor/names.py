# SPDX-License-Identifier: Apache-2.0
"""Checks of DNS: what receivers look at before they believe a sender's domain (SPF, DKIM, DMARC) and our address (PTR).

SPF is played through as a receiver does (RFC 7208 §4), as far as that goes without a message: macros and `exists` are
left open.  What is checked for a domain depends on how its mail leaves: by a route of kind mx from here, by one of kind
smtp from the next hop, whose addresses we do not know; by a sandbox not at all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hepmaild.delivery.answers import Failed
from hepmaild.delivery.lookups import Lookups
from hepmaild.dkim_watch import look
from hepmaild.doctor.checks import Check, fail, ok, skipped, warn
from hepmaild.mail import spf
from hepmaild.mail.dkim_record import record_name, record_value

MAX_LOOKUPS = 10  # RFC 7208 §4.6.4
OPEN = "cannot be said without a message"
_RESULTS = {"+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain that mail is sent from.  leaves_here: by a route of kind mx.  leaves: by any but a sandbox."""

    name: str
    leaves_here: bool
    leaves: bool


async def our_addresses(lookups: Lookups, hostname: str) -> list[str] | Failed:
    """The public addresses of our name, which receivers see, as far as DNS knows them."""
    found: list[str] = []
    for answer in (await lookups.ipv4(hostname), await lookups.ipv6(hostname)):
        if isinstance(answer, Failed):
            return answer
        found += [address for address in answer.values if ipaddress.ip_address(address).is_global]
    return found


# Our own address


async def own_name(lookups: Lookups, hostname: str) -> list[Check]:
    """Our name has addresses, and each of those has our name (RFC 1912 §2.1): many receivers insist."""
    name = f"address of {hostname}"
    addresses = await our_addresses(lookups, hostname)
    if isinstance(addresses, Failed):
        return [warn(name, f"not known: {addresses.why}", "look at the name servers in dns.servers")]
    if not addresses:
        todo = "give server.hostname a name with an A or AAAA record of the address that mail leaves from"
        return [fail(name, "DNS has no public address for it: many receivers refuse mail from such a server", todo)]
    return [await _reverse(lookups, address, hostname) for address in addresses]


async def _reverse(lookups: Lookups, address: str, hostname: str) -> Check:
    name = f"PTR of {address}"
    answer = await lookups.ptr(address)
    todo = f"have whoever gave you the address set its PTR record to {hostname}"
    if isinstance(answer, Failed):
        return warn(name, f"not known: {answer.why}", "try again later")
    if not answer.values:
        return fail(name, "it has none: many receivers refuse mail from such an address", todo)
    if hostname.lower().rstrip(".") in answer.values:
        return ok(name, f"{hostname}, and back")
    for other in answer.values[:5]:
        back = [await lookups.ipv4(other), await lookups.ipv6(other)]
        if any(not isinstance(found, Failed) and address in found.values for found in back):
            return warn(name, f"{other}, and back; we say EHLO {hostname}", todo)
    return fail(name, f"{', '.join(answer.values[:5])}, which does not lead back to it", todo)


# A sender's domain


async def domain(lookups: Lookups, which: Domain, keys: Sequence[Mapping[str, Any]], hostname: str) -> list[Check]:
    """SPF, DKIM and DMARC of one domain."""
    if not which.leaves:
        return [skipped(f"DNS of {which.name}", "its mail stays in a sandbox")]
    return [
        await check_spf(lookups, which, hostname),
        *[await check_dkim(lookups, key) for key in keys],
        *([] if keys else [_no_key(which.name)]),
        await check_dmarc(lookups, which.name),
    ]


def _no_key(name: str) -> Check:
    todo = f"make a key (`hepmaild dkim add {name}`) and publish its record, unless the next hop signs"
    return warn(f"DKIM of {name}", "its mail is not signed here", todo)


async def check_dkim(lookups: Lookups, key: Mapping[str, Any]) -> Check:
    """Whether DNS shows a key's record."""
    where = record_name(key["domain"], key["selector"])
    name = f"DKIM of {key['domain']}"
    problem = await look(lookups.lookup_txt, key)
    if problem is None:
        return ok(name, f"{where} is right, {key['state']}")
    todo = f"publish at {where}: {record_value(key['algorithm'], key['public_key'])}"
    if isinstance(problem, Failed):
        return warn(name, f"{where}: not known: {problem.why}", "try again later")
    if key["state"] != "active":
        return warn(name, f"{where}: {problem}; the key waits for that", todo)
    return fail(name, f"{where}: {problem}, but mail is signed with this key", todo)


async def check_dmarc(lookups: Lookups, name: str) -> Check:
    """Whether the domain, or one above it, says what receivers shall do with forgeries (RFC 7489 §6.6.3)."""
    labels = name.split(".")
    title = f"DMARC of {name}"
    for start in range(max(1, len(labels) - 1)):
        where = "_dmarc." + ".".join(labels[start:])
        texts = await lookups.lookup_txt(where)
        if isinstance(texts, Failed):
            return warn(title, f"{where}: not known: {texts.why}", "try again later")
        found = [text for text in texts if text.replace(" ", "").lower().startswith("v=dmarc1")]
        if len(found) > 1:
            return fail(title, f"{where} has several records: receivers ignore them all", "keep one of them")
        if found:
            return _policy(title, where, found[0])
    todo = f'publish at _dmarc.{name}: "v=DMARC1; p=none", and make it stricter once SPF and DKIM are right'
    return warn(title, "there is no record: large receivers want one", todo)


def _policy(title: str, where: str, text: str) -> Check:
    tags = dict(pair.replace(" ", "").lower().partition("=")[::2] for pair in text.split(";"))
    policy = tags.get("p", "")
    if policy not in {"none", "quarantine", "reject"}:
        return fail(title, f"{where} says nothing of what to do (p=)", 'give it "p=none", "p=quarantine" or "p=reject"')
    return ok(title, f"{where}: p={policy}")


async def check_spf(lookups: Lookups, which: Domain, hostname: str) -> Check:
    """Whether receivers are told that mail of this domain may come from where it leaves."""
    title = f"SPF of {which.name}"
    texts = await lookups.lookup_txt(which.name)
    if isinstance(texts, Failed):
        return warn(title, f"not known: {texts.why}", "try again later")
    ours = await our_addresses(lookups, hostname) if which.leaves_here else []
    ours = [] if isinstance(ours, Failed) else ours
    try:
        record = spf.choose(texts)
    except spf.BadRecord as error:
        return fail(title, str(error), f"publish at {which.name}: {spf.with_addresses(None, ours)}")
    text = next((t for t in texts if t.lower().startswith("v=spf1")), None)
    todo = f"publish at {which.name}: {spf.with_addresses(text, ours)}"
    if record is None:
        return (fail if which.leaves_here else warn)(title, "there is no record: receivers mistrust such mail", todo)
    if not which.leaves_here:
        return ok(title, "there is a record; whether it names the next hop's servers cannot be seen from here")
    if not ours:
        return warn(title, "there is a record; our own address is not known", "see the check of our address")
    player = Player(lookups)
    results = {address: await player.check(address, which.name, record) for address in ours}
    bad = {address: result for address, result in results.items() if result not in {"pass", OPEN}}
    if not bad:
        return ok(title, "; ".join(f"{address}: {result}" for address, result in results.items()))
    said = "; ".join(f"{address}: {result}" for address, result in bad.items())
    return (warn if set(bad.values()) <= {"not known"} else fail)(title, said, todo)


class Player:
    """Plays a record through as a receiver does.  One for a domain: it counts the lookups."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups
        self._left = MAX_LOOKUPS

    async def check(self, address: str, domain: str, record: spf.Record, depth: int = 0) -> str:
        """pass, fail, softfail, neutral, none, "permerror: …", "not known", or `OPEN`."""
        if depth == 0:
            self._left = MAX_LOOKUPS
        for term in record.terms:
            matched = await self._matches(address, domain, term, depth)
            if isinstance(matched, str):
                return matched
            if matched:
                return _RESULTS[term.qualifier]
        if record.redirect and "%" not in record.redirect:
            return await self._follow(address, record.redirect, depth)
        return OPEN if record.redirect else "neutral"

    async def _follow(self, address: str, domain: str, depth: int) -> str:
        """The result for another domain's record."""
        self._left -= 1
        if self._left < 0 or depth >= MAX_LOOKUPS:
            return f"permerror: more than {MAX_LOOKUPS} lookups"
        texts = await self._lookups.lookup_txt(domain)
        if isinstance(texts, Failed):
            return "not known"
        try:
            record = spf.choose(texts)
        except spf.BadRecord as error:
            return f"permerror: {error}"
        return (
            "permerror: an included domain has no record"
            if record is None
            else (await self.check(address, domain, record, depth + 1))
        )

    async def _matches(self, address: str, domain: str, term: spf.Term, depth: int) -> bool | str:
        """Whether a directive fits; a text: the result of the whole."""
        if "%" in term.value or term.mechanism in {"exists", "ptr"}:
            return OPEN
        match term.mechanism:
            case "all":
                return True
            case "ip4" | "ip6":
                return _inside(address, term.value)
            case "include":
                result = await self._follow(address, term.value, depth)
                return result == "pass" if result in {"pass", "fail", "softfail", "neutral"} else result
        name, _, prefix = term.value.partition("/")
        return await self._named(address, name or domain, prefix, term.mechanism)

    async def _named(self, address: str, name: str, prefix: str, mechanism: str) -> bool | str:
        """`a` and `mx`."""
        self._left -= 1
        if self._left < 0:
            return f"permerror: more than {MAX_LOOKUPS} lookups"
        hosts = [name]
        if mechanism == "mx":
            answer = await self._lookups.mx(name)
            if isinstance(answer, Failed):
                return "not known"
            hosts = [row.exchange for row in answer.values if row.exchange][:10]
        short, _, long = prefix.partition("//")
        length = long if ":" in address else short.strip("/")
        for host in hosts:
            found = await (self._lookups.ipv6(host) if ":" in address else self._lookups.ipv4(host))
            if isinstance(found, Failed):
                return "not known"
            if any(_inside(address, f"{other}/{length}" if length else other) for other in found.values):
                return True
        return False


def _inside(address: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except (ValueError, TypeError):
        return False
