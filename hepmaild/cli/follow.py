# SPDX-License-Identifier: Apache-2.0
"""`log tail --follow`: the live stream of the daemon on this machine, over its restarts.

It shows a pass that this command made in the database, and trusts exactly the certificate that the daemon presents.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from typing import Any

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

    tell: what to do with a line about the stream itself; None: to standard error.  is_connected: just now.
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
        self._seq = 0
        self._last = Place(0, "0" * 16)

    async def run(self, limit: int) -> None:
        """Show the newest, then what happens, until cancelled."""
        self._seq, found = await self._store.read(_begin, self._account_id, limit)
        for line in found[::-1]:
            self._take(line)
        pause_s, told = FIRST_PAUSE_S, False
        while True:
            try:
                await self._follow()
                pause_s, told = FIRST_PAUSE_S, False
            except (OSError, HandshakeError, ConnectionClosed, StoreUnavailable, trio.TooSlowError) as error:
                if not told:
                    told = True
                    self._tell(f"waiting for the daemon at {self._host}:{self._port} ({_reason(error)})")
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
            self.is_connected = False
            await trio.sleep(pause_s)

    async def _follow(self) -> None:
        """One connection.  Returns when the daemon ends it."""
        shown = await make_pass(self._store, self._account_id, backend.now_us)
        context = ssl.create_default_context(cafile=str(self._certificate))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False  # it is this certificate, whatever it is for
        headers = [(b"Authorization", f"Bearer {shown}".encode("ascii"))]
        with trio.fail_after(CONNECT_S) as connecting:
            async with open_websocket(
                self._host,
                self._port,
                f"/live?format=json&since={self._seq}",
                use_ssl=context,
                extra_headers=headers,
                max_message_size=MAX_FRAME_OCTETS,
            ) as socket:
                connecting.deadline = float("inf")
                while True:
                    with trio.fail_after(SILENCE_S):
                        frame = json.loads(await socket.get_message())
                    await self._hear(frame)

    async def _hear(self, frame: dict[str, Any]) -> None:
        self.is_connected = True
        if frame.get("resync"):
            self._tell("some changes were missed; what was accepted meanwhile follows")
            found = await self._store.read(rows.find, self._account_id, Search(), after=self._last, limit=CATCH_UP)
            for line in found.lines[::-1]:
                self._take(line)
        for line in frame.get("messages", ()):
            self._take(line)
        if "hello" not in frame:
            self._seq = max(self._seq, int(frame.get("seq", 0)))

    def _take(self, line: dict[str, Any]) -> None:
        self._last = max(self._last, Place(line["at"], line["message_id"]))
        self._show(line)


def _begin(conn: Any, account_id: str | None, limit: int) -> tuple[int, list[dict[str, Any]]]:
    return live_rows.newest(conn), rows.find(conn, account_id, Search(), limit=limit).lines


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
