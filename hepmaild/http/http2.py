# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 by hypercorn 0.18 and h2, with work-arounds, each with its test in `tests/http/test_http2.py`.

- Priorities: one frame of 14 octets made the library sort up to a thousand streams.  Nobody has to obey them (RFC 9113
  §5.3.2): streams take turns.
- An answer was collected as fast as it was made once the client's window was used up: whoever sends waits for room.
- More streams than we allow ended the connection, with all that was on it.  A client may open a hundred before it has
  read our settings: those too many are refused, and it sends them again (§5.1.2, §8.7).
- A target that is no ASCII, or none at all, crashed the library, and with it the connection; an answer that was broken
  off did so, too.  Each costs its own stream.
- A client that says that it opens no more streams (GOAWAY) still waits for its answers (§6.8).  When we stop, an idle
  client is told so, and one that begins a request meanwhile is told that it may send it elsewhere.
- A client could have its answers' fields remembered without bound, all of which were looked through for each field.
- Who waits to be asked for a body (`Expect: 100-continue`) was never asked: Java's client waits until its time is up.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import h2.events
import h2.exceptions
import h2.settings
import hpack
import trio
from h2.errors import ErrorCodes
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BufferCompleteError, H2Protocol, StreamBuffer
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.worker_context import EventWrapper
from hyperframe.frame import GoAwayFrame
from priority.priority import DeadlockError, MissingStreamError

EARLY_STREAMS = 256  # above these the connection ends: who opens so many has had time to read how many we allow
MAX_TABLE_OCTETS = 4096  # of fields of answers that both sides remember; HTTP/2's own default
SLICE_OCTETS = 8 << 10  # so much is worked on before others have their turn


class _Gone:
    """Stands for a stream that is over, while the client still sends on it."""

    idle = True

    async def handle(self, event: object) -> None:
        """Drop it."""


class _Streams(dict[int, Any]):
    def __missing__(self, stream_id: int) -> _Gone:
        return _Gone()


class _Buffer(StreamBuffer):
    """What of an answer has not left yet.  Whoever adds to it waits while it is full."""

    async def push(self, data: bytes) -> None:
        """Raises BufferCompleteError."""
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        while len(self.buffer) >= BUFFER_HIGH_WATER and not self._complete:
            if self._paused.is_set():
                await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        """The next octets, at most so many."""
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_HIGH_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data

    async def finish(self) -> None:
        """Nothing is added any more; what is here still leaves."""
        self.set_complete()
        await self._paused.set()


class _Buffers(dict[int, _Buffer]):
    """The library puts its own kind in."""

    def __setitem__(self, stream_id: int, _: StreamBuffer) -> None:
        super().__setitem__(stream_id, _Buffer(EventWrapper))


class _Turns:
    """Which stream sends next, instead of the library's tree of priorities."""

    def __init__(self) -> None:
        self._waits: dict[int, bool] = {}  # whether each stream waits for octets or for the client

    def insert_stream(self, stream_id: int) -> None:
        """A new one, behind all others."""
        self._waits[stream_id] = False

    def remove_stream(self, stream_id: int) -> None:
        """It is over."""
        self._waits.pop(stream_id, None)

    def block(self, stream_id: int) -> None:
        """It has nothing to send, or must not."""
        if stream_id in self._waits:
            self._waits[stream_id] = True

    def unblock(self, stream_id: int) -> None:
        """It may have.  Raises MissingStreamError."""
        if stream_id not in self._waits:
            raise MissingStreamError(stream_id)
        self._waits[stream_id] = False

    def __next__(self) -> int:
        """The stream whose turn it is.  Raises DeadlockError when all wait."""
        for stream_id, waits in self._waits.items():
            if not waits:
                del self._waits[stream_id]
                self._waits[stream_id] = False
                return stream_id
        raise DeadlockError


class _Settings(h2.settings.Settings):
    """Ours: the client is told one number of streams, and held to another."""

    @property
    def max_concurrent_streams(self) -> int:
        """Above it h2 ends the connection."""
        return EARLY_STREAMS

    @max_concurrent_streams.setter
    def max_concurrent_streams(self, value: int) -> None:
        raise NotImplementedError


class _Encoder(hpack.Encoder):
    """Remembers as much as we like, not as much as the client would allow (RFC 7541 §4.2)."""

    @property
    def header_table_size(self) -> int:
        """In octets."""
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        value = min(value, MAX_TABLE_OCTETS)
        if value != self.header_table.maxsize:
            self.header_table.maxsize = value
            self.table_size_changes.append(value)


