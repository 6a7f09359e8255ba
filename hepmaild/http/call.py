# SPDX-License-Identifier: Apache-2.0
"""What is known of one request apart from what it asks for: its id, who sent it, by which way."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from quart.wrappers import Request, Websocket

from hepmaild.http.limits import Address, TrustedProxies, client_of
from hepmaild.http.quick import QuickRequest
from hepmaild.login import TokenSet
from hepmaild.mail.submission import RateState

API_PREFIXES = ("/api/", "/v1/", "/oauth/")
API_PATHS = frozenset({"/api", "/healthz", "/readyz"})
LOGIN_PREFIX = "/oauth/"
OWN_SMTP_PREFIX = "/v1/"
STATE_KEY = "hepmaild.connection"

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(eq=False, slots=True)
class ConnectionFacts:
    """One connection, as its requests see it.

    stream: for what TLS negotiated.  over_limit: only to be told so.  is_corked: octets are held back, because more
    follow at once.
    """

    peer: Address
    stream: Any
    over_limit: bool = False
    is_corked: bool = False

    def tls(self) -> tuple[str, str]:
        """Protocol version and cipher, or two empty strings."""
        negotiated: tuple[str, str] = getattr(self.stream, "negotiated", _nothing)()
        return negotiated


def _nothing() -> tuple[str, str]:
    return ("", "")


@dataclass(eq=False, slots=True)
class Call:
    """One request.

    client_ip: after trusted proxies.  is_https: all the way from the client.  is_api: answered in JSON.  rate: set once
    the key is valid.  by_proxy: the connection is a proxy's, so the request counts as its client's connection.
    code: the API code of a refusal, for the log.  is_login: refusals have numbers (login-api.md); is_own_smtp: they are
    those of own-smtp-api.md.  renewed: tokens for the cookies of whatever is answered, an error too: the browser's own
    were used up by this request.
    """

    request_id: str
    client_ip: Address
    is_https: bool
    is_api: bool
    by_proxy: bool
    connection: ConnectionFacts
    rate: RateState | None = None
    code: str = ""
    key_id: str = ""
    is_login: bool = False
    is_own_smtp: bool = False
    renewed: TokenSet | None = None

    @property
    def client(self) -> str:
        """Whom limits count."""
        return client_of(self.client_ip)


def is_api_path(path: str) -> bool:
    """Whether programs, not people, ask here."""
    return path in API_PATHS or path.startswith(API_PREFIXES)


def _comes_by_tls(request: Any, proxies: TrustedProxies) -> bool:
    """Whether a request or a websocket came by TLS all the way from the client."""
    connection: ConnectionFacts = request.scope["state"][STATE_KEY]
    said = request.headers.get("X-Forwarded-Proto", "") if connection.peer in proxies else ""
    scheme = said.rpartition(",")[2].strip().lower() if said else request.scheme
    return scheme in ("https", "wss")


def open_call(request: Request | QuickRequest | Websocket, proxies: TrustedProxies) -> Call:
    """The facts of a request, or of a websocket's handshake, that has just come."""
    connection: ConnectionFacts = request.scope["state"][STATE_KEY]
    headers = request.headers
    wanted = headers.get("X-Request-Id", "")
    request_id = wanted if _SANE_ID.fullmatch(wanted) else os.urandom(8).hex()
    client_ip = connection.peer
    is_https = _comes_by_tls(request, proxies)
    by_proxy = client_ip in proxies
    if by_proxy:
        client_ip = proxies.client_behind(client_ip, ",".join(headers.getlist("X-Forwarded-For")))
    call = Call(request_id, client_ip, is_https, is_api_path(request.path), by_proxy, connection)
    call.is_login = request.path.startswith(LOGIN_PREFIX)
    call.is_own_smtp = request.path.startswith(OWN_SMTP_PREFIX)
    return call
