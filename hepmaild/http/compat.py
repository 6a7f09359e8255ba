# SPDX-License-Identifier: Apache-2.0
"""Work-arounds for quart-trio 0.12 and hypercorn 0.18, each with its test in `tests/regress` (design.md section 10).

- P5: quart-trio cancels its nursery while hypercorn closes or recycles the connection, which then never happens: only
  the sending is shielded, with a deadline.
- P6: hypercorn sends without any deadline, and even cancelling does not end it: every send has one.
- P9: an error while a connection is served ends the whole server; over HTTP/2, octets for a stream that is already
  answered are such an error.
- Quart collects a body as fast as it comes, whether somebody reads it or not: `Body` makes the connection wait.
- hypercorn keeps the socket of a client that closed an idle connection until the idle time-out.
- A connection that is closed while the client still sends is reset, and the client never sees the answer: what is left
  of the body is read and dropped first, for a while.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit

import structlog
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope
from quart.wrappers import Request as QuartRequest
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest
from quart_trio.wrappers.request import TrioBody

from hepmaild.http.call import STATE_KEY, ConnectionFacts
from hepmaild.http.limits import ConnectionCounter, Timeouts, TrustedProxies, client_of, parse_ip

log = structlog.get_logger()

BODY_HIGH_WATER = 256 << 10
MAX_RECEIVE = 64 << 10
REFUSED_CONNECTIONS = 20  # so many above the limit are told; more are closed without a word


class Body(TrioBody):
    """A request body that is collected only as far as somebody reads it."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._room = trio.Event()
        self._is_collected = False
        self._is_dropped = False

    @property
    def is_complete(self) -> bool:
        """Whether the client has sent it all."""
        return self._complete.is_set()

    async def feed(self, octets: bytes, *, is_last: bool) -> None:
        """Add what came, as soon as there is room."""
        while len(self._data) > BODY_HIGH_WATER and not (self._is_collected or self._is_dropped):
            self._room = trio.Event()
            await self._room.wait()
        if not self._is_dropped:
            self.append(octets)
        if is_last:
            self.set_complete()

    async def __anext__(self) -> bytes:
        octets = await super().__anext__()
        self._room.set()
        return octets

    def __await__(self) -> Generator[Any, None, Any]:
        self._is_collected = True
        self._room.set()
        return super().__await__()

    async def drop(self, seconds: float) -> bool:
        """Read what is left and forget it, for at most `seconds`; whether the end was reached."""
        self._is_dropped = True
        self._data.clear()
        self._room.set()
        with trio.move_on_after(seconds):
            await self._complete.wait()
        return self.is_complete


class Request(TrioRequest):
    """A request with a `Body` of ours."""

    body_class = Body


class HttpConnection(TrioASGIHTTPConnection):
    """One request and its answer (P5)."""

    app: Any

    def __init__(self, app: Any, scope: HTTPScope) -> None:
        if not scope["path"].startswith("/"):
            scope["path"] = _origin_form(scope["path"])
        super().__init__(app, scope)

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request.  Then nobody listens any more, and the library must not wait until somebody does."""
        try:
            await super().__call__(receive, send)
        finally:
            channel = getattr(receive, "__self__", None)
            if isinstance(channel, trio.MemoryReceiveChannel):
                channel.close()

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: QuartRequest, receive: ASGIReceiveCallable
    ) -> None:
        """Feed the body; a client that goes away cancels the handler (P4: what must not be lost shields itself)."""
        body: Any = request.body
        while True:
            message: Any = await receive()
            if message["type"] == "http.request":
                await body.feed(message.get("body", b""), is_last=not message.get("more_body", False))
            elif message["type"] == "http.disconnect":
                break
        nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, request: QuartRequest, send: ASGISendCallable
    ) -> None:
        """Run the handler, then send its answer, whatever happens meanwhile, in bounded time."""
        response = await self.app.handle_request(request)
        body: Any = request.body
        timeouts = self.app.surroundings.timeouts
        with trio.move_on_after(timeouts.send_s + timeouts.linger_s, shield=True):
            if body.is_complete:
                await self._send_response(send, response)
            else:
                await self._send_response(_Lingering(send, body, timeouts.linger_s), response)
        nursery.cancel_scope.cancel()


def _origin_form(path: str) -> str:
    """The path of an absolute request target (RFC 9112 §3.2.2), and a harmless one for anything else."""
    try:
        path = urlsplit(path).path
    except ValueError:
        path = ""
    return path if path.startswith("/") else f"/{path}"


class _Lingering:
    """Sends an answer, but its end only when the client has sent all or had its time."""

    def __init__(self, send: ASGISendCallable, body: Body, linger_s: float) -> None:
        self._linger_s = linger_s
        self._send = send
        self._body = body

    async def __call__(self, event: ASGISendEvent) -> None:
        message: Any = event
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            if message.get("body"):
                more: Any = {**message, "more_body": True}
                await self._send(more)
                message = {**message, "body": b""}
            await self._body.drop(self._linger_s)
        await self._send(message)


class _Gone:
    """Stands for an HTTP/2 stream that was answered before all of its request came."""

    idle = True

    async def handle(self, event: object) -> None:
        """Drop it."""


class _Streams(dict[int, Any]):
    def __missing__(self, stream_id: int) -> _Gone:
        return _Gone()


async def _offer_no_upgrade(_request: object) -> None:
    """HTTP/2 is chosen by ALPN only: the library's h2c upgrade leaves a connection that no time-out ends."""