class Http2(H2Protocol):
    """One connection."""

    def __init__(self, made: H2Protocol, max_request: int) -> None:
        """made: what the library made for this connection, which has done nothing yet.

        max_request: octets of a body that nobody is asked to send more than.
        """
        super().__init__(
            made.app,
            made.config,
            made.context,
            made.task_group,
            made.connection_state,
            made.ssl,
            made.client,
            made.server,
            made.send,
        )
        codes = h2.settings.SettingCodes
        self.connection.local_settings = _Settings(
            client=False,
            initial_values={
                codes.MAX_CONCURRENT_STREAMS: self.config.h2_max_concurrent_streams,
                codes.MAX_HEADER_LIST_SIZE: self.config.h2_max_header_list_size,
                codes.ENABLE_CONNECT_PROTOCOL: 1,
            },
        )
        self.connection.encoder = _Encoder()
        self.connection._frame_dispatch_table[GoAwayFrame] = self._hear_goodbye  # noqa: SLF001
        self.streams = _Streams()
        self.stream_buffers: Any = _Buffers()
        self.priority: Any = _Turns()
        self._max_request = max_request
        self._last_stream_id = 0
        self._is_left = False
        self._has_said = False

    async def initiate(self, headers: Any = None, settings: bytes | None = None) -> None:
        """Say hello, and goodbye if we are stopping."""
        await super().initiate(headers, settings)
        await self.maybe_say_goodbye()

    async def maybe_say_goodbye(self) -> None:
        """Once we are stopping, and all answers have left: the client is told which streams we have seen.

        Not before, since there are clients (h2) that read no answer behind it.
        """
        if self._has_said or not self.context.terminated.is_set() or self.streams or self.stream_buffers:
            return
        self._has_said = True
        goodbye = GoAwayFrame(0, last_stream_id=self._last_stream_id, error_code=ErrorCodes.NO_ERROR)
        # Not by h2, which takes whatever the client has sent meanwhile for an error then.
        await self.send(RawData(data=self.connection.data_to_send() + goodbye.serialize()))

    def _hear_goodbye(self, _: GoAwayFrame) -> tuple[list[Any], list[Any]]:
        # Not by h2, which would not let us answer any more.
        self._is_left = True
        return [], []

    async def handle(self, event: Event) -> None:
        """As the library does, little by little."""
        if not isinstance(event, RawData):
            await super().handle(event)
            return
        for at in range(0, len(event.data), SLICE_OCTETS):
            if at:
                await trio.lowlevel.checkpoint()
            if self.closed:
                return
            await super().handle(RawData(data=event.data[at : at + SLICE_OCTETS]))
        if self._is_left and not self.streams:
            await self.send(Closed())

    async def _handle_events(self, events: Iterable[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.PriorityUpdated):
                continue
            if isinstance(event, h2.events.RequestReceived):
                why = self._why_not(event)
                if why is not None:
                    with suppress(h2.exceptions.ProtocolError):  # the client may have taken it back meanwhile
                        self.connection.reset_stream(event.stream_id, why)
                    continue
                self._last_stream_id = event.stream_id
                if self._is_to_go_on(event):
                    with suppress(h2.exceptions.ProtocolError):
                        self.connection.send_headers(event.stream_id, [(b":status", b"100")])
            await super()._handle_events([event])
        await self._flush()

    def _why_not(self, request: h2.events.RequestReceived) -> ErrorCodes | None:
        """Why a stream cannot be served at all."""
        if self.context.terminated.is_set() or len(self.streams) >= self.config.h2_max_concurrent_streams:
            return ErrorCodes.REFUSED_STREAM  # it was not looked at, and may be sent again
        fields = dict(request.headers)
        method, path = fields.get(b":method", b""), fields.get(b":path", b"")
        return None if method.isascii() and path.isascii() and path else ErrorCodes.PROTOCOL_ERROR

    def _is_to_go_on(self, request: h2.events.RequestReceived) -> bool:
        """Whether the client waits with a body until it is asked for it, or refused (RFC 9110 §10.1.1)."""
        fields = dict(request.headers)
        if request.stream_ended is not None or fields.get(b"expect", b"").lower() != b"100-continue":
            return False
        length = fields.get(b"content-length", b"")
        return not length.isdigit() or int(length[:20]) <= self._max_request

    async def stream_send(self, event: StreamEvent) -> None:
        """As the library does, but the connection ends behind the answer, not ahead of its last octets."""
        if not isinstance(event, StreamClosed):
            await super().stream_send(event)
            return
        await self._close_stream(event.stream_id)
        await self.maybe_say_goodbye()
        await self.send(Updated(idle=self.idle))

    async def _send_data(self, stream_id: int) -> None:
        await super()._send_data(stream_id)
        await self.maybe_say_goodbye()

    async def _close_stream(self, stream_id: int) -> None:
        stream, buffer = self.streams.get(stream_id), self.stream_buffers.get(stream_id)
        with suppress(trio.BrokenResourceError):  # nobody waits to be told
            await super()._close_stream(stream_id)
        if stream is None or buffer is None or buffer.complete:
            return
        if isinstance(stream, WSStream) and not self.closed:
            await buffer.finish()  # its last words still leave, and then the end of the stream
            self.priority.unblock(stream_id)
            await self.has_data.set()
            return
        # The answer was broken off, by the client or by us; the sending task finds that out and tidies up, maybe while
        # the end of the stream is being sent: then it has no turns any more.
        await buffer.close()
        if self.closed:
            return
        self.priority.unblock(stream_id)
        with suppress(h2.exceptions.ProtocolError):
            self.connection.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
        await self.has_data.set()
        await self._flush()
