# SPDX-License-Identifier: Apache-2.0
"""`GET /metrics` on ports of its own: plain HTTP/1.1 for Prometheus, apart from the doors.

It shares no connection limit, no framework and no thread with the mail.  Few connections, small requests, a deadline
for each step: a client that is slow, silent or hostile costs one of the places for a few seconds.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import h11
import structlog
import trio

from hepmaild.listening import open_listener

log = structlog.get_logger()

Render = Callable[[str], Awaitable[tuple[bytes, str]]]

PATH = b"/metrics"
MAX_REQUEST_OCTETS = 8 << 10
RECEIVE_OCTETS = 4 << 10

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a client gets at most.

    connections: of all together.  request_s: from the first octet of a request to its end.  answer_s: to make the page
    and have it taken.  idle_s: between two requests, longer than anybody's interval.  linger_s: for what a client still
    sends when its connection ends.
    """

    connections: int = 8
    request_s: float = 10
    answer_s: float = 30
    idle_s: float = 300
    linger_s: float = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    allow: str = ""


NOT_FOUND = Answer(404, b"There is only /metrics here.\n")
NOT_ALLOWED = Answer(405, b"Use GET.\n", allow="GET, HEAD")
FAILED = Answer(500, b"The figures could not be put together; the log says why.\n")


class MetricsListener:
    """addresses: `host:port` each.  render: the page and its content type for an `Accept` field."""

    def __init__(self, addresses: Sequence[str], render: Render, bounds: Bounds | None = None) -> None:
        self._addresses = addresses
        self._render = render
        self._bounds = bounds or Bounds()
        self._open: dict[_Client, None] = {}  # in the order in which they came

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    @property
    def idle(self) -> int:
        """How many of them wait for a request."""
        return sum(client.is_idle for client in self._open)

    async def run(self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.  Started with the addresses it got; raises OSError when one cannot be had."""
        opened: list[socket.socket] = []
        try:
            for address in self._addresses:
                opened.append(await open_listener(address))  # noqa: PERF401  (what was opened is closed in any case)
            bound = [_bound(each) for each in opened]
            for address in bound:
                log.info("listening", door="metrics", address=address)
            listeners = []
            for each in opened:
                each.setblocking(False)
                listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(each)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self._serve, listeners)
                task_status.started(bound)
        finally:
            for each in opened:
                each.close()

    async def _serve(self, stream: trio.SocketStream) -> None:
        if len(self._open) >= self._bounds.connections and not self._make_room():
            return  # whoever called us closes it
        client = _Client(stream, self._render, self._bounds)
        self._open[client] = None
        try:
            await client.run()
        finally:
            del self._open[client]

    def _make_room(self) -> bool:
        """End the oldest connection that waits for nothing but its next request."""
        idle = next((client for client in self._open if client.is_idle), None)
        if idle is not None:
            idle.end()
        return idle is not None


class _Client:
    """One connection.  is_idle: no request has begun to arrive."""

    def __init__(self, stream: trio.SocketStream, render: Render, bounds: Bounds) -> None:
        self._stream = stream
        self._render = render
        self._bounds = bounds
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_OCTETS)
        self._scope = trio.CancelScope()
        self.is_idle = True

    def end(self) -> None:
        """Close it, to make room."""
        self.is_idle = False
        self._scope.cancel()

    def _allow(self, seconds: float) -> None:
        """The step that begins now may take so long."""
        self._scope.deadline = trio.current_time() + seconds

    async def run(self) -> None:
        """Serve until either side ends it.  Whatever a client provokes ends here."""
        with self._scope:
            try:
                while await self._serve_one():
                    self._protocol.start_next_cycle()
                await self._linger()
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)
            except (*_BROKEN, h11.LocalProtocolError):
                pass

    async def _serve_one(self) -> bool:
        """One request and its answer; whether another may follow."""
        self.is_idle = not self._protocol.trailing_data[0]
        self._allow(self._bounds.idle_s if self.is_idle else self._bounds.request_s)
        request = await self._next_event()
        if not isinstance(request, h11.Request):
            return False  # the client is gone
        self._allow(self._bounds.answer_s)
        await self._send(await self._answer(request), has_body=request.method != b"HEAD")
        self._allow(self._bounds.request_s)
        return await self._skip_body()

    async def _next_event(self) -> object:
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            octets = await self._stream.receive_some(RECEIVE_OCTETS)
            if self.is_idle:
                self.is_idle = False
                self._allow(self._bounds.request_s)
            self._protocol.receive_data(octets)
        return event

    async def _skip_body(self) -> bool:
        """A GET has no body; a client that sends one all the same loses its connection."""
        if self._protocol.our_state is not h11.DONE:
            return False
        return isinstance(await self._next_event(), h11.EndOfMessage) and self._protocol.their_state is h11.DONE

    async def _answer(self, request: h11.Request) -> Answer:
        if request.target.partition(b"?")[0] != PATH:
            return NOT_FOUND
        if request.method not in {b"GET", b"HEAD"}:
            return NOT_ALLOWED
        accept = ",".join(value.decode("latin-1") for name, value in request.headers if name == b"accept")
        try:
            return Answer(200, *await self._render(accept))
        except Exception:  # a boundary: figures that cannot be shown must not end the mail
            log.exception("metrics_failed")
            return FAILED

    async def _send(self, answer: Answer, *, has_body: bool = True) -> None:
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
        ]
        if answer.allow:
            headers.append(("Allow", answer.allow))
        events: list[h11.Event] = [h11.Response(status_code=answer.status, headers=headers)]
        if has_body:
            events.append(h11.Data(data=answer.body))
        events.append(h11.EndOfMessage())
        await self._stream.send_all(b"".join([self._protocol.send(event) or b"" for event in events]))

    async def _refuse(self, status: int) -> None:
        """What came was no HTTP; say so, if that can still be said."""
        if self._protocol.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        self._allow(self._bounds.linger_s)
        try:
            await self._send(Answer(status, b"This is no request.\n"))
            await self._linger()
        except (*_BROKEN, h11.LocalProtocolError):
            pass

    async def _linger(self) -> None:
        """End our side and read on for a moment: closing with octets unread would reset the answer away."""
        self._allow(self._bounds.linger_s)
        await self._stream.send_eof()
        while await self._stream.receive_some(RECEIVE_OCTETS):
            pass


def _bound(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