class Connection(TCPServer):
    """One connection: counted, contained, and never stuck in a send (P6, P9)."""

    def __init__(
        self,
        app: Any,
        config: Any,
        context: Any,
        stream: Any,
        *,
        counter: ConnectionCounter,
        proxies: TrustedProxies,
        timeouts: Timeouts,
    ) -> None:
        super().__init__(app, config, context, {}, stream)
        self._timeouts = timeouts
        self._counter = counter
        self._proxies = proxies
        self._is_over = False

    @property
    def protocol(self) -> ProtocolWrapper:
        """The library's protocol, once the handshake is over."""
        return self._protocol

    @protocol.setter
    def protocol(self, wrapper: ProtocolWrapper) -> None:
        protocol: Any = wrapper.protocol
        if isinstance(protocol, H2Protocol):
            protocol.streams = _Streams()
        else:
            protocol._check_protocol = _offer_no_upgrade  # noqa: SLF001
        self._protocol = wrapper

    async def run(self) -> None:
        """Serve until either side ends it.  Whatever a client provokes ends here."""
        socket = getattr(self.stream, "transport_stream", self.stream).socket
        try:
            peer = parse_ip(socket.getpeername()[0])
        except (OSError, IndexError):  # gone already
            peer = None
        if peer is None:
            await trio.aclose_forcefully(self.stream)
            return
        if peer in self._proxies:  # its requests count as their clients' connections
            await self._serve(ConnectionFacts(peer, self.stream))
            return
        client = client_of(peer)
        count = self._counter.enter(client)
        try:
            if count > self._counter.limit + REFUSED_CONNECTIONS:
                await trio.aclose_forcefully(self.stream)
                return
            await self._serve(ConnectionFacts(peer, self.stream, over_limit=count > self._counter.limit))
        finally:
            self._counter.leave(client)

    async def _serve(self, facts: ConnectionFacts) -> None:
        self.state = {STATE_KEY: facts}
        try:
            await super().run()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):  # the other side is gone
            await trio.aclose_forcefully(self.stream)
        except* Exception as error:  # noqa: BLE001  # the HTTP boundary: one client's connection must not end the others
            log.warning("http_connection_broken", peer=str(facts.peer), error=repr(error)[:300])
            await trio.aclose_forcefully(self.stream)

    async def protocol_send(self, event: Event) -> None:
        """As the library's, with a deadline: a client that stops reading costs its connection, nothing else."""
        if not isinstance(event, RawData):
            if not (self._is_over and isinstance(event, Updated)):
                await super().protocol_send(event)
            return
        async with self.send_lock:
            with trio.move_on_after(self._timeouts.send_s):
                try:
                    await self.stream.send_all(event.data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                else:
                    return
            await trio.aclose_forcefully(self.stream)  # a send that was cut short leaves a TLS stream unusable
        await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        """As the library's, which never ends a silent HTTP/2 connection whose last stream was reset."""
        while True:
            data = b""
            with trio.move_on_after(self._timeouts.idle_s) as scope:
                try:
                    data = bytes(await self.stream.receive_some(MAX_RECEIVE))
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
            if scope.cancelled_caught and self._is_at_work():
                continue
            if not data:
                break
            await self.protocol.handle(RawData(data))
        # The client is gone; the library would keep the socket until the connection had been idle for long enough.
        self._is_over = True
        await self.protocol.handle(Closed())
        await self.idle_task.stop()

    def _is_at_work(self) -> bool:
        protocol = self.protocol.protocol
        return bool(protocol.streams) if isinstance(protocol, H2Protocol) else protocol.stream is not None

    async def _close(self) -> None:
        with trio.move_on_after(self._timeouts.close_s) as scope:
            await super()._close()
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self.stream)
