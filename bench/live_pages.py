# SPDX-License-Identifier: Apache-2.0
"""Log pages without a browser: a websocket as browsers open it (compressed), and what `static/logs.js` makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from tests.peers.daemon import untrusting_context

SHOWN = 50  # lines of a page
_LINE = re.compile(r'<tr data-line data-id="([0-9a-f]{16})" data-at="(\d+)" data-state="(\w+)"')
Lines = dict[str, tuple[int, str]]  # by message: when it was accepted, its state


def lines_of(html: str) -> Lines:
    """The lines that stand on a page."""
    return {message_id: (int(at), state) for message_id, at, state in _LINE.findall(html)}


class Closed(Exception):
    """The daemon ended the stream."""


class Socket:
    """A websocket to `/live`, after its handshake."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], connection: WSConnection) -> None:
        self._stream = stream
        self._connection = connection
        self._events: list[Any] = []
        self._text = ""
        self.octets = 0

    async def shake_hands(self, request: Request) -> None:
        """Ask for the websocket.  Raises `Closed` when it is refused."""
        await self._stream.send_all(self._connection.send(request))
        while not self._events:
            await self._more()
        accepted = self._events.pop(0)
        if not isinstance(accepted, AcceptConnection):
            raise Closed(accepted)

    async def frame(self) -> dict[str, Any]:
        """The next frame.  Raises `Closed`."""
        while True:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, TextMessage):
                    self._text += event.data
                    if event.message_finished:
                        text, self._text = self._text, ""
                        frame: dict[str, Any] = json.loads(text)
                        return frame
                elif isinstance(event, Ping):
                    await self._stream.send_all(self._connection.send(event.response()))
                elif isinstance(event, CloseConnection):
                    raise Closed(event.code)
            await self._more()

    async def _more(self) -> None:
        octets = bytes(await self._stream.receive_some(65536))
        if not octets:
            raise Closed("without a word")
        self.octets += len(octets)
        self._connection.receive_data(octets)
        self._events += list(self._connection.events())


@asynccontextmanager
async def open_socket(port: int, cookies: str, query: str = "") -> AsyncIterator[Socket]:
    """Connect as a page of ours does."""
    stream = await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", port, ssl_context=untrusting_context(), https_compatible=True
    )
    try:
        host = f"127.0.0.1:{port}"
        connection = WSConnection(ConnectionType.CLIENT)
        headers = [(b"Origin", f"https://{host}".encode()), (b"Cookie", cookies.encode())]
        request = Request(host=host, target=f"/live?{query}", extensions=[PerMessageDeflate()], extra_headers=headers)
        socket = Socket(stream, connection)
        await socket.shake_hands(request)
        yield socket
    finally:
        await trio.aclose_forcefully(stream)


class LogPage:
    """An open page: the lines it shows, kept as the script keeps them."""

    def __init__(self, socket: Socket, load: Any, lines: Lines) -> None:
        self._socket = socket
        self._load = load  # reads `/logs` anew
        self.lines = lines
        self.frames = self.resyncs = 0

    @property
    def octets(self) -> int:
        """That came over the wire for it."""
        return self._socket.octets

    async def run(self) -> None:
        """Take what comes, until cancelled."""
        while True:
            frame = await self._socket.frame()
            if frame.get("hello") or frame.get("beat"):
                continue
            self.frames += 1
            if frame.get("resync"):
                await self._reload()
                continue
            for line in frame["lines"]:
                self.lines[line["id"]] = (line["at"], line["state"])
            for message_id, state, _, _ in frame["changed"]:
                if message_id in self.lines:
                    self.lines[message_id] = (self.lines[message_id][0], state)
            if frame["more"]:
                last = frame["lines"][-1]
                end = (last["at"], last["id"])
                self.lines = {m: line for m, line in self.lines.items() if (line[0], m) >= end}
            self._cut()

    async def _reload(self) -> None:
        self.resyncs += 1
        self.lines.update(lines_of(await self._load()))
        self._cut()

    def _cut(self) -> None:
        self.lines = dict(self.shown())

    def shown(self) -> list[tuple[str, tuple[int, str]]]:
        """The newest lines, newest first."""
        newest = sorted(self.lines.items(), key=lambda item: (item[1][0], item[0]), reverse=True)
        return newest[:SHOWN]
