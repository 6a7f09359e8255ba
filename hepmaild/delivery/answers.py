# SPDX-License-Identifier: Apache-2.0
"""What DNS said, as data; pure.  A question that got no answer is a value too: `Failed`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """Somebody who knows has answered.

    values: what the records hold, in no order; empty when there are none.  exists: False for NXDOMAIN.  secure: a
    resolver that we trust validated it, the way along aliases and the proof of absence included (the AD bit, RFC 4035
    §3.2.3).  canonical: the name at the end of the aliases, without the final dot.  until: how long it holds, by the
    clock of whoever asked.
    """

    values: tuple[T, ...]
    exists: bool
    secure: bool
    canonical: str
    until: float


@dataclass(frozen=True, slots=True)
class Failed:
    """Nobody answered, or only with an error (SERVFAIL, REFUSED, a bogus signature): nothing is known.

    why: for people.  until: no sense in asking again before.
    """

    why: str
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class MxRow:
    """One MX record.  exchange: lower case, without the final dot; "" for the root (RFC 7505)."""

    preference: int
    exchange: str


@dataclass(frozen=True, slots=True)
class TlsaRow:
    """One TLSA record as it is, whether it can be used or not (RFC 6698 §2.1)."""

    usage: int
    selector: int
    matching: int
    data: bytes


def octets_of(answer: Answer[Any] | Failed) -> int:
    """How much memory what the records hold takes, roughly: whoever has a domain may write 64 KB into each."""
    return 0 if isinstance(answer, Failed) else sum(map(_octets_of_value, answer.values))


def _octets_of_value(value: object) -> int:
    if isinstance(value, MxRow):
        return sys.getsizeof(value) + sys.getsizeof(value.exchange)
    if isinstance(value, TlsaRow):
        return sys.getsizeof(value) + sys.getsizeof(value.data)
    return sys.getsizeof(value)
