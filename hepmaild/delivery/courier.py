# SPDX-License-Identifier: Apache-2.0
"""One message over SMTP to the first of several hosts that gives a session (Trio).

kept connection, or host after host → MAIL, RCPT, DATA → content → in-doubt mark → dot → reply.

A host that cannot be reached, whose TLS is not what it must be, or that says no before the transaction began, is left
for the next one; from MAIL on its word is final for this attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf

import trio

from hepmaild.config import RouteKind, TlsMode
from hepmaild.delivery.capabilities import Envelope
from hepmaild.delivery.client import Do, Failed, Stage
from hepmaild.delivery.connections import Connect, Connection, Patience, discard_all
from hepmaild.delivery.flight import Flight, LeaseLost
from hepmaild.delivery.job import Queue
from hepmaild.delivery.public import NAMES_AT_ONCE, connect_public
from hepmaild.delivery.route import Host, OwnWays
from hepmaild.delivery.tls_policy import suits
from hepmaild.events import Who
from hepmaild.mail.content import Content
from hepmaild.mail.reply import Reply
from hepmaild.mail.wire import DotStuffer
from hepmaild.threads import in_thread
from hepmaild.timers import Bounds, Timers, current_clock

ONE_SEND_OCTETS = 64 << 10
MARK_TIMEOUT_S = 60  # the store has its own, shorter one; this only keeps the shield from being endless
LONE_DOT_S = 60  # nothing depends on the answer
HURRY_S = 60  # each step, while there is another host to try
MAX_HOSTS = 5


class Courier:
    """margin_s: how long before the lease's end an attempt stops.  dot_timeout_s: for the answer to the final dot.

    timers: somebody runs them, as long as an attempt is under way.  own: who knows how to log in at the servers of
    accounts.
    """

    def __init__(
        self,
        queue: Queue,
        hostname: str,
        *,
        connect: Connect,
        now_us: Callable[[], int],
        timers: Timers,
        own: OwnWays | None = None,
    ) -> None:
        self._own = own
        self._time = current_clock()
        self._timers = timers
        self.margin_s = 0.0
        self.dot_timeout_s = 0.0
        self.attempt_timeout_s = 0.0
        self.cut_at = inf  # the daemon ends: nothing is waited for beyond, not even the answer to a dot
        self._queue = queue
        self._hostname = hostname
        self._connect = connect
        self._now_us = now_us
        self._spool_limiter = trio.CapacityLimiter(4)
        self._names_limiter = trio.CapacityLimiter(NAMES_AT_ONCE)

    async def deliver(
        self, flight: Flight, hosts: Sequence[Host], envelope: Envelope, content: Content
    ) -> Failed | None:
        """Over a kept connection, else a new one.  None: properly answered, see the connection's transaction.

        `flight.connection` is the one that was used last; it is the caller's to keep or to close.
        """
        kept, dead = take_kept(flight, hosts)
        flight.connection = kept
        if dead:
            await discard_all(dead)
        if kept is not None:
            kept.machine.transcript = flight.transcript
            kept.machine.transaction = None
            text = f"kept connection to {kept.label}, message {kept.sent + 1}"
            if kept.host.policy is not None:
                text += f"; {kept.tls_text}"
            flight.transcript.add(self._now_us(), Who.NOTE, text)
            failure = await self._deliver(flight, envelope, content, inf)
            if failure is None or not died_while_kept(kept, failure):
                return failure
            flight.connection = None
            self.note(flight, failure)
            await kept.discard()
        return await self._deliver_fresh(flight, hosts, envelope, content)

    async def _deliver_fresh(
        self, flight: Flight, hosts: Sequence[Host], envelope: Envelope, content: Content
    ) -> Failed | None:
        place = flight.place
        order = place.order(hosts, self._time())[:MAX_HOSTS]
        failure: Failed | None = None
        for n, host in enumerate(order, 1):
            failure = await self._deliver_to(flight, host, envelope, content, HURRY_S if n < len(order) else inf)
            connection = flight.connection
            assert connection is not None
            if failure is None or connection.machine.transaction is not None:
                place.host_works(host)
                return failure
            if len(hosts) > 1 and flight.is_current:
                place.host_failed(host, self._time())
            if n == len(order) or self._time() > flight.lease_ends - self.margin_s:
                break
            self.note(flight, failure)
            await connection.discard()
        return failure

    async def _deliver_to(
        self, flight: Flight, host: Host, envelope: Envelope, content: Content, most_s: float
    ) -> Failed | None:
        """On a new connection; on another where TLS failed on that one and need not be as good (RFC 7435)."""
        ways = self._ways(flight, host)
        for number, (tls, is_strict) in enumerate(ways, 1):
            flight.connection = self._make_connection(flight, host, tls)
            flight.connection.is_strict = is_strict
            failure = await self._deliver(flight, envelope, content, most_s)
            if failure is None or failure.stage is not Stage.TLS or number == len(ways):
                return failure
            self.note(flight, failure)
            if is_strict and flight.is_current:
                flight.place.go_lax(host, self._time())
            elif flight.is_current:
                flight.place.go_plain(host, self._time())
            await flight.connection.discard()
        raise AssertionError("there is always a way")

    @staticmethod
    def _ways(flight: Flight, host: Host) -> list[tuple[TlsMode, bool]]:
        """What to do about TLS, and whether to look at the certificate, one after the other as long as TLS fails.

        An MTA-STS policy in mode testing must be obeyed and must not matter (RFC 8461 §5): first as if it were
        enforced, so that the transcript says what would have been, then as if there were none.
        """
        place, now = flight.place, trio.current_time()
        may_be_plain = host.tls is TlsMode.OPPORTUNISTIC and not flight.route.credentials
        if may_be_plain and now < place.plain_until.get(host.address, 0.0):
            return [(TlsMode.NONE, False)]
        ways = [(host.tls, False)]
        if host.policy is not None and host.policy.testing and now >= place.lax_until.get(host.address, 0.0):
            ways.insert(0, (host.tls, True))
        if may_be_plain:
            ways.append((TlsMode.NONE, False))
        return ways

    def _make_connection(self, flight: Flight, host: Host, tls: TlsMode) -> Connection:
        """Not open yet.  Raises `SecretsUnavailable` where the password cannot be read."""
        route = flight.route
        credentials = None if self._own is None or route.sealed is None else self._own.open(route)
        connect = self._connect
        if route.public_only:
            connect = partial(connect_public, connect, names=self._names_limiter)
        return Connection(route, self._hostname, connect, tls, flight.transcript, host, credentials)

    async def _deliver(self, flight: Flight, envelope: Envelope, content: Content, most_s: float) -> Failed | None:
        """One transaction on `flight.connection`, which is opened first if it is new.  None: properly answered."""
        connection = flight.connection
        assert connection is not None
        with trio.CancelScope() as scope, self._timers.open(scope) as timer:
            flight.bounds = timer
            patience = Patience(timer, flight.lease_ends - self.margin_s, most_s)
            if connection.stage is Stage.CONNECT:
                context, host = None, connection.host
                if host.tls is not TlsMode.NONE:
                    verified = host.is_verified or connection.is_strict
                    try:
                        context = flight.track.tls_context(flight.route, verified=verified)
                    except OSError as error:  # ssl.SSLError is one
                        text = f"tls_ca {flight.route.tls_ca!r} cannot be used: {error}"
                        return Failed(Stage.CONNECT, None, text)
                failure = await connection.open(context, patience, self._now_us)
                if failure is not None:
                    return failure
                patience.most_s = inf
            return await self._transact(flight, connection, envelope, content, patience)
        # Only our own deadline gets here: a drain's cancellation goes through.
        if connection.stage in {Stage.CONNECT, Stage.TLS}:
            text = "no answer in time"
            return Failed(connection.stage, None, f"{connection.host.address}: {text}" if most_s < inf else text)
        return connection.machine.timed_out()

    async def _transact(
        self, flight: Flight, connection: Connection, envelope: Envelope, content: Content, patience: Patience
    ) -> Failed | None:
        machine = connection.machine
        connection.sent += 1
        action = machine.begin(envelope, flight.transcript, self._now_us())
        if action is Do.FINISHED:
            return None
        end: Do | Failed = await connection.pump(action, patience, self._now_us)
        if end is Do.WANT_CONTENT:
            end = await self._send_message(flight, connection, content, patience)
        elif end is Do.SEND_LONE_DOT:
            until = min(self._time() + LONE_DOT_S, self.cut_at)
            end = await connection.send_dot(b".\r\n", until, patience.bounds, self._now_us)
        return end if isinstance(end, Failed) else None

    async def _send_message(
        self, flight: Flight, connection: Connection, content: Content, patience: Patience
    ) -> Do | Failed:
        """Content, mark, dot.  A small content leaves in one send with its dot, so its mark comes before both."""
        machine = connection.machine
        stuffer = DotStuffer()
        try:
            if not content.is_spooled and content.size <= ONE_SEND_OCTETS:
                last = stuffer.feed(content.data) + stuffer.finish()
            else:
                failure = await self._send_pieces(connection, content, stuffer, patience)
                failure = failure or await connection.early_answer(patience, self._now_us)
                if failure is not None:
                    return failure
                last = stuffer.finish()
        except ValueError as flaw:
            return machine.refuse_content(Reply(550, "5.6.0", str(flaw)))
        early = machine.check_in_step()
        if early is not None:
            return early
        # From here to the reply nothing but our own deadlines may interfere: a mark without its dot, or a dot without
        # its reply, would be doubt that a drain made.
        await self.mark(flight, patience.bounds)
        machine.content_note(f"(content, {content.size} octets)", self._now_us())
        return await connection.send_dot(last, self.dot_until(), patience.bounds, self._now_us)

    def dot_until(self) -> float:
        """Until when the answer to a final dot that leaves now is waited for."""
        return min(self._time() + self.dot_timeout_s, self.cut_at)

    async def mark(self, flight: Flight, bounds: Bounds) -> None:
        """Commit the in-doubt mark; from here on the scope is shielded.  Raises `LeaseLost`, `StoreUnavailable`."""
        bounds.shield = True
        bounds.deadline = min(self._time() + MARK_TIMEOUT_S, self.cut_at)
        if not await self._queue.mark_in_doubt(flight.job):
            raise LeaseLost
        flight.lease_ends = self._time() + self.attempt_timeout_s

    async def _send_pieces(
        self, connection: Connection, content: Content, stuffer: DotStuffer, patience: Patience
    ) -> Failed | None:
        """Large content, piece by piece; a spool is read in threads.  ValueError at octets that may not leave."""
        pieces = content.chunks()

        async def next_piece() -> bytes | None:
            if content.is_spooled:
                piece = await in_thread(next, pieces, b"", limiter=self._spool_limiter)
            else:
                piece = next(pieces, b"")
            return stuffer.feed(piece) if piece else None

        return await connection.send_content(next_piece, patience, self._now_us)

    def note(self, flight: Flight, failure: Failed | None) -> None:
        """Say in the transcript what nobody said on the wire."""
        if failure is not None:
            flight.transcript.add(self._now_us(), Who.NOTE, f"{failure.stage}: {failure.text}")


def make_envelope(flight: Flight, content: Content) -> Envelope:
    """What the transaction is about.  A spooled content is taken to hold 8-bit octets: looking would cost a pass."""
    job = flight.job
    in_memory = not content.is_spooled
    headers_utf8 = False
    if job.smtputf8:
        head = content.head()
        end = head.find(b"\r\n\r\n")
        headers_utf8 = not (head if end < 0 else head[:end]).isascii()
    recipients = [recipient.address for recipient in job.recipients]
    if flight.chosen is not None:
        recipients = [recipients[n] for n in flight.chosen]
    return Envelope(
        reverse_path=job.reverse_path,
        recipients=tuple(recipients),
        size=content.size,
        eight_bit=not (in_memory and content.data.isascii()),
        headers_utf8=headers_utf8,
    )


def take_kept(flight: Flight, hosts: Sequence[Host]) -> tuple[Connection | None, list[Connection]]:
    """The kept connection that was used last, if it still lives and will do; and those that the caller is to close.

    Without a pause: while somebody waits others change what the place keeps, and two attempts would have the same one.
    A flight whose route was replaced takes none: they are the new one's.
    """
    dead: list[Connection] = []
    if not flight.is_current:
        return None, dead
    kept, is_alone = flight.place.kept, flight.route.kind is RouteKind.SMTP
    for n in range(len(kept) - 1, -1, -1):
        if is_alone or kept[n].route is not flight.route or _will_do(kept[n], hosts):
            connection = kept.pop(n)
            if connection.route is flight.route and connection.is_alive():
                return connection, dead
            dead.append(connection)
    return None, dead


def _will_do(kept: Connection, hosts: Sequence[Host]) -> bool:
    """Whether a connection leads to one of the hosts, with the TLS that this destination asks for."""
    assert kept.host.policy is not None
    return any(
        host.name == kept.host.name
        and host.port == kept.host.port
        and host.policy is not None
        and suits(host.policy, kept.host.policy, kept.level)
        for host in hosts
    )


def died_while_kept(connection: Connection, failure: Failed) -> bool:
    """Whether a failure only says that the kept connection had ended: nothing of the message can have been accepted."""
    transaction = connection.machine.transaction
    if transaction is None or transaction.dot_is_out or transaction.data is not None:
        return False
    return failure.reply is None or failure.reply.code == 421
