# SPDX-License-Identifier: Apache-2.0
"""The ports of the SMTP door: bind or adopt, accept, count, serve, and stop without resetting anybody."""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from hepmaild.config import LimitSettings, SmtpSettings
from hepmaild.intake import Intake
from hepmaild.lifecycle import Lifecycle
from hepmaild.listening import OUT_OF, Shortage, open_listener
from hepmaild.policy import client_of
from hepmaild.smtp import replies
from hepmaild.smtp.replies import Line
from hepmaild.smtp.session import SessionSetup, SmtpSession
from hepmaild.timers import Timers
from hepmaild.tlsstream import TlsStream
from hepmaild.transport import SocketTransport

log = structlog.get_logger()

STARTTLS_DOOR = "smtp-starttls"
IMPLICIT_TLS_DOOR = "smtp-tls"
_USER_TIMEOUT_MS = 60_000  # a peer that takes nothing for so long is gone (design.md P6)
_ACCEPTS_PER_TURN = 64
_REFUSALS_AT_ONCE = 64
_REFUSAL_TIMEOUT_S = 5.0


class ConnectionCounter:
    """How many connections each client address has to one door.  An IPv6 client has its whole /64.

    limit: may be changed at any time; who is counted already stays.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._counts: dict[str, int] = {}

    def enter(self, ip: str) -> bool:
        """Count a connection; False when it is one too many, and then it is not counted."""
        key = client_of(ip)
        count = self._counts.get(key, 0)
        if count >= self.limit:
            return False
        self._counts[key] = count + 1
        return True

    def leave(self, ip: str) -> None:
        """A counted connection ended."""
        key = client_of(ip)
        count = self._counts[key] - 1
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]

    @property
    def total(self) -> int:
        """All connections counted now."""
        return sum(self._counts.values())


def plain_ip(host: str) -> str:
    """A peer's address as shown and counted: IPv4 that came by a dual-stack socket is IPv4."""
    return host.removeprefix("::ffff:") if host.startswith("::ffff:") and "." in host else host


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening port.  door: `smtp-starttls` or `smtp-tls`."""

    door: str
    host: str
    port: int

    @property
    def implicit(self) -> bool:
        """Whether TLS comes first."""
        return self.door == IMPLICIT_TLS_DOOR

    @property
    def address(self) -> str:
        """`127.0.0.1:587` or `[::]:587`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True)
class _Port:
    listening: socket.socket
    bound: Bound


