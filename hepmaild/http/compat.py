# SPDX-License-Identifier: Apache-2.0
"""Work-arounds for quart-trio 0.12, each with its test in `tests` (design.md section 10); `connection` has hypercorn's.

- P5: quart-trio cancels its nursery while hypercorn closes or recycles the connection, which then never happens: only
  the sending is shielded, with a deadline.
- Quart collects a body as fast as it comes, whether somebody reads it or not: `Body` makes the connection wait.
- A connection that is closed while the client still sends is reset, and the client never sees the answer: what is left
  of the body is read and dropped first, for a while.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from math import inf
from typing import Any
from urllib.parse import urlsplit

import structlog
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope
from quart.utils import encode_headers
from quart.wrappers import Request as QuartRequest
from quart.wrappers import Response
from quart.wrappers.response import DataBody
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest
from quart_trio.wrappers.request import TrioBody

from hepmaild.errors import StoreUnavailable
from hepmaild.http.call import STATE_KEY, ConnectionFacts
from hepmaild.http.limits import Timeouts
from hepmaild.threads import NoThread

log = structlog.get_logger()

BODY_HIGH_WATER = 256 << 10
LARGE_OCTETS = 64 << 10  # an answer up to here has one deadline, a larger one a deadline for each such piece


class Body(TrioBody):
    """A request body that is collected only as far as somebody reads it."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._room = trio.Event()
        self._is_collected = False
        self._is_dropped = False
        self._dropping = trio.CancelScope()
        self._drop_s = self._dropped_at = 0.0

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
        elif octets:
            self._dropping.deadline = min(trio.current_time() + self._drop_s, self._dropped_at)
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

    async def drop(self, idle_s: float, most_s: float) -> bool:
        """Read what is left and forget it while it comes, with at most `idle_s` between two pieces and `most_s` in all.

        Whether the end was reached.  Once for each body.
        """
        self._is_dropped = True
        self._data.clear()
        self._room.set()
        self._drop_s, self._dropped_at = idle_s, trio.current_time() + most_s
        self._dropping.deadline = trio.current_time() + min(idle_s, most_s)
        with self._dropping:
            await self._complete.wait()
        return self.is_complete


class Stream(Response):
    """An answer of any length, made while it is sent.  pieces: cancelled when the client goes away."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], **options: Any) -> None:
        super().__init__(b"", **options)
        self.headers.pop("Content-Length", None)
        self.pieces = pieces


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
        request = self._create_request_from_scope(send)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.handle_messages, nursery, request, receive)
                await self.handle_request(nursery, request, send)
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
        pieces = response.pieces if isinstance(response, Stream) else _pieces_of(response)
        if pieces is not None:
            if not body.is_complete:
                await body.drop(timeouts.linger_s, timeouts.linger_s)
            await self._send_stream(send, response, pieces, timeouts.send_s)
            nursery.cancel_scope.cancel()
            return
        with trio.move_on_after(timeouts.send_s, shield=True) as sending:
            if not body.is_complete:
                # Who sends a large request at once reads no answer before it has sent it all.  With HTTP/2 it does.
                is_alone = self.scope["http_version"].startswith("1")
                most_s = timeouts.linger_most_s if is_alone else timeouts.linger_s
                await self._send_response(_Lingering(send, body, timeouts, most_s, sending), response)
            elif isinstance(getattr(response, "response", None), DataBody):
                await self._send_whole(send, response)
            else:
                await self._send_response(send, response)
        nursery.cancel_scope.cancel()

    async def _send_stream(
        self, send: ASGISendCallable, response: Any, pieces: AsyncGenerator[bytes, None], send_s: float
    ) -> None:
        """Piece by piece, as fast as the client takes them; one that takes none for `send_s` is left."""
        start: Any = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": encode_headers(response.headers),
        }
        async with aclosing(pieces):
            # With HTTP/2 it goes out at once, in a TLS record that others stand behind: half of it would end them all.
            with trio.move_on_after(send_s, shield=True) as beginning:
                await send(start)
            if beginning.cancelled_caught:
                return
            try:
                async for piece in pieces:
                    more: Any = {"type": "http.response.body", "body": piece, "more_body": True}
                    with trio.move_on_after(send_s) as sending:
                        await send(more)
                    if sending.cancelled_caught:
                        return
            except (StoreUnavailable, NoThread) as error:
                # Its head has left and says that all is well: that its end is missing tells the client otherwise.
                log.warning("http_answer_broken_off", reason=str(error))
                return
        end: Any = {"type": "http.response.body", "body": b"", "more_body": False}
        with trio.move_on_after(send_s, shield=True):
            await send(end)

    async def _send_whole(self, send: ASGISendCallable, response: Any) -> None:
        """An answer whose octets are all there: one piece for TLS and TCP instead of two."""
        start: Any = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": encode_headers(response.headers),
        }
        data: DataBody = response.response
        end: Any = {"type": "http.response.body", "body": data.data[data.begin : data.end], "more_body": False}
        state: Any = self.scope["state"]
        facts: ConnectionFacts = state[STATE_KEY]
        facts.is_corked = self.scope["http_version"].startswith("1")
        try:
            await send(start)
            await send(end)
        finally:
            facts.is_corked = False


def _pieces_of(response: Any) -> AsyncGenerator[bytes, None] | None:
    """A large answer, piece by piece, so that a slow client has time for each; None: it is not large."""
    data = getattr(response, "response", None)
    if not isinstance(data, DataBody) or data.end - data.begin <= LARGE_OCTETS:
        return None

    async def pieces() -> AsyncGenerator[bytes, None]:
        for at in range(data.begin, data.end, LARGE_OCTETS):
            yield data.data[at : min(at + LARGE_OCTETS, data.end)]

    return pieces()


def _origin_form(path: str) -> str:
    """The path of an absolute request target (RFC 9112 §3.2.2), and a harmless one for anything else."""
    try:
        path = urlsplit(path).path
    except ValueError:
        path = ""
    return path if path.startswith("/") else f"/{path}"


class _Lingering:
    """Sends an answer, but its end only when the client has sent all or had its time.

    scope: that of the sending; while nothing is sent it shields nobody, so that who goes, or a stop, ends it.
    """

    def __init__(
        self, send: ASGISendCallable, body: Body, timeouts: Timeouts, most_s: float, scope: trio.CancelScope
    ) -> None:
        self._timeouts = timeouts
        self._most_s = most_s
        self._scope = scope
        self._send = send
        self._body = body

    async def __call__(self, event: ASGISendEvent) -> None:
        message: Any = event
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            if message.get("body"):
                more: Any = {**message, "more_body": True}
                await self._send(more)
                message = {**message, "body": b""}
            self._scope.shield, self._scope.deadline = False, inf
            await self._body.drop(self._timeouts.linger_s, self._most_s)
            self._scope.shield, self._scope.deadline = True, trio.current_time() + self._timeouts.send_s
        await self._send(message)
