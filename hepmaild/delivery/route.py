# SPDX-License-Identifier: Apache-2.0
"""Routes as the engine sees them, and how long each step on one may take; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from hepmaild.config import Misbehaviour, RouteKind, RouteSettings, TlsMode
from hepmaild.config_read import parse_next_hop
from hepmaild.delivery.client import Credentials, Stage
from hepmaild.delivery.hops import Hop, TlsLevel, TlsPolicy
from hepmaild.delivery.tls_policy import mode_of
from hepmaild.mail import chaos

_DEFAULT_PORTS = {TlsMode.STARTTLS: 587, TlsMode.IMPLICIT: 465, TlsMode.OPPORTUNISTIC: 25, TlsMode.NONE: 25}

# RFC 5321 §4.5.3.2, and our own for what comes before and after.  The final dot's is a setting.
TIMEOUTS_S: dict[Stage, float] = {
    Stage.CONNECT: 30,
    Stage.TLS: 60,
    Stage.GREETING: 300,
    Stage.EHLO: 300,
    Stage.STARTTLS: 120,
    Stage.AUTH: 120,
    Stage.RSET: 300,
    Stage.MAIL: 300,
    Stage.RCPT: 300,
    Stage.DATA: 120,
    Stage.CONTENT: 180,  # for each block
    Stage.QUIT: 3,
}


@dataclass(frozen=True, slots=True)
class Host:
    """One host to try.

    name: for TLS and for people, and to connect to when there are no `addresses`.  port: TCP.
    tls: what the client machine does.  policy: what the TLS must be worth; None: what `tls` says is all.
    """

    name: str
    port: int
    tls: TlsMode
    addresses: tuple[str, ...] = ()
    policy: TlsPolicy | None = None

    @property
    def address(self) -> str:
        """`host:port`, for people."""
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"

    @property
    def sni(self) -> str:
        """With DANE the name under which the TLSA records were found (RFC 7672 §8.1)."""
        return self.policy.names[0] if self.policy is not None and self.policy.names else self.name

    @property
    def is_verified(self) -> bool:
        """Whether the certificate must be good for the name, by a trusted authority."""
        if self.policy is not None:
            return self.policy.level is TlsLevel.VERIFIED
        return self.tls in {TlsMode.STARTTLS, TlsMode.IMPLICIT}


@dataclass(frozen=True, slots=True)
class Route:
    """A named way out.

    connections: how many at once (kind `mx`: to each place); messages_per_connection: after so many a connection is
    closed.  messages_per_second: of this process, 0: no limit.  fallback: further hosts and ports (0: the first one's).
    directory: where the sandbox keeps its files, absolute or relative to state_dir.  misbehave, misbehave_s: see
    `sandbox.play`.  mta_sts, dane, ipv6: what the resolver looks for (kind `mx`).

    An account's own server: username, sealed: what it is logged in with, opened for each login by `OwnWays.open`.
    public_only: it may not be at an address that only this network reaches.
    """

    name: str
    kind: RouteKind
    host: str = ""
    port: int = 0
    tls: TlsMode = TlsMode.NONE
    tls_ca: str = ""
    credentials: Credentials | None = field(default=None, repr=False)
    connections: int = 20
    messages_per_connection: int = 100
    directory: str = ""
    fallback: tuple[tuple[str, int], ...] = ()
    messages_per_second: float = 0
    misbehave: Misbehaviour = Misbehaviour.NONE
    misbehave_s: float = 30
    mta_sts: bool = True
    dane: bool = True
    ipv6: bool = True
    username: str = ""
    sealed: bytes | None = field(default=None, repr=False)
    public_only: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether the settings of this process do not have it; see `missing_route`."""
        return self.kind is RouteKind.SMTP and not self.host

    @property
    def address(self) -> str:
        """`host:port`, for people."""
        return self.first_host.address

    @property
    def first_host(self) -> Host:
        """The host that is tried first (kind `smtp`)."""
        return Host(self.host, self.port, self.tls)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All hosts, in the order to try (kind `smtp`)."""
        others = tuple(Host(host, port or self.port, self.tls) for host, port in self.fallback)
        return (self.first_host, *others)


class Away(Enum):
    """Why nothing can leave by an account's own server."""

    REMOVED = auto()
    PAUSED = auto()


class OwnWays(Protocol):
    """Who knows the SMTP servers of accounts.  exist: whether there is any, as far as this process knows."""

    exist: bool

    def placeholder(self, name: str) -> Route:
        """What stands for a server until it is looked for."""

    async def find(self, name: str) -> Route | Away:
        """The server as it is now: by a read that begins after the question.  Raises `StoreUnavailable`."""

    def open(self, route: Route) -> Credentials | None:
        """How to log in there.  Raises `SecretsUnavailable`."""


def missing_route(name: str) -> Route:
    """Stands for a route that mail still waits for but that the settings do not have: everything is put off."""
    return Route(name, RouteKind.SMTP, connections=1)


def host_of(hop: Hop, port: int) -> Host:
    """A host that the resolver found."""
    return Host(hop.name, port, mode_of(hop.tls.level), hop.addresses, hop.tls)


def chaos_route(name: str) -> Route | None:
    """The sandbox that mail of chaos keys goes to; None: this is the name of another route."""
    kind = chaos.kind_of(name)
    return Route(name, RouteKind.SANDBOX, misbehave=Misbehaviour(kind)) if kind else None


def from_settings(settings: RouteSettings) -> Route:
    """The route that a table of the settings describes."""
    default_port = 25 if settings.kind is RouteKind.MX else _DEFAULT_PORTS[settings.tls]
    return Route(
        name=settings.name,
        kind=settings.kind,
        host=settings.host,
        port=settings.port or default_port,
        tls=settings.tls,
        tls_ca=settings.tls_ca,
        credentials=Credentials(settings.username, settings.password) if settings.username else None,
        connections=settings.connections,
        messages_per_connection=settings.messages_per_connection,
        directory=settings.directory or "sandbox",
        fallback=tuple(parse_next_hop(text) for text in settings.fallback_hosts),
        messages_per_second=settings.messages_per_second,
        misbehave=settings.misbehave,
        misbehave_s=settings.misbehave_s,
        mta_sts=settings.mta_sts,
        dane=settings.dane,
        ipv6=settings.ipv6,
    )