class SmtpDoor:
    """SMTP submission on all its ports.

    ssl_context: called for each handshake.  connections: of this door only.  spool_dir: where content above 1 MB goes.
    sockets: already listening ones to use instead of the addresses in `settings`, each with whether TLS is implicit;
    the door closes them.
    """

    def __init__(
        self,
        settings: SmtpSettings,
        limits: LimitSettings,
        hostname: str,
        intake: Intake,
        lifecycle: Lifecycle,
        ssl_context: Callable[[], ssl.SSLContext],
        *,
        connections: ConnectionCounter | None = None,
        spool_dir: Path | None = None,
        sockets: Sequence[tuple[socket.socket, bool]] | None = None,
    ) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._connections = connections or ConnectionCounter(limits.connections_per_ip)
        self._adopted = sockets
        self._timers = Timers()
        self._setup = SessionSetup(hostname, settings, limits, intake, ssl_context, self._timers, spool_dir)
        self._sessions: set[SmtpSession] = set()
        self._refusals = 0

    @property
    def sessions(self) -> int:
        """Sessions being served now."""
        return len(self._sessions)

    def take_settings(self, settings: SmtpSettings, limits: LimitSettings) -> None:
        """Obey these from now on (SIGHUP): new sessions all of it, open ones the time they may be idle.

        The addresses stay those that `run` bound.
        """
        self._connections.limit = limits.connections_per_ip
        self._setup.settings, self._setup.limits = settings, limits

    async def run(self, *, task_status: trio.TaskStatus[list[Bound]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the drain, then until the last session ended.  Reports the ports it got once they are bound.

        Raises OSError when a port cannot be had.  Cancellation cuts all sessions off.
        """
        ports = await self._open_ports()
        try:
            for port in ports:
                log.info("listening", door=port.bound.door, address=port.bound.address)
            async with trio.open_nursery() as outer:
                outer.start_soon(self._timers.run)
                async with trio.open_nursery() as sessions:
                    await self._serve_until_drain(ports, sessions, task_status)
                outer.cancel_scope.cancel()
        finally:
            for port in ports:
                port.listening.close()

    async def _serve_until_drain(
        self, ports: list[_Port], sessions: trio.Nursery, task_status: trio.TaskStatus[list[Bound]]
    ) -> None:
        async with trio.open_nursery() as accepting:
            for port in ports:
                accepting.start_soon(self._accept, port, sessions)
            task_status.started([port.bound for port in ports])
            await self._lifecycle.draining.wait()
            accepting.cancel_scope.cancel()
        for port in ports:
            self._accept_waiting(port, sessions)  # they are connected already: 421, not a reset
            port.listening.close()
        for session in tuple(self._sessions):
            session.drain()

    # ------------------------------------------------------------------ ports

    async def _open_ports(self) -> list[_Port]:
        ports: list[_Port] = []
        try:
            if self._adopted is not None:
                return [_port(listening, implicit=implicit) for listening, implicit in self._adopted]
            wanted = [(address, False) for address in self._settings.starttls]
            wanted += [(address, True) for address in self._settings.implicit_tls]
            for address, implicit in wanted:
                ports.append(_port(await open_listener(address), implicit=implicit))
        except BaseException:
            for port in ports:
                port.listening.close()
            raise
        return ports

    async def _accept(self, port: _Port, sessions: trio.Nursery) -> None:
        shortage = Shortage()
        while True:
            await trio.lowlevel.wait_readable(port.listening.fileno())
            problem = self._accept_waiting(port, sessions)
            if problem is not None:
                await shortage.wait(port.bound.door, problem)

    def _accept_waiting(self, port: _Port, sessions: trio.Nursery) -> str | None:
        """Take the connections that wait.  Returns what we ran out of, if anything."""
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                connected, address = port.listening.accept()
            except BlockingIOError:
                return None
            except OSError as problem:
                if problem.errno in OUT_OF:
                    return str(problem)
                continue  # that client is gone already
            self._admit(port, connected, plain_ip(address[0]), sessions)
        return None

    # ------------------------------------------------------------------ connections

    def _admit(self, port: _Port, connected: socket.socket, ip: str, sessions: trio.Nursery) -> None:
        """Begin a session, or refuse the connection."""
        stream = SocketTransport(connected, gathers=True)
        if self._lifecycle.is_draining:
            line = replies.SHUTTING_DOWN
        elif not self._connections.enter(ip):
            line = replies.TOO_MANY_CONNECTIONS
        else:
            session = SmtpSession(
                self._setup, stream, peer_ip=ip, session_id=secrets.token_hex(8), implicit=port.bound.implicit
            )
            self._sessions.add(session)
            sessions.start_soon(self._serve, session, ip)
            return
        log.info("connection_refused", door=port.bound.door, peer=ip, reply=line.text)
        if self._refusals >= _REFUSALS_AT_ONCE:
            connected.close()
            return
        self._refusals += 1
        sessions.start_soon(self._refuse, stream, line, port.bound.implicit)

    async def _serve(self, session: SmtpSession, ip: str) -> None:
        try:
            await session.run()
        finally:
            self._sessions.discard(session)
            self._connections.leave(ip)

    async def _refuse(self, transport: SocketTransport, line: Line, implicit: bool) -> None:
        """Say the one line, after the handshake where TLS comes first, and close."""
        stream: trio.abc.HalfCloseableStream = transport
        try:
            with (
                trio.move_on_after(_REFUSAL_TIMEOUT_S),
                contextlib.suppress(trio.BrokenResourceError, ssl.SSLError, OSError),
            ):
                if implicit:
                    tls = TlsStream(transport, self._setup.ssl_context())
                    await tls.do_handshake()
                    stream = tls
                await stream.send_all(line.wire)
                await stream.send_eof()
                while await transport.receive_some():
                    pass
        finally:
            self._refusals -= 1
            await trio.aclose_forcefully(transport)


def _port(listening: socket.socket, *, implicit: bool) -> _Port:
    """Prepare a listening socket; what is set here, accepted sockets inherit."""
    listening.setblocking(False)
    with contextlib.suppress(OSError):  # not TCP: a test's Unix socket
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
    name = listening.getsockname()
    return _Port(listening, Bound(IMPLICIT_TLS_DOOR if implicit else STARTTLS_DOOR, name[0], name[1]))
