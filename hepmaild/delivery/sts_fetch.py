# SPDX-License-Identifier: Apache-2.0
"""Fetching an MTA-STS policy by HTTPS (Trio, h11): one request, nothing followed, nothing kept (RFC 8461 §3.3).

By hand, and not by an HTTP client library: the name has to be looked up by our own resolver, redirects, cookies,
proxies and compression must not happen, and h11 is here anyway.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import trio

from hepmaild.delivery.answers import Answer
from hepmaild.delivery.lookups import Lookups
from hepmaild.delivery.mta_sts import MAX_POLICY_OCTETS

FETCH_S = 20.0  # all together; RFC 8461 §3.3 suggests a minute, but mail waits for it
CONNECT_S = 5.0
MAX_ADDRESSES = 3  # of each family
MAX_HEADER_OCTETS = 16_384
READ_OCTETS = 16_384
PATH = "/.well-known/mta-sts.txt"


@dataclass(frozen=True, slots=True)
class NotFetched:
    """why: for the log."""

    why: str


Fetch = Callable[[str], Awaitable[str | NotFetched]]


class Fetcher:
    """lookups: finds the host.  port, context: other ones in tests; the system's authorities when None."""

    def __init__(self, lookups: Lookups, *, port: int = 443, context: ssl.SSLContext | None = None) -> None:
        self._lookups = lookups
        self._port = port
        self._context = context

    async def fetch(self, domain: str) -> str | NotFetched:
        """The policy's text of a domain.  Takes `FETCH_S` at most; cancel-safe."""
        host = f"mta-sts.{domain}"
        try:
            with trio.fail_after(FETCH_S):
                addresses = await self._addresses(host)
                if not addresses:
                    return NotFetched(f"{host} has no address")
                async with self._connected(host, addresses) as stream:
                    return await _get(stream, host)
        except trio.TooSlowError:
            return NotFetched(f"{host} takes too long")
        except (OSError, ssl.SSLError, trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            return NotFetched(_reason(error))
        except UnicodeDecodeError:
            return NotFetched("it is not UTF-8")

    async def _addresses(self, host: str) -> list[str]:
        found: list[str] = []
        for ask in (self._lookups.ipv4, self._lookups.ipv6):
            answer = await ask(host)
            if isinstance(answer, Answer):
                found.extend(sorted(answer.values)[:MAX_ADDRESSES])
        return found

    @asynccontextmanager
    async def _connected(self, host: str, addresses: list[str]) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
        if self._context is None:
            self._context = ssl.create_default_context()
        raw = await _connect(addresses, self._port)
        stream = trio.SSLStream(raw, self._context, server_hostname=host, https_compatible=True)
        try:
            await stream.do_handshake()
            yield stream
        finally:
            await trio.aclose_forcefully(stream)


async def _connect(addresses: list[str], port: int) -> trio.SocketStream:
    """The first that answers.  Raises OSError."""
    last: OSError | None = None
    for address in addresses:
        try:
            with trio.fail_after(CONNECT_S):
                return await trio.open_tcp_stream(address, port)
        except OSError as error:
            last = error
        except trio.TooSlowError:
            last = TimeoutError(f"{address} does not answer")
    raise last or OSError("no address")


async def _get(stream: trio.SSLStream[trio.SocketStream], host: str) -> str | NotFetched:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_OCTETS)
    headers = [("Host", host), ("User-Agent", "hepmaild"), ("Accept", "text/plain"), ("Connection", "close")]
    request = http.send(h11.Request(method="GET", target=PATH, headers=headers))
    await stream.send_all((request or b"") + (http.send(h11.EndOfMessage()) or b""))
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(READ_OCTETS)))
        elif isinstance(event, h11.Response):
            wrong = _wrong(event)
            if wrong is not None:
                return NotFetched(wrong)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_POLICY_OCTETS:
                return NotFetched(f"it is longer than {MAX_POLICY_OCTETS} octets")
        elif isinstance(event, h11.EndOfMessage):
            return body.decode("utf-8")
        elif not isinstance(event, h11.InformationalResponse):
            return NotFetched("the connection ended before the answer")


def _wrong(response: h11.Response) -> str | None:
    """Why this answer cannot hold a policy.  Redirects are not followed (RFC 8461 §3.3)."""
    if response.status_code != 200:
        return f"the answer is {response.status_code}"
    fields = {name.lower(): value.decode("latin-1") for name, value in response.headers}
    media_type = fields.get(b"content-type", "").partition(";")[0].strip().lower()
    if media_type != "text/plain":
        return f"the answer is of type {media_type[:80]!a}"
    if fields.get(b"content-encoding", "identity").strip().lower() != "identity":
        return "the answer is compressed"
    return None


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) and error.__cause__ is not None else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate is not good: {cause.verify_message}"
    return str(cause) or type(cause).__name__
