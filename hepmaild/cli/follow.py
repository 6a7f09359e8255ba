# SPDX-License-Identifier: Apache-2.0
"""`log tail --follow`: the live stream of the daemon on this machine, over its restarts.

It shows a pass that this command made in the database, and trusts exactly the certificate that the daemon presents.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

import click
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, open_websocket

from hepmaild.cli import backend
from hepmaild.cli.output import CommandFailed
from hepmaild.config import Settings, parse_address
from hepmaild.errors import StoreUnavailable
from hepmaild.live_pass import make_pass
from hepmaild.search_words import Search
from hepmaild.storage import live as live_rows
from hepmaild.storage import search as rows
from hepmaild.storage.search import Place
from hepmaild.storage.store import Store
from hepmaild.tls import ServerTls

Show = Callable[[dict[str, Any]], None]
CONNECT_S = 10.0
SILENCE_S = 60.0  # the daemon says something every 20 seconds
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0
MAX_FRAME_OCTETS = 64 << 20
CATCH_UP = 500


class Follower:
    """Follows one daemon.  show: called with every new message and every change of one, in order.

    tell: what to do with a line about the stream itself; None: to standard error.  is_connected: just now.  seq: the
    number up to which everything was told.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        account_id: str | None,
        show: Show,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._tell = tell or (lambda text: click.echo(text, err=True))
        self.is_connected = False
        self._store = store
        self._account_id = account_id
        self._show = show
        self._host, self._port = _address(settings)
        tls = ServerTls(settings.tls, state_dir=settings.server.state_dir, hostname=settings.server.hostname)
        self._certificate = tls.certificate
        self.seq = 0
        self._last = Place(0, "0" * 16)
        self._known: dict[str, dict[str, Any]] = {}  # what will be told although it was so when we began

    async def run(self, limit: int) -> None:
        """Show the newest, then what happens, until cancelled."""
        await self.begin(limit)
        pause_s, told = FIRST_PAUSE_S, False
        while True:
            try:
                await self._follow()
            except (OSError, HandshakeError, ConnectionClosed, StoreUnavailable, trio.TooSlowError) as error:
                if self.is_connected:  # meanwhile: this is another outage
                    pause_s, told = FIRST_PAUSE_S, False
                if not told:
                    told = True
                    self._tell(f"waiting for the daemon at {self._host}:{self._port} ({_reason(error)})")
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
            self.is_connected = False
            await trio.sleep(pause_s)

    async def begin(self, limit: int) -> None:
        """Show the newest, and keep in mind from where on to be told.  Raises `StoreUnavailable`."""
        begun = await self._store.read(_begin, self._account_id, limit)
        self.seq = begun.seq
        for line in begun.lines[::-1]:
            self._take(line)
        self._known = {line["message_id"]: line for line in begun.known}

    async def _follow(self) -> None:
        """One connection, until it ends: by one of the errors that `run` knows."""
        shown = await make_pass(self._store, self._account_id, backend.now_us)
        context = ssl.create_default_context(cafile=str(self._certificate))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False  # it is this certificate, whatever it is for
        headers = [(b"Authorization", f"Bearer {shown}".encode("ascii"))]
        with trio.fail_after(CONNECT_S) as connecting:
            async with open_websocket(
                self._host,
                self._port,
                f"/live?format=json&since={self.seq}",
                use_ssl=context,
                extra_headers=headers,
                max_message_size=MAX_FRAME_OCTETS,
            ) as socket:
                connecting.deadline = float("inf")
                while True:
                    with trio.fail_after(SILENCE_S):
                        frame = json.loads(await socket.get_message())
                    await self.hear(frame)

    async def hear(self, frame: dict[str, Any]) -> None:
        """Show what a frame of the stream says.  Raises `StoreUnavailable`."""
        self.is_connected = True
        if frame.get("resync"):
            self._tell("some changes were missed; what was accepted meanwhile follows")
            await self._catch_up()
        for line in frame.get("messages", ()):
            if self._known.pop(line["message_id"], None) != line:
                self._take(line)
        if "hello" not in frame:
            self.seq = max(self.seq, int(frame.get("seq", 0)))

    async def _catch_up(self) -> None:
        """Show all that was accepted since the newest that was shown."""
        is_all = False
        while not is_all:
            found = await self._store.read(rows.find, self._account_id, Search(), after=self._last, limit=CATCH_UP)
            for line in found.lines[::-1]:
                self._take(line)
            is_all = found.newer is None

    def _take(self, line: dict[str, Any]) -> None:
        self._last = max(self._last, Place(line["at"], line["message_id"]))
        self._show(line)


class _Begun(NamedTuple):
    """How it was when we began.  seq: from where on to be told; lines: the newest; known: what is told from there on
    although it was so already, since with PostgreSQL a number may be committed after a greater one."""

    seq: int
    lines: list[dict[str, Any]]
    known: list[dict[str, Any]]


def _begin(conn: Any, account_id: str | None, limit: int) -> _Begun:
    seq = live_rows.resume_point(conn)
    told = {message_id for _, _, message_id in live_rows.news(conn, seq).events}
    known = rows.matching(conn, account_id, Search(), told)
    return _Begun(seq, rows.find(conn, account_id, Search(), limit=limit).lines, known)


def _address(settings: Settings) -> tuple[str, int]:
    if not settings.http.listen:
        raise CommandFailed("http.listen names no address: the live stream comes through the HTTPS door")
    host, port = parse_address(settings.http.listen[0])
    return {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host), port  # noqa: S104


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRejected):
        return f"it answered {error.status_code}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def follow(settings: Settings, email: str | None, limit: int, show: Show) -> None:
    """Follow until interrupted.  Raises CommandFailed for an account that is not there."""

    async def run(store: Store) -> None:
        account_id = None if email is None else await store.read(backend.refusing(_account_id), email)
        await Follower(settings, store, account_id, show).run(limit)

    backend.with_store(settings, run)


def _account_id(conn: Any, email: str) -> str:
    from hepmaild.storage import accounts

    return str(accounts.find(conn, email)["id"])
