# SPDX-License-Identifier: Apache-2.0
"""MTA-STS: the TXT record, the policy, and what it says of a host; pure (RFC 8461)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from hepmaild.delivery.hops import TlsLevel, TlsPolicy

MAX_POLICY_OCTETS = 65_536  # RFC 8461 §3.3 suggests this
MAX_AGE_S = 31_557_600  # RFC 8461 §3.2
REFRESH_AT = 0.5  # of its life: then the policy is fetched again although its id is the same (RFC 8461 §3.3)

_WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}"
# RFC 8461 §3.1.  The literals are case sensitive.
_TXT_FIELD = re.compile(rf"({_WORD})=([\x21-\x3a\x3c\x3e-\x7e]+)")
_TXT_SPLIT = re.compile(r"[ \t]*;[ \t]*")
_TXT_ID = re.compile(r"[A-Za-z0-9]{1,32}")
# RFC 8461 §3.2.
_LINE_END = re.compile(r"\r?\n")
_FIELD = re.compile(rf"({_WORD}):[ \t]*(\S(?:.*\S)?)[ \t]*")
_VALUE = re.compile(r"[\x21-\x7e\u0080-\U0010ffff]+(?: +[\x21-\x7e\u0080-\U0010ffff]+)*")
_AGE = re.compile(r"[0-9]{1,10}")
_MX = re.compile(r"(?:\*\.)?(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")


class Mode(StrEnum):
    """What to do with a host that does not fit."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Policy:
    """mx: patterns, lower case.  max_age_s: how long it holds from when it was fetched."""

    mode: Mode
    mx: tuple[str, ...]
    max_age_s: int

    def octets(self) -> int:
        """How much memory its patterns take: 64 KB of text may be nine thousand of them."""
        return sum(map(sys.getsizeof, self.mx))


@dataclass(frozen=True, slots=True)
class Kept:
    """A policy as it was fetched.  policy_id: of the TXT record then.  text: as it came."""

    domain: str
    policy_id: str
    text: str
    fetched_at_us: int
    expires_at_us: int

    def is_current(self, policy_id: str, now_us: int) -> bool:
        """Whether it needs no look at the original: the id is the same, and less than half of its life is over."""
        life_us = self.expires_at_us - self.fetched_at_us
        return policy_id == self.policy_id and 0 <= now_us - self.fetched_at_us < life_us * REFRESH_AT


def keep(domain: str, policy_id: str, text: str, policy: Policy, now_us: int) -> Kept:
    """A policy that was fetched at `now_us`."""
    return Kept(domain, policy_id, text, now_us, now_us + policy.max_age_s * 1_000_000)


def read_txt(records: Iterable[str]) -> str | None:
    """The id that the TXT records at `_mta-sts.DOMAIN` tell; None: the domain has no policy (RFC 8461 §3.1)."""
    ours = [record for record in records if re.match(r"v=STSv1[ \t]*;", record)]
    if len(ours) != 1:
        return None
    fields = _TXT_SPLIT.split(ours[0].rstrip(" \t"))
    if fields[-1] == "":
        fields.pop()
    ids = []
    for field in fields[1:]:
        match = _TXT_FIELD.fullmatch(field)
        if match is None:
            return None
        if match[1] == "id":
            ids.append(match[2])
    return ids[0] if ids and _TXT_ID.fullmatch(ids[0]) else None


def parse_policy(text: str) -> Policy:
    """The policy in `text`.  Raises ValueError with what is wrong.

    Unknown fields are passed over; of those given twice (`mx` apart) the first counts (RFC 8461 §3.2).
    """
    fields: dict[str, str] = {}
    patterns: list[str] = []
    lines = _LINE_END.split(text)
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, 1):
        match = _FIELD.fullmatch(line)
        if match is None or not _VALUE.fullmatch(match[2]):
            raise ValueError(f"line {number} is not of the form `name: value`")
        if match[1] == "mx":
            patterns.append(_pattern(match[2], number))
        else:
            fields.setdefault(match[1], match[2])
    if fields.get("version") != "STSv1":
        raise ValueError("the version is not STSv1")
    if fields.get("mode") not in set(Mode):
        raise ValueError("the mode is none of enforce, testing, none")
    mode = Mode(fields["mode"])
    if not _AGE.fullmatch(fields.get("max_age", "")):
        raise ValueError("there is no max_age in seconds")
    if not patterns and mode is not Mode.NONE:
        raise ValueError(f"mode {mode} without an mx")
    return Policy(mode, tuple(dict.fromkeys(patterns)), min(int(fields["max_age"]), MAX_AGE_S))


def _pattern(value: str, number: int) -> str:
    pattern = value.lower()
    if len(pattern) > 255 or not _MX.fullmatch(pattern):
        raise ValueError(f"line {number}: mx is no host name, nor one behind `*.`")
    return pattern


def names(policy: Policy, host: str) -> bool:
    """Whether one of the patterns fits.  `*.` stands for exactly one label (RFC 8461 §4.1)."""
    host = host.lower().rstrip(".")
    _label, _dot, rest = host.partition(".")
    return host in policy.mx or (bool(rest) and f"*.{rest}" in policy.mx)


def tls_policy(policy: Policy | None, host: str, *, at_least: TlsPolicy) -> TlsPolicy | None:
    """What TLS to this host must be worth; None: the policy forbids the host (mode enforce).

    at_least: what holds without MTA-STS; kept where the policy asks for less.
    """
    if policy is None or policy.mode is Mode.NONE:
        return at_least
    fits = names(policy, host)
    if policy.mode is Mode.ENFORCE:
        return TlsPolicy(TlsLevel.VERIFIED, "mta-sts enforce") if fits else None
    why = "mta-sts testing" if fits else "mta-sts testing: the policy does not name this host"
    return TlsPolicy(at_least.level, why, testing=True)
