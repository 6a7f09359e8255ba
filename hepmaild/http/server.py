# SPDX-License-Identifier: Apache-2.0
"""The HTTPS door: sockets, TLS, connections, and an orderly end.

hypercorn's own `serve` takes neither a context that can be reloaded nor a limit of connections, and one broken
connection ends it; so the loop is here, and hypercorn does the protocols (`compat.Connection`).
"""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from hepmaild.config import HttpSettings, LimitSettings, parse_address
from hepmaild.http.app import App, Readiness, Surroundings, build_app
from hepmaild.http.connection import Connection
from hepmaild.http.dashboard.frame import Dashboard
from hepmaild.http.limits import ConnectionCounter, Timeouts, TrustedProxies
from hepmaild.http.oauth import LoginDesk
from hepmaild.http.send import SendDesk
from hepmaild.intake import Intake
from hepmaild.lifecycle import Lifecycle
from hepmaild.listening import OUT_OF, Shortage, host_to_bind
from hepmaild.materials import Materials
from hepmaild.metrics import Meter
from hepmaild.own_servers import OwnServers
from hepmaild.people import People
from hepmaild.tlsstream import TlsStream
from hepmaild.transport import SocketTransport

log = structlog.get_logger()

BACKLOG = 1024
MAX_HEADER_OCTETS = 32 << 10
MAX_STREAMS = 100  # RFC 9113 §6.5.2 wants no fewer; above it Java's client fails the call by itself


@dataclass(frozen=True, slots=True)
class BoundHttp:
    """Where the door listens, as `host:port`, `[host]:port` for IPv6."""

    https: list[str]
    plain: list[str]


