# SPDX-License-Identifier: Apache-2.0
"""Connections to next hops: opening, talking, keeping, closing (Trio).

A `Connection` drives one `ClientMachine`: it sends what the machine says and feeds it what arrives.  How long anything
may take is the business of the cancel scope it is given: `Patience` moves that scope's deadline from step to step, so
that one scope serves a whole attempt.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from hepmaild.config import TlsMode
from hepmaild.delivery.client import Action, ClientMachine, Credentials, Do, Failed, Send, Stage
from hepmaild.delivery.hops import TlsLevel
from hepmaild.delivery.route import TIMEOUTS_S, Host, Route
from hepmaild.delivery.tls_policy import check_dane
from hepmaild.events import Transcript, Who
from hepmaild.threads import wanting_threads
from hepmaild.timers import Bounds
from hepmaild.transport import SocketTransport, take_over

if TYPE_CHECKING:
    from trio.abc import Stream

Connect = Callable[[str, int], Awaitable["Stream"]]

RECEIVE_OCTETS = 8192
LAST_WORDS_S = 5
NEXT_ADDRESS_S = 0.25  # RFC 8305 §5
MAX_ADDRESSES = 8


async def connect_tcp(host: str, port: int) -> Stream:
    """Connect, trying all addresses of the name quickly (RFC 8305).  Raises OSError; cancel-safe."""
    with wanting_threads():  # one looks the name up
        return await trio.open_tcp_stream(host, port)


async def connect_first(connect: Connect, addresses: Sequence[str], port: int) -> tuple[Stream, str]:
    """Connect to one of several addresses: the next one starts when one fails, or after a moment (RFC 8305 §5).

    Returns the stream and the address that was first.  Raises OSError when none answers; cancel-safe.
    """
    tried = _alternate(addresses)[:MAX_ADDRESSES]
    if len(tried) == 1:
        return await connect(tried[0], port), tried[0]
    errors: list[OSError] = []
    won: list[tuple[Stream, str]] = []

    async def try_one(address: str, failed: trio.Event) -> None:
        try:
            stream = await connect(address, port)
        except OSError as error:
            errors.append(error)
            failed.set()
            return
        if won:
            await trio.aclose_forcefully(stream)
        else:
            won.append((stream, address))
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in tried:
                failed = trio.Event()
                nursery.start_soon(try_one, address, failed)
                with trio.move_on_after(NEXT_ADDRESS_S):
                    await failed.wait()
    except BaseException:
        for stream, _ in won:
            await trio.aclose_forcefully(stream)
        raise
    if not won:
        raise OSError("no address to connect to") from (ExceptionGroup("", errors) if errors else None)
    return won[0]


def _alternate(addresses: Sequence[str]) -> list[str]:
    """IPv6 and IPv4 in turn, the family of the first address first (RFC 8305 §4)."""
    first = [a for a in addresses if (":" in a) == (":" in addresses[0])]
    second = [a for a in addresses if (":" in a) != (":" in addresses[0])]
    order: list[str] = []
    for n in range(max(len(first), len(second))):
        order += first[n : n + 1] + second[n : n + 1]
    return order


def make_tls_context(route: Route, *, verified: bool | None = None) -> ssl.SSLContext:
    """TLS 1.2 or later towards a next hop.  Raises OSError on a bad `tls_ca`.

    verified: whether its certificate must be good; None: unless the route's mode is `opportunistic`.
    """
    if verified is None:
        verified = route.tls is not TlsMode.OPPORTUNISTIC
    context = ssl.create_default_context(cafile=route.tls_ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verified:
        # RFC 7435: protection from those who only listen; better than plaintext, which would be the alternative.
        # DANE does its own checks, which OpenSSL's would only be in the way of.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def peer_chain(stream: Any) -> list[bytes]:
    """The certificates (DER) that the server presented, its own first.  stream: a `trio.SSLStream` after its handshake.

    Python has a public way since 3.13 only; before, the object below it has the same.
    """
    tls = stream._ssl_object  # noqa: SLF001
    public = getattr(tls, "get_unverified_chain", None)
    if public is not None:
        return [bytes(der) for der in public() or ()]
    return [certificate.public_bytes(_DER) for certificate in tls._sslobj.get_unverified_chain() or ()]  # noqa: SLF001


_DER = 2  # OpenSSL's SSL_FILETYPE_ASN1


def _holds_unread(stream: Any) -> bool:
    """Whether a `trio.SSLStream` has taken octets from the socket, read together with others, that nobody has read."""
    return bool(stream.pending() or stream._incoming.pending)  # noqa: SLF001


class Patience:
    """The deadlines of one attempt, on one cancel scope.

    bounds: the scope's.  latest: no step may last beyond it (Trio's clock).  most_s: nor longer than this, while there
    is another host to try.
    """

    __slots__ = ("bounds", "latest", "most_s")

    def __init__(self, bounds: Bounds, latest: float, most_s: float = math.inf) -> None:
        self.bounds = bounds
        self.latest = latest
        self.most_s = most_s

    def allow(self, seconds: float) -> None:
        """The step that begins now may take so long."""
        self.bounds.deadline = min(trio.current_time() + min(seconds, self.most_s), self.latest)


class Connection:
    """One connection to a next hop.

    label: `name[address]:port`, "" until connected.  stage: where it is.  sent: transactions so far.  level: what the
    TLS is worth, once it is open.  host: None: the route's first.  tls: what to do about TLS, which is the host's mode
    unless that was tried in vain.  is_strict: the certificate must be good although the host's policy does not ask for
    it (MTA-STS, mode testing).  credentials: None: the route's; they are forgotten once they were used.
    """

    def __init__(
        self,
        route: Route,
        hello: str,
        connect: Connect,
        tls: TlsMode,
        transcript: Transcript,
        host: Host | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.route = route
        self.host = host or route.first_host
        self.level = TlsLevel.NONE
        self.is_strict = False
        self.label = ""
        self.tls_version = ""
        self.tls_cipher = ""
        self.sent = 0
        self.idle_since = 0.0
        self.machine = ClientMachine(
            hello,
            tls=tls,
            credentials=credentials or route.credentials,
            transcript=transcript,
            tls_is_on=False,
        )
        self._tls = tls
        self._connect = connect
        self._stream: Stream | None = None
        self._transport: SocketTransport | None = None
        self._handshaking = False
        self._broken: BaseException | None = None  # how, when it broke while we talked

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
        host, address = self.host, ""
        try:
            if host.addresses:
                stream, address = await connect_first(self._connect, host.addresses, host.port)
            else:
                stream = await self._connect(host.name, host.port)
        except OSError as error:
            return Failed(Stage.CONNECT, None, f"{host.address}: {_reason(error)}")
        if isinstance(stream, trio.SocketStream):
            stream = self._transport = take_over(stream, gathers=True)
        self._stream = stream
        self.label = _label(host, address, self._transport)
        transcript.add(now_us(), Who.NOTE, f"connected to {self.label}")
        if self._tls is TlsMode.IMPLICIT:
            failure = await self._start_tls(context, patience, now_us)
            if failure is not None:
                return failure
            self.machine.tls_is_on = True
            transcript.add(now_us(), Who.NOTE, f"{self.tls_version} {self.tls_cipher}")
        patience.allow(TIMEOUTS_S[Stage.GREETING])
        action = await self.pump(None, patience, now_us)
        heard = 0
        while action is Do.START_TLS:
            failure = await self._start_tls(context, patience, now_us)
            if failure is not None:
                return failure
            heard = self.machine.replies
            action = await self.pump(
                self.machine.tls_established(self.tls_version, self.tls_cipher, now_us()), patience, now_us
            )
        if isinstance(action, Failed):
            if self._broken is not None and self.level is not TlsLevel.NONE and self.machine.replies == heard:
                # With TLS 1.3 our handshake is over before the server has judged it (RFC 8446 §2).
                action = Failed(Stage.TLS, None, _tls_reason(self._broken))
            return self._explain(action)
        if host.tls is not TlsMode.NONE:
            transcript.add(now_us(), Who.NOTE, self.tls_text)
        return None

    def _explain(self, failure: Failed) -> Failed:
        """Where TLS is asked for by a policy of the destination, say which."""
        policy = self.host.policy
        if policy is None or not policy.why or failure.stage not in {Stage.TLS, Stage.STARTTLS}:
            return failure
        return Failed(failure.stage, failure.reply, f"{failure.text} ({policy.why})")

    @property
    def is_used_up(self) -> bool:
        """Whether it had as many transactions as the route, or the next hop, wants on one connection."""
        most, offered = self.route.messages_per_connection, self.machine.capabilities.mail_max
        return self.sent >= (min(most, offered) if offered else most)

    @property
    def tls_text(self) -> str:
        """What the TLS is worth, for people: `TLS verified (mta-sts enforce)`."""
        policy = self.host.policy
        text = "clear text, no TLS" if self.level is TlsLevel.NONE else f"TLS {self.level}"
        if policy is None or not policy.why:
            return text
        verdict = ""
        if policy.testing:
            verdict = "; enforce would refuse the certificate"
            if self.level is TlsLevel.NONE:
                verdict = "; enforce would refuse clear text"
            elif self.is_strict:
                verdict = "; the certificate is good enough for enforce"
        return f"{text} ({policy.why}{verdict})"

    def _level(self) -> TlsLevel:
        if self.host.policy is None:
            return TlsLevel.VERIFIED if self.host.is_verified else TlsLevel.OPPORTUNISTIC
        return TlsLevel.OPPORTUNISTIC if self.host.policy.level is TlsLevel.NONE else self.host.policy.level

    async def _start_tls(
        self, context: ssl.SSLContext | None, patience: Patience, now_us: Callable[[], int]
    ) -> Failed | None:
        """The handshake; afterwards everything goes through TLS."""
        assert self._stream is not None
        assert context is not None
        patience.allow(TIMEOUTS_S[Stage.TLS])
        self._handshaking = True
        # https_compatible: next hops that close without close_notify are many (design.md P8).
        stream = trio.SSLStream(self._stream, context, server_hostname=self.host.sni, https_compatible=True)
        try:
            await stream.do_handshake()
        except (trio.BrokenResourceError, ssl.CertificateError) as error:
            return self._explain(Failed(Stage.TLS, None, _tls_reason(error)))
        policy = self.host.policy
        if policy is not None and policy.level is TlsLevel.DANE:
            problem = check_dane(policy, peer_chain(stream), now_us())
            if problem is not None:
                return self._explain(Failed(Stage.TLS, None, problem))
        self._handshaking = False
        self.level = self._level()
        self._stream = stream
        # SSLStream forwards these to its SSLObject without declaring them.
        self.tls_version = stream.version() or ""
        self.tls_cipher = stream.cipher()[0]
        return None

    async def pump(self, action: Action | None, patience: Patience, now_us: Callable[[], int]) -> Do | Failed:
        """Send and receive until the machine wants something that is not sending or receiving.

        Of commands that left together each has its own time, from the reply to the one before (RFC 5321 §4.5.3.2):
        there are next hops that take seconds for each recipient.
        """
        stream, machine = self._stream, self.machine
        assert stream is not None
        try:
            while True:
                if action is None:
                    data, before = await stream.receive_some(RECEIVE_OCTETS), machine.replies
                    action = machine.receive(data, now_us())
                    if action is None and machine.replies > before:
                        patience.allow(TIMEOUTS_S[machine.stage])
                elif isinstance(action, Send):
                    patience.allow(TIMEOUTS_S[machine.stage])
                    await self._send(stream, action.data)
                    action = None
                else:
                    return action
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._broken = error
            return machine.eof()

    async def _send(self, stream: Stream, data: bytes) -> None:
        """Send; when the peer is gone already, what it said before may still be read, so that is not the end."""
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            if isinstance(stream, trio.SSLStream):
                raise

    async def send_content(
        self, next_piece: Callable[[], Awaitable[bytes | None]], patience: Patience, now_us: Callable[[], int]
    ) -> Failed | None:
        """Send large content, and read beside it.  Failed: the connection broke, or the peer refused the rest.

        Some refuse at the first octet too many and close, or take nothing more; over TLS that could not be heard
        afterwards, since a send that fails ends a `trio.SSLStream` for reading too.

        next_piece: None at the end; what it raises (OSError, ValueError) is raised here.  When cancelled, as `pump`.
        """
        heard: list[Failed] = []
        problem: Exception | None = None
        try:
            if self._transport is not None:
                await self._transport.stop_gathering()
        except trio.BrokenResourceError:
            return self.machine.eof()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, heard, nursery.cancel_scope, patience, now_us)
            try:
                is_over = await self._send_pieces(next_piece, patience)
            except (OSError, ValueError) as error:  # not as a group
                problem, is_over = error, True
            if is_over:
                nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem
        if heard:
            return heard[0]
        if self._transport is not None:
            self._transport.start_gathering()
        return None

    async def _listen(
        self, heard: list[Failed], sending: trio.CancelScope, patience: Patience, now_us: Callable[[], int]
    ) -> None:
        """Until the peer says something or is gone, which ends the sending."""
        action = await self.pump(None, patience, now_us)
        heard.append(action if isinstance(action, Failed) else self.machine.eof())
        sending.cancel()

    async def _send_pieces(self, next_piece: Callable[[], Awaitable[bytes | None]], patience: Patience) -> bool:
        """False: the peer takes no more, and its last words are to be waited for."""
        assert self._stream is not None
        while (piece := await next_piece()) is not None:
            patience.allow(TIMEOUTS_S[Stage.CONTENT])
            try:
                await self._stream.send_all(piece)
            except trio.BrokenResourceError:
                patience.allow(LAST_WORDS_S)
                return False
        return True

    async def early_answer(self, patience: Patience, now_us: Callable[[], int]) -> Failed | None:
        """What the peer said before the content's end, if anything arrived; nothing should have."""
        if self._transport is None or not self._transport.is_readable():
            return None
        patience.allow(LAST_WORDS_S)
        action = await self.pump(None, patience, now_us)
        return action if isinstance(action, Failed) else self.machine.eof()

    async def send_dot(self, data: bytes, until: float, bounds: Bounds, now_us: Callable[[], int]) -> Do | Failed:
        """Send the end of the content and wait for the answer, both `until` then at most (Trio's clock)."""
        assert self._stream is not None
        bounds.deadline = until
        self.machine.dot_sent(now_us())
        try:
            await self._send(self._stream, data)
        except trio.BrokenResourceError:
            return self.machine.eof()
        return await self.pump(None, Patience(bounds, until), now_us)

    def is_alive(self) -> bool:
        """Whether a kept connection looks usable.

        A peer that says something now is ending it; or it answers what it answered already, and each of its words would
        be taken for the answer to the next thing asked.
        """
        if not self.machine.usable or (self._transport is not None and self._transport.is_readable()):
            return False
        return not (isinstance(self._stream, trio.SSLStream) and _holds_unread(self._stream))

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


def _label(host: Host, address: str, transport: SocketTransport | None) -> str:
    """`name[address]:port` of the peer, as logs show it."""
    if transport is not None:
        with suppress(OSError):
            address = transport.socket.getpeername()[0]
    return f"{host.name}[{address}]:{host.port}" if address else host.address


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


async def discard_all(connections: Sequence[Connection]) -> None:
    """Close all of them without a word.  Closed also when cancelled."""
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(connection.discard)


async def close_all(connections: Sequence[Connection], now_us: Callable[[], int]) -> None:
    """Say QUIT on all of them, at once: each takes a few seconds at most."""
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(connection.quit, now_us)
