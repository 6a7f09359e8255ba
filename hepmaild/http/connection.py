# SPDX-License-Identifier: Apache-2.0
"""One connection: hypercorn 0.18's, with work-arounds, each with its test in `tests` (design.md section 10).

- P6: hypercorn sends without any deadline, and even cancelling does not end it: every send has one.
- P9: an error while a connection is served ends the whole server.
- A client that closed an idle connection keeps its socket here until the idle time-out; an HTTP/2 connection whose last
  stream was reset, and one that came by `Upgrade: h2c`, are never ended at all; and each request starts a task, in a
  nursery of its own, to watch for idleness.  So the reading loop here keeps the time itself.
- An answer in two TLS records and two segments costs more than the rest of sending it: small ones go out whole.
- A websocket that is refused by the library itself is never ended; octets ahead of its handshake leave its server alone
  for ever; a message that is too long is kept, with all that comes behind it.
- What it makes of a connection refers to itself in circles: with it the memory of TLS and of the compressor, a fifth of
  a megabyte for a live page, would stay until the collector looks through all there is, which it hardly ever does.

A plain send request is read and answered here (`quick`), while the library's machine stays where it is, between two
requests.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Any

import h11
import structlog
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Body, Data, StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.tcp_server import TCPServer
from quart.wrappers import Response

from hepmaild.http.call import STATE_KEY, ConnectionFacts
from hepmaild.http.errors import malformed_body
from hepmaild.http.http2 import Http2
from hepmaild.http.limits import ConnectionCounter, Timeouts, TrustedProxies, client_of, parse_ip
from hepmaild.http.quick import REQUEST_LINE, QuickRequest, Unready, read_quickly, write_answer
from hepmaild.tlsstream import TlsStream

log = structlog.get_logger()

REFUSED_CONNECTIONS = 20  # so many above the limit are told; more are closed without a word
MAX_RECEIVE = 64 << 10
LAST_WORDS_S = 0.5  # for a request that was under way when we began to stop
LAST_HANDSHAKE_S = 3.0  # for TLS to be there, then
REST_S = 1.0  # for the rest of a small request's body; then the library waits for it

AnswerQuickly = Callable[[QuickRequest], Awaitable[Response]]


class _Machine(h11.Connection):
    """h11's, which takes an empty line between two requests, and whatever stands behind the last one, for an error.

    Old clients send one behind every body (RFC 9112 §2.2), and what comes behind `Connection: close` is no request
    (§9.6).  They were told so instead of what had become of their mail.
    """

    def next_event(self) -> Any:
        """As h11's."""
        buffer = self._receive_buffer
        if self.their_state is h11.IDLE:
            octets = bytes(buffer)
            buffer.maybe_extract_at_most(len(octets) - len(octets.lstrip(b"\r\n")))
        elif self.their_state in {h11.MUST_CLOSE, h11.CLOSED}:
            buffer.maybe_extract_at_most(len(buffer))
        return super().next_event()


async def _offer_no_upgrade(_request: object) -> None:
    """HTTP/2 is chosen by ALPN only."""


def _drop_compressor(stream: WSStream) -> None:
    """Of a websocket that has ended: only words of control may still be said, which are not compressed."""
    machine: Any = getattr(stream, "connection", None)
    if machine is not None:
        for extension in machine._proto.extensions:  # noqa: SLF001
            extension._compressor = None  # noqa: SLF001


class _NoTask:
    """Instead of the library's idle task."""

    async def restart(self, task_group: object, action: Callable[[], object]) -> None:
        """Nothing: `Connection._read_data` keeps the time."""

    async def stop(self) -> None:
        """Nothing."""


