# SPDX-License-Identifier: Apache-2.0
"""Questions to DNS (Trio, dnspython): typed answers, errors as values, each question once, a bounded number at once.

The servers are recursive resolvers: aliases are followed by them.  DNSSEC is theirs too: we believe the AD bit if, and
only if, `dns.trust_ad` says that they validate and that nobody stands between (RFC 7672 §2.1.1 needs no more).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.reversename
import trio
from dns.rdatatype import RdataType

from hepmaild.config import DnsSettings
from hepmaild.config_read import parse_nameserver
from hepmaild.delivery.answers import Answer, Failed, MxRow, TlsaRow, octets_of
from hepmaild.delivery.flights import Flights
from hepmaild.delivery.turns import Turns

T = TypeVar("T")

QUESTIONS_AT_ONCE = 100
SLOW_S = 1.0  # a question that waits for longer counts apart
SLOW_AT_ONCE = 400
TURN_S = 30.0  # so long a question waits for its turn
ANSWERS_KEPT = 20_000
OCTETS_KEPT = 16 * 2**20  # of what these hold; the usual ones need a third
MIN_TTL_S, MAX_TTL_S = 5.0, 3600.0
MAX_NEGATIVE_TTL_S = 300.0
FAILURE_TTL_S = 10.0
MARGIN_S = 1.0  # dnspython ends a question by itself, and can say which server did what
PAYLOAD_OCTETS = 1232  # what passes unfragmented; larger answers come by TCP
MAX_VALUES = 100


class Lookups:
    """settings: [dns].  slow_s: from when on a question counts apart, so that others may be asked.

    The system's servers are read from /etc/resolv.conf once; without any, 127.0.0.1 is asked, as libc does.
    """

    def __init__(self, settings: DnsSettings, *, slow_s: float = SLOW_S) -> None:
        self._resolver = _make_resolver(settings)
        self._lifetime_s = settings.lifetime_s
        self._trusts_ad = settings.trust_ad
        self._turns = Turns(QUESTIONS_AT_ONCE, SLOW_AT_ONCE, slow_s)
        self._answers: Flights[tuple[str, RdataType], Answer[Any] | Failed] = Flights(
            ANSWERS_KEPT, OCTETS_KEPT, octets_of
        )

    @property
    def trusts_ad(self) -> bool:
        """Whether answers can be secure at all."""
        return self._trusts_ad

    async def mx(self, name: str) -> Answer[MxRow] | Failed:
        """MX records."""
        return await self._ask(name, RdataType.MX, lambda r: MxRow(r.preference, _text(r.exchange)))

    async def ipv4(self, name: str) -> Answer[str] | Failed:
        """A records, as text."""
        return await self._ask(name, RdataType.A, lambda r: str(r.address))

    async def ipv6(self, name: str) -> Answer[str] | Failed:
        """AAAA records, as text."""
        return await self._ask(name, RdataType.AAAA, lambda r: str(r.address))

    async def tlsa(self, name: str) -> Answer[TlsaRow] | Failed:
        """TLSA records, as they are."""
        return await self._ask(name, RdataType.TLSA, lambda r: TlsaRow(r.usage, r.selector, r.mtype, r.cert))

    async def cname(self, name: str) -> Answer[str] | Failed:
        """The alias record itself."""
        return await self._ask(name, RdataType.CNAME, lambda r: _text(r.target))

    async def txt(self, name: str) -> Answer[str] | Failed:
        """TXT records, the strings of each joined, UTF-8 with replacements."""
        return await self._ask(name, RdataType.TXT, lambda r: b"".join(r.strings).decode("utf-8", "replace"))

    async def ptr(self, address: str) -> Answer[str] | Failed:
        """The names of an IP address."""
        return await self._ask(
            dns.reversename.from_address(address).to_text(), RdataType.PTR, lambda r: _text(r.target)
        )

    async def lookup_txt(self, name: str) -> tuple[str, ...] | Failed:
        """The texts of the TXT records of a name, sorted; empty when there are none."""
        answer = await self.txt(name)
        return answer if isinstance(answer, Failed) else tuple(sorted(answer.values))

    def forget(self) -> None:
        """Ask again for everything."""
        self._answers.forget()

    async def _ask(self, name: str, kind: RdataType, read: Callable[[Any], T]) -> Answer[T] | Failed:
        """Ask, or wait for the same question, or take what is known.

        Takes `dns.lifetime_s` and a second at most, and `TURN_S` before it where hundreds wait; cancel-safe.
        """

        async def make() -> tuple[Answer[Any] | Failed, float]:
            with trio.move_on_after(TURN_S + self._lifetime_s + MARGIN_S):
                answer = await self._turns.run(partial(self._timely, name, kind, read))
                return answer, answer.until
            failed = _failed("too many other questions wait for answers")
            return failed, failed.until

        return await self._answers.get((name, kind), make)

    async def _timely(self, name: str, kind: RdataType, read: Callable[[Any], T]) -> Answer[T] | Failed:
        with trio.move_on_after(self._lifetime_s + MARGIN_S):
            return await self._question(name, kind, read)
        return _failed(f"no answer within {self._lifetime_s:g} s")

    async def _question(self, name: str, kind: RdataType, read: Callable[[Any], T]) -> Answer[T] | Failed:
        try:
            question = dns.name.from_text(name, dns.name.root)
        except (dns.exception.DNSException, UnicodeError):
            return Answer((), exists=False, secure=False, canonical=name, until=_negative(MAX_NEGATIVE_TTL_S))
        try:
            found = await self._resolver.resolve(
                question, kind, raise_on_no_answer=False, search=False, backend=dns.asyncbackend.get_backend("trio")
            )
        except dns.resolver.NXDOMAIN as error:
            return self._no_such_name(name, error.kwargs["responses"][question])
        except dns.resolver.NoNameservers as error:
            return _failed(_why(error.kwargs.get("errors", ())))
        except dns.resolver.LifetimeTimeout as error:
            return _failed(_why(error.kwargs.get("errors", ())))
        except (dns.exception.DNSException, OSError) as error:
            return _failed(str(error) or type(error).__name__)
        canonical = _text(found.canonical_name)
        ttl_s = float(found.chaining_result.minimum_ttl)
        if found.rrset is None:
            return Answer((), True, self._is_secure(found.response), canonical, _negative(ttl_s))
        values = tuple(read(record) for record in list(found.rrset)[:MAX_VALUES])
        until = trio.current_time() + min(MAX_TTL_S, max(MIN_TTL_S, ttl_s))
        return Answer(values, True, self._is_secure(found.response), canonical, until)

    def _no_such_name(self, name: str, response: dns.message.QueryMessage) -> Answer[Any]:
        ttl_s = float(response.resolve_chaining().minimum_ttl)
        return Answer((), False, self._is_secure(response), name, _negative(ttl_s))

    def _is_secure(self, response: dns.message.Message) -> bool:
        return self._trusts_ad and bool(response.flags & dns.flags.AD)


def _make_resolver(settings: DnsSettings) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=False)
    if settings.servers:
        servers = [parse_nameserver(text) for text in settings.servers]
        resolver.nameservers = [dns.nameserver.Do53Nameserver(address, port) for address, port in servers]
    else:
        try:
            resolver.read_resolv_conf("/etc/resolv.conf")
        except dns.resolver.NoResolverConfiguration:
            resolver.nameservers = ["127.0.0.1"]
    resolver.timeout = settings.timeout_s
    resolver.lifetime = settings.lifetime_s
    # The AD bit in a question asks for it in the answer, without the signatures (RFC 6840 §5.7).
    resolver.flags = dns.flags.RD | (dns.flags.AD if settings.trust_ad else 0)
    resolver.use_edns(0, 0, PAYLOAD_OCTETS)
    return resolver


def _failed(why: str) -> Failed:
    return Failed(why, trio.current_time() + FAILURE_TTL_S)


def _negative(ttl_s: float) -> float:
    return trio.current_time() + min(MAX_NEGATIVE_TTL_S, max(MIN_TTL_S, ttl_s))


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""


def _why(errors: Iterable[Any]) -> str:
    """What the servers said, as in `SERVFAIL from 192.0.2.1:53`; the last ones."""
    said: dict[str, None] = {}
    for server, _tcp, _port, error, _response in errors:
        what = error if isinstance(error, str) else ("no answer" if _is_timeout(error) else str(error) or "an error")
        said[f"{what} from {server.removeprefix('Do53:').replace('@', ':')}"] = None
    return ", ".join(list(said)[-3:]) or "no name server answers"


def _is_timeout(error: object) -> bool:
    return isinstance(error, dns.exception.Timeout)
