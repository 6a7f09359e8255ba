# SPDX-License-Identifier: Apache-2.0
"""Connections to next hops: opening, talking, keeping, closing (Trio).

A `Connection` drives one `ClientMachine`: it sends what the machine says and feeds it what arrives.  How long anything
may take is the business of the cancel scope it is given: `Patience` moves that scope's deadline from step to step, so
that one scope serves a whole attempt.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from hepmaild.config import TlsMode
from hepmaild.delivery.client import Action, ClientMachine, Do, Failed, Send, Stage
from hepmaild.delivery.route import TIMEOUTS_S, Route
from hepmaild.events import Transcript, Who

if TYPE_CHECKING:
    from trio.abc import Stream

Connect = Callable[[str, int], Awaitable["Stream"]]

RECEIVE_OCTETS = 8192
LAST_WORDS_S = 5
TRUST_FOR_S = 1  # a connection used this recently is not asked whether it still lives


async def connect_tcp(host: str, port: int) -> Stream:
    """Connect, trying all addresses of the name quickly (RFC 8305).  Raises OSError; cancel-safe."""
    return await trio.open_tcp_stream(host, port)


def make_tls_context(route: Route) -> ssl.SSLContext:
    """TLS 1.2 or later towards a next hop; verified but for `opportunistic`.  Raises OSError on a bad `tls_ca`."""
    context = ssl.create_default_context(cafile=route.tls_ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if route.tls is TlsMode.OPPORTUNISTIC:
        # RFC 7435: protection from those who only listen; better than plaintext, which would be the alternative.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Patience:
    """The deadlines of one attempt, on one cancel scope.  latest: no step may last beyond it (Trio's clock)."""

    __slots__ = ("latest", "scope")

    def __init__(self, scope: trio.CancelScope, latest: float) -> None:
        self.scope = scope
        self.latest = latest

    def allow(self, seconds: float) -> None:
        """The step that begins now may take so long."""
        self.scope.deadline = min(trio.current_time() + seconds, self.latest)


class Connection:
    """One connection to a next hop.

    label: `name[address]:port`, "" until connected.  stage: where it is.  sent: transactions so far.
    """

    def __init__(self, route: Route, hello: str, connect: Connect, tls: TlsMode, transcript: Transcript) -> None:
        self.route = route
        self.label = ""
        self.tls_version = ""
        self.tls_cipher = ""
        self.sent = 0
        self.idle_since = 0.0
        self.machine = ClientMachine(
            hello,
            tls=tls,
            credentials=route.credentials,
            transcript=transcript,
            tls_is_on=False,
        )
        self._tls = tls
        self._connect = connect
        self._stream: Stream | None = None
        self._socket: trio.socket.SocketType | None = None
        self._handshaking = False

    @property
    def stage(self) -> Stage:
        """What is being done or waited for."""
        if self._stream is None:
            return Stage.CONNECT
        return Stage.TLS if self._handshaking else self.machine.stage

    async def open(
        self, context: ssl.SSLContext | None, patience: Patience, now_us: Callable[[], int]
    ) -> Failed | None:
        """Connect and go through the session's opening; None when a transaction may begin.

        When cancelled (or `patience` ends) the connection must be closed with `discard`.
        """
        transcript = self.machine.transcript
        patience.allow(TIMEOUTS_S[Stage.CONNECT])
        try:
            self._stream = stream = await self._connect(self.route.host, self.route.port)
        except OSError as error:
            return Failed(Stage.CONNECT, None, f"{self.route.address}: {_reason(error)}")
        if isinstance(stream, trio.SocketStream):
            self._socket = stream.socket
        self.label = _label(self.route, self._socket)
        transcript.add(now_us(), Who.NOTE, f"connected to {self.label}")
        if self._tls is TlsMode.IMPLICIT:
            failure = await self._start_tls(context, patience)
            if failure is not None:
                return failure
            self.machine.tls_is_on = True
            transcript.add(now_us(), Who.NOTE, f"{self.tls_version} {self.tls_cipher}")
        patience.allow(TIMEOUTS_S[Stage.GREETING])
        action = await self.pump(None, patience, now_us)
        while action is Do.START_TLS:
            failure = await self._start_tls(context, patience)
            if failure is not None:
                return failure
            action = await self.pump(
                self.machine.tls_established(self.tls_version, self.tls_cipher, now_us()), patience, now_us
            )
        if isinstance(action, Failed):
            return action
        return None

    async def _start_tls(self, context: ssl.SSLContext | None, patience: Patience) -> Failed | None:
        """The handshake; afterwards everything goes through TLS."""
        assert self._stream is not None
        assert context is not None
        patience.allow(TIMEOUTS_S[Stage.TLS])
        self._handshaking = True
        # https_compatible: next hops that close without close_notify are many (design.md P8).
        stream = trio.SSLStream(self._stream, context, server_hostname=self.route.host, https_compatible=True)
        try:
            await stream.do_handshake()
        except (trio.BrokenResourceError, ssl.CertificateError) as error:
            return Failed(Stage.TLS, None, _tls_reason(error))
        self._handshaking = False
        self._stream = stream
        # SSLStream forwards these to its SSLObject without declaring them.
        self.tls_version = stream.version() or ""
        self.tls_cipher = stream.cipher()[0]
        return None

    async def pump(self, action: Action | None, patience: Patience, now_us: Callable[[], int]) -> Do | Failed:
        """Send and receive until the machine wants something that is not sending or receiving."""
        stream, machine = self._stream, self.machine
        assert stream is not None
        try:
            while True:
                if action is None:
                    action = machine.receive(await stream.receive_some(RECEIVE_OCTETS), now_us())
                elif isinstance(action, Send):
                    patience.allow(TIMEOUTS_S[machine.stage])
                    await self._send(stream, action.data)
                    action = None
                else:
                    return action
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return machine.eof()

    async def _send(self, stream: Stream, data: bytes) -> None:
        """Send; when the peer is gone already, what it said before may still be read, so that is not the end."""
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            if isinstance(stream, trio.SSLStream):
                raise

    async def send_content(self, data: bytes, patience: Patience, now_us: Callable[[], int]) -> Failed | None:
        """Send a piece of the content.  Failed: the connection broke, or the peer refused the rest."""
        assert self._stream is not None
        patience.allow(TIMEOUTS_S[Stage.CONTENT])
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            patience.allow(LAST_WORDS_S)
            action = await self.pump(None, patience, now_us)
            return action if isinstance(action, Failed) else self.machine.eof()
        return None

    async def early_answer(self, patience: Patience, now_us: Callable[[], int]) -> Failed | None:
        """What the peer said before the content's end, if anything arrived; nothing should have."""
        if self._socket is None or not self._socket.is_readable():
            return None
        patience.allow(LAST_WORDS_S)
        action = await self.pump(None, patience, now_us)
        return action if isinstance(action, Failed) else self.machine.eof()

    async def send_dot(
        self, data: bytes, timeout_s: float, scope: trio.CancelScope, now_us: Callable[[], int]
    ) -> Do | Failed:
        """Send the end of the content and wait for the answer, both together at most `timeout_s`."""
        assert self._stream is not None
        scope.deadline = trio.current_time() + timeout_s
        self.machine.dot_sent(now_us())
        try:
            await self._send(self._stream, data)
        except trio.BrokenResourceError:
            return self.machine.eof()
        return await self.pump(None, Patience(scope, scope.deadline), now_us)

    def is_alive(self) -> bool:
        """Whether a kept connection looks usable: a peer that says something now is ending it, or out of step."""
        if not self.machine.usable:
            return False
        if self._socket is None or trio.current_time() - self.idle_since < TRUST_FOR_S:
            return True
        return not self._socket.is_readable()

    async def quit(self, now_us: Callable[[], int]) -> None:
        """Say goodbye and close; takes at most a few seconds.  Closed also when cancelled."""
        try:
            if self._stream is not None and self.machine.usable:
                self.machine.transcript = Transcript()  # the attempt's record is already made
                with trio.move_on_after(TIMEOUTS_S[Stage.QUIT]) as scope:
                    await self.pump(self.machine.quit(now_us()), Patience(scope, scope.deadline), now_us)
        finally:
            await self.discard()

    async def discard(self) -> None:
        """Close without a word.  Does not wait; closed also when cancelled."""
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)


def _label(route: Route, socket: trio.socket.SocketType | None) -> str:
    """`name[address]:port` of the peer, as logs show it."""
    if socket is None:
        return route.address
    try:
        address = socket.getpeername()[0]
    except OSError:
        return route.address
    return f"{route.host}[{address}]:{route.port}"


def _reason(error: BaseException) -> str:
    """What went wrong when connecting, in a few words."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(_reason(inner) for inner in cause.exceptions))
    if cause is not None and isinstance(cause, OSError):
        return _reason(cause)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _tls_reason(error: BaseException) -> str:
    """Why a handshake failed, in a few words."""
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate is not good: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or 'unknown error'}"
    return "the connection was lost during the handshake"