class Connection(TCPServer):
    """One connection: counted, contained, and never stuck.  quickly: answers a plain send request.

    max_request: octets of a body that nobody is asked to send more than.
    """

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
        peers: set[Connection],
        quickly: AnswerQuickly,
        max_request: int,
    ) -> None:
        super().__init__(app, config, context, {}, stream)
        self.idle_task: Any = _NoTask()
        self._counter = counter
        self._proxies = proxies
        self._timeouts = timeouts
        self._peers = peers
        self._quickly = quickly
        self._max_request = max_request
        self._reader = trio.CancelScope()
        self._held: list[bytes] = []
        self._is_reading = False  # from the end of the hello to that of the connection
        self._is_tls = isinstance(stream, TlsStream)
        self._facts: ConnectionFacts

    @property
    def protocol(self) -> ProtocolWrapper:
        """The library's protocol, once the handshake is over."""
        return self._protocol

    @protocol.setter
    def protocol(self, wrapper: ProtocolWrapper) -> None:
        protocol: Any = wrapper.protocol
        if isinstance(protocol, H2Protocol):
            wrapper.protocol = protocol = Http2(protocol, self._max_request)
        else:
            protocol.connection = _Machine(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)
            protocol._check_protocol = _offer_no_upgrade  # noqa: SLF001
            protocol._send_error_response = partial(self._refuse_malformed, protocol)  # noqa: SLF001
            send = protocol._send_h11_event  # noqa: SLF001
            protocol._send_h11_event = partial(self._send_h11, protocol, send)  # noqa: SLF001
        create = protocol._create_stream  # noqa: SLF001
        protocol._create_stream = partial(self._create_stream, protocol, create)  # noqa: SLF001
        self._protocol = wrapper

    async def run(self) -> None:
        """Serve until either side ends it.  Whatever a client provokes ends here."""
        stream: Any = self.stream
        socket = getattr(stream, "transport_stream", stream).socket
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
        self._facts = facts
        self.state = {STATE_KEY: facts}
        self._peers.add(self)
        if self.context.terminated.is_set():  # it was accepted, but not begun
            self.end_soon()
        try:
            await super().run()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):  # the other side is gone
            await trio.aclose_forcefully(self.stream)
        except* Exception as error:  # noqa: BLE001  # the HTTP boundary: one client must not end the others
            log.warning("http_connection_broken", peer=str(facts.peer), error=repr(error)[:300])
            await trio.aclose_forcefully(self.stream)
        finally:
            self._peers.discard(self)
            self._let_go()

    def _let_go(self) -> None:
        """It is over, and every task with it: open the circles."""
        wrapper: ProtocolWrapper | None = vars(self).pop("_protocol", None)
        if wrapper is not None:
            vars(wrapper.protocol).clear()
        self._facts.stream = self.stream = None  # type: ignore[assignment]

    def end_soon(self) -> None:
        """We are stopping: an idle connection ends now, any other behind its answer; who shakes hands has a moment."""
        handshake = getattr(self.stream, "handshake", None)
        if handshake is not None:  # or it is over, and this changes nothing
            handshake.deadline = trio.current_time() + LAST_HANDSHAKE_S
        if self._reader.deadline < inf:
            self._be_idle()
        if self._is_reading and isinstance(self.protocol.protocol, Http2):
            # Among the connection's own tasks: it may end at any moment, and what fails there costs nobody else.
            self._task_group.spawn(self.protocol.protocol.maybe_say_goodbye)

    def _be_idle(self) -> None:
        left_s = LAST_WORDS_S if self.context.terminated.is_set() else self._timeouts.idle_s
        self._reader.deadline = trio.current_time() + left_s

    async def protocol_send(self, event: Event) -> None:
        """As the library's, with a deadline: a client that stops reading costs its connection, nothing else."""
        if isinstance(event, RawData):
            if event.data:
                self._held.append(event.data)
            if not self._facts.is_corked:
                await self._flush()
            return
        await self._flush()
        if isinstance(event, Updated):
            if event.idle:
                self._be_idle()
            else:
                self._reader.deadline = inf
        else:
            await super().protocol_send(event)

    async def _flush(self) -> None:
        if not self._held:
            return
        async with self.send_lock:
            octets = b"".join(self._held)
            self._held.clear()
            with trio.move_on_after(self._timeouts.send_s):
                try:
                    if octets:
                        await self.stream.send_all(octets)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                else:
                    return
            await trio.aclose_forcefully(self.stream)  # a send that was cut short leaves a TLS stream unusable
        self._reader.cancel()  # it may wait for the end of an answer that is not sent any more, with a request in hand
        await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        self._is_reading = True
        try:
            await self._read_until_the_end()
        finally:
            self._is_reading = False

    async def _read_until_the_end(self) -> None:
        self._be_idle()
        with self._reader:
            while True:
                try:
                    data: bytes | None = bytes(await self.stream.receive_some(MAX_RECEIVE))
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
                if not data:
                    break
                if data.startswith(REQUEST_LINE) and self._is_between_requests():
                    data = await self._serve_quickly(data)
                    if data is None:
                        break
                    if not data:
                        continue
                await self.protocol.handle(RawData(data))
                if self._reader.deadline == inf and not self._is_at_work():
                    self._be_idle()
        await self.protocol.handle(Closed())

    def _is_between_requests(self) -> bool:
        """Whether the library's machine waits for a request on HTTP/1.1 over TLS, and we are not stopping."""
        protocol: Any = self.protocol.protocol
        if isinstance(protocol, H2Protocol) or self.context.terminated.is_set() or not self._is_tls:
            return False
        machine: h11.Connection = protocol.connection
        return (
            protocol.stream is None
            and machine.our_state is h11.IDLE
            and machine.their_state is h11.IDLE
            and not machine.trailing_data[0]
        )

    async def _serve_quickly(self, data: bytes) -> bytes | None:
        """Answer a plain send request.  What the library has to read instead; None: the connection ends here."""
        self._reader.deadline = inf
        found = read_quickly(data, self.state)
        if found is Unready.MORE:
            with trio.move_on_after(REST_S):
                while found is Unready.MORE:
                    more = await self.stream.receive_some(MAX_RECEIVE)
                    if not more:
                        break
                    data += more
                    found = read_quickly(data, self.state)
        if isinstance(found, Unready):
            return data
        response: Any = await self._quickly(found)
        body = response.response
        await self.protocol_send(
            RawData(
                write_answer(
                    response.status_code,
                    response.headers.items(),
                    body.data[body.begin : body.end],
                    self.config.response_headers("h11"),
                )
            )
        )
        self._be_idle()
        return None if "Connection" in response.headers else b""

    async def _refuse_malformed(self, protocol: Any, status: int) -> None:
        """Answer what h11 cannot read, which the application never sees, as any other refusal of the API.

        protocol: hypercorn's, whose answer to that has no body.  status: as h11 has it.  The connection ends behind it.
        """
        request_id = os.urandom(8).hex()
        note = log.info if protocol.stream is None else log.debug  # the application has a line of its own
        note("http_request_malformed", request_id=request_id, peer=str(self._facts.peer), status=status)
        body = malformed_body(status, "" if protocol.stream is None else protocol.stream.scope["path"])
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        self._facts.is_corked = True
        try:
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                await protocol._send_h11_event(event)  # noqa: SLF001
        finally:
            self._facts.is_corked = False

    async def _send_h11(self, protocol: Any, send: Callable[[Any], Awaitable[None]], event: Any) -> None:
        """As the library does, but who waits to send a body that is refused unread is not told to go on (RFC 9110
        §10.1.1): the refusal comes at once, instead."""
        is_go_on = isinstance(event, h11.InformationalResponse) and event.status_code == 100
        if is_go_on and protocol.stream is not None:
            lengths = (value for name, value in protocol.stream.scope["headers"] if name == b"content-length")
            if int(next(lengths, b"0")) > self._max_request:
                return
        await send(event)

    async def _create_stream(self, protocol: Any, create: Callable[[Any], Awaitable[None]], request: Any) -> None:
        """As the library does, but a websocket comes to its end whatever the client does."""
        await create(request)
        stream = protocol.streams.get(request.stream_id) if isinstance(protocol, H2Protocol) else protocol.stream
        if not isinstance(stream, WSStream):
            return
        if stream.closed:  # no handshake that could be accepted: the client was told, and nobody else knows of it
            await protocol.stream_send(StreamClosed(stream_id=stream.stream_id))
        else:
            stream.handle = partial(self._hear, stream, stream.handle)  # type: ignore[method-assign]

    async def _hear(self, stream: WSStream, handle: Callable[[Any], Awaitable[None]], event: Any) -> None:
        """As the library does, and no further.  Raises BrokenResourceError, which ends the connection."""
        is_early = isinstance(event, Body | Data) and not stream.handshake.accepted
        if is_early:
            raise trio.BrokenResourceError("octets came before the websocket was accepted")
        try:
            await handle(event)
        finally:
            if stream.closed:
                vars(stream).pop("handle", None)  # the library's own drops whatever still comes
                _drop_compressor(stream)
        if stream.buffer.length > stream.buffer.max_length:  # and it was told so
            raise trio.BrokenResourceError("a message was too long")

    def _is_at_work(self) -> bool:
        protocol = self.protocol.protocol
        return bool(protocol.streams) if isinstance(protocol, H2Protocol) else protocol.stream is not None

    async def _close(self) -> None:
        with trio.move_on_after(self._timeouts.close_s) as scope:
            await super()._close()
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self.stream)
