# SPDX-License-Identifier: Apache-2.0
"""Accounts' own SMTP servers as this process knows them, never older than the question; and their passwords.

Servers are cached behind the same generation as API keys (`directory`), so one that was changed, paused or removed
anywhere is obeyed by the next attempt everywhere.  What is cached holds passwords sealed: they are opened for a login,
and forgotten after it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from hepmaild.config import OwnSmtpSettings, RouteKind, TlsMode
from hepmaild.delivery.client import Credentials
from hepmaild.delivery.route import Away, Route
from hepmaild.directory import Directory
from hepmaild.errors import SecretsUnavailable
from hepmaild.own_routes import route_of, server_of
from hepmaild.sealing import sealing
from hepmaild.storage import queue
from hepmaild.storage import smtp_servers as rows
from hepmaild.storage.smtp_servers import ServerRow
from hepmaild.storage.store import Store
from hepmaild.vault import Place, Vault

MAX_CACHED = 10_000
HURRY_S = 5.0


def place_of(server_id: str) -> Place:
    """What a sealed password is bound to."""
    return Place("smtp_server", "password_sealed", (server_id,))


def route_from(row: ServerRow, settings: OwnSmtpSettings) -> Route:
    """The route that a server is."""
    return Route(
        name=route_of(row.id),
        kind=RouteKind.SMTP,
        host=row.host,
        port=row.port,
        tls=TlsMode(row.tls),
        tls_ca=settings.tls_ca,
        connections=settings.connections,
        username=row.username,
        sealed=row.sealed,
        public_only=not settings.allow_private_addresses,
    )


def open_credentials(vault: Vault, route: Route) -> Credentials | None:
    """How to log in there; None: without.  Raises `SecretsUnavailable`."""
    if route.sealed is None:
        return None
    try:
        password = vault.open(place_of(server_of(route.name)), route.sealed).decode("utf-8")
    except UnicodeDecodeError:
        raise SecretsUnavailable("the password of an SMTP server is damaged: enter it again") from None
    return Credentials(route.username, password)


class OwnServers:
    """Implements `delivery.route.OwnWays`.  settings: as they are now.  files: for the vault.

    exist: whether there is any; `learn` reads it again.
    """

    def __init__(
        self,
        store: Store,
        directory: Directory,
        vault: Vault,
        settings: Callable[[], OwnSmtpSettings],
        files: trio.CapacityLimiter,
    ) -> None:
        self.exist = False
        self._store = store
        self._directory = directory
        self._vault = vault
        self._settings = settings
        self._files = files
        self._seen: int | None = None
        self._rows: OrderedDict[str, ServerRow] = OrderedDict()
        self._accounts: OrderedDict[str, tuple[ServerRow, ...]] = OrderedDict()

    async def learn(self) -> None:
        """Whether there is any server.  Raises `StoreUnavailable`."""
        self.exist = await self._store.read(rows.are_there)

    # For the engine

    def placeholder(self, name: str) -> Route:
        """See `OwnWays`."""
        self.exist = True
        settings = self._settings()
        return Route(name, RouteKind.SMTP, connections=settings.connections, tls_ca=settings.tls_ca)

    async def find(self, name: str) -> Route | Away:
        """See `OwnWays`.  Cancel-safe."""
        await self._directory.validate()
        self._forget_old()
        server_id = server_of(name)
        row = self._rows.get(server_id)
        if row is None:
            generation = self._directory.generation
            row = await self._store.read(rows.sealed_row, server_id)
            if row is not None and generation == self._directory.generation:
                self._forget_old()
                _remember(self._rows, server_id, row)
        if row is None:
            return Away.REMOVED
        return Away.PAUSED if row.is_paused else route_from(row, self._settings())

    def open(self, route: Route) -> Credentials | None:
        """See `OwnWays`."""
        return open_credentials(self._vault, route)

    # For the doors

    async def of_account(self, account_id: str) -> tuple[ServerRow, ...]:
        """The servers of an account, as the last validated generation has them.  Raises `StoreUnavailable`."""
        self._forget_old()
        found = self._accounts.get(account_id)
        if found is None:
            generation = self._directory.generation
            found = tuple(await self._store.read(rows.rows_of, account_id))
            if generation == self._directory.generation:
                self._forget_old()
                self._accounts[account_id] = found
                if len(self._accounts) > MAX_CACHED:
                    self._accounts.popitem(last=False)
        return found

    async def hurry(self, server_id: str, now_us: int) -> None:
        """What waits for its next attempt by a server is due now: it was mended, or is gone.

        Takes `HURRY_S` at most; what is left then comes when it is due.  Raises `StoreUnavailable`.
        """
        after: str | None = ""
        with trio.move_on_after(HURRY_S):
            while after is not None:
                step = await self._store.write(queue.retry_some, queue.Where(route_of(server_id)), now_us, after)
                after = step.after

    @asynccontextmanager
    async def sealing(self) -> AsyncIterator[Callable[[str, str], bytes]]:
        """What seals a password for a server id; no rotation of the vault's keys until the block ends, within which the
        sealed value is to be committed.  Raises `SecretsUnavailable`.
        """
        async with sealing(self._vault, self._store, self._files):
            yield lambda server_id, password: self._vault.seal(place_of(server_id), password.encode("utf-8"))

    def _forget_old(self) -> None:
        generation = self._directory.generation
        if generation != self._seen:
            self._seen = generation
            self._rows.clear()
            self._accounts.clear()


def _remember(cache: OrderedDict[str, ServerRow], key: str, row: ServerRow) -> None:
    cache[key] = row
    if len(cache) > MAX_CACHED:
        cache.popitem(last=False)