class HttpDoor:
    """The HTTPS door.

    ssl_context: called for each connection, so that a renewed one is used; offers h2 and http/1.1 by ALPN.
    readiness: why no new mail can be taken, empty when it can.  spool_dir: for large request bodies; None: the
    system's folder for temporary files.  people: who may log in; None: nobody.
    dashboard: what pages need; None: there are none.  own_servers: SMTP servers of accounts; None: there are none.
    materials: templates and uploads; None: there are none.
    """

    def __init__(
        self,
        settings: HttpSettings,
        limits: LimitSettings,
        intake: Intake,
        lifecycle: Lifecycle,
        ssl_context: Callable[[], ssl.SSLContext],
        *,
        readiness: Readiness,
        spool_dir: Path | None = None,
        timeouts: Timeouts | None = None,
        meter: Meter | None = None,
        people: People | None = None,
        dashboard: Dashboard | None = None,
        own_servers: OwnServers | None = None,
        materials: Materials | None = None,
    ) -> None:
        self._settings = settings
        self._own_servers = own_servers
        self._dashboard = dashboard
        self._people = people
        self._meter = meter or Meter()
        self._lifecycle = lifecycle
        self._ssl_context = ssl_context
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._counter = ConnectionCounter(limits.connections_per_ip)
        self._timeouts = timeouts or Timeouts()
        self._desk = SendDesk(
            intake,
            settings.max_request_bytes,
            limits.recipients_per_message,
            spool_dir,
            materials or Materials(),
            self._timeouts,
        )
        self._readiness = readiness
        self._bound: BoundHttp | None = None

    @property
    def connections(self) -> int:
        """How many connections of clients are open."""
        return self._counter.total

    def take_limits(self, limits: LimitSettings) -> None:
        """Obey other limits from now on (SIGHUP)."""
        self._counter.limit = limits.connections_per_ip
        self._desk.max_recipients = limits.recipients_per_message

    def build(self, https_port: int = 443) -> App:
        """The application as it is served."""
        surroundings = Surroundings(
            self._lifecycle,
            self._proxies,
            self._counter,
            self._settings.public_url.rstrip("/"),
            https_port,
            self._settings.max_request_bytes,
            self._timeouts,
            self._meter,
        )
        login = None
        if self._people is not None:
            login = LoginDesk(self._people, self._desk.files, self._timeouts, self._settings.gravatar)
        return build_app(surroundings, self._desk, self._readiness, login, self._dashboard, self._own_servers)

    async def run(self, *, task_status: trio.TaskStatus[BoundHttp] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `lifecycle.draining`, then let running requests end, for at most `Timeouts.grace_s`.

        Started with the bound addresses once connections can come.  Raises OSError when an address cannot be bound.
        May be called again after a crash: it binds the same ports.
        """
        config = _library_config(self._timeouts)
        with _Sockets(self._timeouts.send_s) as sockets:
            secure = sockets.open(self._bound.https if self._bound else self._settings.listen)
            plain = sockets.open(self._bound.plain if self._bound else self._settings.plain_listen)
            https_port = secure[0].getsockname()[1] if secure else 443
            built = self.build(https_port)
            app: Any = wrap_app(built, config.wsgi_max_body_size, "asgi")
            lifespan = Lifespan(app, config, {})
            async with trio.open_nursery() as lifespan_nursery:
                await lifespan_nursery.start(lifespan.handle_lifespan)
                await lifespan.wait_for_startup()
                await self._serve(built, app, config, secure, plain, task_status)
                await lifespan.wait_for_shutdown()
                lifespan_nursery.cancel_scope.cancel()

    async def _serve(
        self,
        built: App,
        app: Any,
        config: Config,
        secure: list[socket.socket],
        plain: list[socket.socket],
        task_status: trio.TaskStatus[BoundHttp],
    ) -> None:
        context = WorkerContext(None)
        peers: set[Connection] = set()
        handler: Any = partial(
            Connection,
            app,
            config,
            context,
            counter=self._counter,
            proxies=self._proxies,
            timeouts=self._timeouts,
            peers=peers,
            quickly=partial(built.handle_quickly, desk=self._desk),
            max_request=self._settings.max_request_bytes,
        )
        listeners = [_Listener(each, "https", self._wrap) for each in secure]
        listeners += [_Listener(each, "http", _plain) for each in plain]
        async with trio.open_nursery() as connections:
            try:
                async with trio.open_nursery() as accepting:
                    if listeners:  # a service may have its SMTP door only
                        serve = partial(trio.serve_listeners, handler, listeners, handler_nursery=connections)
                        accepting.start_soon(serve)
                    self._bound = BoundHttp([_address(each) for each in secure], [_address(each) for each in plain])
                    for door, addresses in (("https", self._bound.https), ("http", self._bound.plain)):
                        for address in addresses:
                            log.info("listening", door=door, address=address)
                    task_status.started(self._bound)
                    await self._lifecycle.draining.wait()
                    for listener in listeners:
                        for stream in listener.take_waiting():  # to the client it is connected: no reset
                            connections.start_soon(_serve_last, handler, stream)
                    accepting.cancel_scope.cancel()
            finally:
                await context.terminated.set()
                for connection in peers:
                    connection.end_soon()
                connections.cancel_scope.deadline = trio.current_time() + self._timeouts.grace_s

    def _wrap(self, connected: socket.socket) -> _TlsStream:
        return _TlsStream(SocketTransport(connected), self._ssl_context())


class _Sockets:
    """Listening sockets, closed at the end whatever happens before somebody else owns them."""

    def __init__(self, send_timeout_s: float) -> None:
        self._send_timeout_ms = int(send_timeout_s * 1000)
        self._opened: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._opened:
            each.close()

    def open(self, addresses: Iterable[str]) -> list[socket.socket]:
        """Bind and listen.  Raises OSError that names the address."""
        opened = []
        for address in addresses:
            name, port = parse_address(address)
            host = host_to_bind(name)
            try:
                each = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
                self._opened.append(each)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # A client that no longer reads must not keep us from stopping (P6).
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._send_timeout_ms)
                if each.family == socket.AF_INET6:
                    each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                each.setblocking(False)
                each.bind((host, port))
                each.listen(BACKLOG)
            except OSError as error:
                raise OSError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from error
            opened.append(each)
        return opened


class _TlsStream(TlsStream):
    """With what hypercorn asks of `trio.SSLStream`.  handshake: its bounds."""

    transport: SocketTransport

    def __init__(self, transport: SocketTransport, context: ssl.SSLContext) -> None:
        super().__init__(transport, context)
        self.handshake = trio.CancelScope()

    async def do_handshake(self) -> None:
        """Shake hands within `handshake`.  Raises BrokenResourceError."""
        with self.handshake:
            await super().do_handshake()
        if self.handshake.cancelled_caught:
            raise trio.BrokenResourceError("there was no time left for the TLS handshake")

    @property
    def transport_stream(self) -> SocketTransport:
        """What TLS runs over."""
        return self.transport


def _plain(connected: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(connected))


async def _serve_last(handler: Callable[[trio.abc.Stream], Awaitable[None]], stream: trio.abc.Stream) -> None:
    """As `trio.serve_listeners` does."""
    try:
        await handler(stream)
    finally:
        await trio.aclose_forcefully(stream)


class _Listener(trio.abc.Listener[trio.abc.Stream]):
    """Owns a listening socket.  wrap: makes a stream of a connection, which does its TLS handshake itself."""

    def __init__(self, listening: socket.socket, door: str, wrap: Callable[[socket.socket], trio.abc.Stream]) -> None:
        self._listening = listening
        self._door = door
        self._wrap = wrap
        self._shortage = Shortage()

    async def accept(self) -> trio.abc.Stream:
        """The next connection, as soon as there is room for one."""
        while True:
            await trio.lowlevel.wait_readable(self._listening.fileno())
            try:
                connected, _ = self._listening.accept()
            except BlockingIOError:
                continue
            except OSError as problem:
                if problem.errno in OUT_OF:
                    await self._shortage.wait(self._door, str(problem))
                continue
            return self._wrap(connected)

    def take_waiting(self) -> Iterator[trio.abc.Stream]:
        """The connections that wait to be accepted, as far as there is room."""
        for _ in range(BACKLOG):
            try:
                connected, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as problem:
                if problem.errno in OUT_OF:
                    return
                continue  # that client is gone already
            yield self._wrap(connected)

    async def aclose(self) -> None:
        """Close the socket."""
        trio.lowlevel.notify_closing(self._listening.fileno())
        self._listening.close()
        await trio.lowlevel.checkpoint()


def _address(each: socket.socket) -> str:
    host, port = each.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Silent:
    """hypercorn's log: its one interesting line is that the application raised, which ours never does."""

    def __init__(self, _config: Config) -> None:
        pass

    async def exception(self, message: str, *_: Any, **__: Any) -> None:
        """An error that our boundary did not catch."""
        log.warning("http_library_error", text=message, exc_info=sys.exception())

    async def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    access = atoms = critical = error = warning = info = debug = log = _nothing


def _library_config(timeouts: Timeouts) -> Config:
    config = Config()
    config.logger_class = _Silent  # type: ignore[assignment]
    config.errorlog = None
    config.include_server_header = False
    config.keep_alive_max_requests = 1_000_000
    config.ssl_handshake_timeout = timeouts.handshake_s
    config.h11_max_incomplete_size = MAX_HEADER_OCTETS
    config.h2_max_header_list_size = MAX_HEADER_OCTETS
    config.h2_max_concurrent_streams = MAX_STREAMS
    config.max_app_queue_size = 2
    config.websocket_max_message_size = 4 << 10  # pages only listen
    return config
