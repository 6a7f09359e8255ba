# SPDX-License-Identifier: Apache-2.0
"""Routes as the engine sees them, and how long each step on one may take; pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from hepmaild.config import RouteKind, RouteSettings, TlsMode
from hepmaild.delivery.client import Credentials, Stage

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
class Route:
    """A named way out.

    connections: how many at once; messages_per_connection: after so many a connection is closed.  directory: where the
    sandbox keeps its files, absolute or relative to state_dir.
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

    @property
    def address(self) -> str:
        """`host:port`, for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def from_settings(settings: RouteSettings) -> Route:
    """The route that a table of the settings describes."""
    return Route(
        name=settings.name,
        kind=settings.kind,
        host=settings.host,
        port=settings.port or _DEFAULT_PORTS[settings.tls],
        tls=settings.tls,
        tls_ca=settings.tls_ca,
        credentials=Credentials(settings.username, settings.password) if settings.username else None,
        connections=settings.connections,
        messages_per_connection=settings.messages_per_connection,
        directory=settings.directory or "sandbox",
    )
