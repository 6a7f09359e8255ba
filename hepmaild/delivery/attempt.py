# SPDX-License-Identifier: Apache-2.0
"""One attempt to deliver one message (Trio).

content → connection → MAIL, RCPT, DATA → in-doubt mark → dot → reply → report.

Before the mark an attempt can be cancelled at any point and the job is given back untried.  From the mark on it is
shielded, always with a deadline: the reply to the dot has `final_dot_timeout_s`, the report until the lease ends.  The
one `except Exception` of the engine is here: a crash is logged with its id and becomes a deferral (in doubt if the dot
was out); it never ends a worker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import structlog
import trio

from hepmaild.config import DeliverySettings, RouteKind, TlsMode
from hepmaild.delivery.capabilities import Envelope
from hepmaild.delivery.client import Do, Failed, Stage
from hepmaild.delivery.connections import Connect, Connection, Patience
from hepmaild.delivery.job import Attempt, Job, Outcome, Queue, Result
from hepmaild.delivery.lane import PLAIN_FOR_S, Lane
from hepmaild.delivery.outcome import Verdict, deferred, judge
from hepmaild.delivery.sandbox import Sandbox
from hepmaild.errors import StoreUnavailable
from hepmaild.events import Transcript, Who
from hepmaild.mail.content import Content
from hepmaild.mail.reply import Reply
from hepmaild.mail.schedule import retry_at_us, retry_delay_s
from hepmaild.mail.wire import DotStuffer

log = structlog.get_logger()

ONE_SEND_OCTETS = 64 << 10
MARK_TIMEOUT_S = 60  # the store has its own, shorter one; this only keeps the shield from being endless
LEASE_MARGIN_S = 60
LONE_DOT_S = 60  # nothing depends on the answer
GIVE_BACK_S = 2
FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 5.0


class End(Enum):
    """How an attempt ended, as far as the lane is concerned."""

    WELL = auto()  # the next hop answered properly, whatever the answer
    TROUBLE = auto()  # it could not be reached, or broke off
    NEITHER = auto()  # nothing was learned about it
    STORE_DOWN = auto()


class LeaseLost(Exception):
    """The store gave the job to somebody else: nothing more may be done with it."""


@dataclass(slots=True, eq=False)
class Flight:
    """An attempt under way, so that a drain can cut it short.  scope: the one that bounds what it waits for now."""

    job: Job
    started_at_us: int
    lease_ends: float
    transcript: Transcript
    scope: trio.CancelScope | None = None
    connection: Connection | None = None
    verdicts: tuple[Verdict, ...] | None = None
    is_forsaken: bool = False


class Runner:
    """Runs attempts.  Knows the store, the clock and the dice; what it does to a lane is connections only."""

    def __init__(
        self,
        settings: DeliverySettings,
        queue: Queue,
        hostname: str,
        *,
        connect: Connect,
        sandbox: Sandbox,
        now_us: Callable[[], int],
        random: Callable[[], float],
        on_reported: Callable[[Attempt], None] | None = None,
    ) -> None:
        self.flights: set[Flight] = set()
        self.report_until = float("inf")  # a drain sets it
        self._settings = settings
        self._queue = queue
        self._hostname = hostname
        self._connect = connect
        self._sandbox = sandbox
        self._now_us = now_us
        self._random = random
        self._on_reported = on_reported
        self._spool_limiter = trio.CapacityLimiter(4)
        self._margin_s = min(LEASE_MARGIN_S, settings.attempt_timeout_s / 10)
        self._dot_timeout_s = min(settings.final_dot_timeout_s, settings.attempt_timeout_s - self._margin_s)

    async def attempt(self, job: Job, lane: Lane, leased: float) -> End:
        """Make one attempt and report it.  leased: when the lease began (Trio's clock).

        Cancelled before the in-doubt mark: the job is given back.  After it: ends by itself, in bounded time.
        """
        flight = Flight(job, self._now_us(), leased + self._settings.attempt_timeout_s, Transcript())
        self.flights.add(flight)
        settled = False
        try:
            end = await self._attempt_or_defer(flight, lane)
            settled = True
            return End.STORE_DOWN if flight.is_forsaken else end
        finally:
            self.flights.discard(flight)
            if job.content is not None:
                job.content.close()
            if not settled:  # cancelled, before the mark
                with trio.move_on_after(GIVE_BACK_S, shield=True):
                    await self._try_to_give_back(job)
            if flight.connection is not None:
                await flight.connection.discard()

    async def _attempt_or_defer(self, flight: Flight, lane: Lane) -> End:
        """The boundary: nothing but a cancellation leaves here."""
        job = flight.job
        try:
            return await self._attempt(flight, lane)
        except LeaseLost:
            log.warning("lease_lost", message_id=job.message_id, route=job.route)
            return End.NEITHER
        except StoreUnavailable:
            log.warning("store_unavailable", message_id=job.message_id, route=job.route, doing="attempt")
            await self._insist(flight, lambda: self._queue.release(job))
            return End.STORE_DOWN
        except Exception:
            log.exception("attempt_crashed", message_id=job.message_id, route=job.route)
            await self._report_crash(flight)
            return End.NEITHER

    async def _report_crash(self, flight: Flight) -> None:
        """A crashed attempt is a deferral, or in doubt; if it was the report that crashed, the lease must end."""
        if flight.verdicts is not None:
            return
        failure = Failed(Stage.LOCAL, None, "internal error; the log has its traceback")
        try:
            await self._report(flight, self._verdicts(flight, failure))
        except Exception:
            log.exception("report_crashed", message_id=flight.job.message_id, route=flight.job.route)

    async def _attempt(self, flight: Flight, lane: Lane) -> End:
        job = flight.job
        if lane.route.kind is RouteKind.SMTP:
            content = job.content or await self._queue.load(job)
            try:
                return await self._attempt_smtp(flight, lane, content)
            finally:
                content.close()
        if lane.route.kind is RouteKind.SANDBOX:
            content = job.content or await self._queue.load(job)
            try:
                verdicts = await self._attempt_sandbox(flight, lane, content)
            finally:
                content.close()
        else:
            failure = Failed(Stage.LOCAL, None, f"there is no route {job.route!r} that can be used")
            verdicts = (deferred(failure),) * len(job.recipients)
        await self._report(flight, verdicts)
        return End.NEITHER

    async def _attempt_sandbox(self, flight: Flight, lane: Lane, content: Content) -> tuple[Verdict, ...]:
        job = flight.job
        try:
            path = await self._sandbox.keep(lane.route.directory, job, content)
        except OSError as error:
            log.warning("sandbox_failed", message_id=job.message_id, error=str(error))
            failure = Failed(Stage.LOCAL, None, f"the sandbox could not write: {error.strerror or error}")
            return (deferred(failure),) * len(job.recipients)
        flight.transcript.add(self._now_us(), Who.NOTE, f"kept as {path.name}")
        return (Verdict(Result.DELIVERED, Reply(250, "2.0.0", f"kept as {path.name}")),) * len(job.recipients)

    # A next hop that speaks SMTP

    async def _attempt_smtp(self, flight: Flight, lane: Lane, content: Content) -> End:
        envelope = make_envelope(flight.job, content)
        kept = await take_kept(lane)
        failure = None
        if kept is not None:
            flight.connection = kept
            kept.machine.transcript = flight.transcript
            kept.machine.transaction = None
            text = f"kept connection to {kept.label}, message {kept.sent + 1}"
            flight.transcript.add(self._now_us(), Who.NOTE, text)
            failure = await self._deliver(flight, lane, envelope, content)
        if kept is None or (failure is not None and died_while_kept(kept, failure)):
            if kept is not None:
                flight.connection = None
                self._note(flight, failure)
                await kept.discard()
            failure = await self._deliver_fresh(flight, lane, envelope, content)
        self._note(flight, failure)
        verdicts = self._verdicts(flight, failure)
        connection, flight.connection = flight.connection, None
        assert connection is not None
        keep = connection.machine.usable and connection.sent < lane.route.messages_per_connection
        if keep:
            connection.idle_since = trio.current_time()
            lane.kept.append(connection)  # somebody else may use it while the report is written
        try:
            await self._report(flight, verdicts, connection)
        finally:
            if not keep:
                await connection.quit(self._now_us)
        return End.TROUBLE if failure is not None and is_trouble(failure) else End.WELL

    async def _deliver_fresh(self, flight: Flight, lane: Lane, envelope: Envelope, content: Content) -> Failed | None:
        """On a new connection; with `opportunistic` TLS on a second, plain one when the handshake fails (RFC 7435)."""
        route = lane.route
        tls = route.tls
        if tls is TlsMode.OPPORTUNISTIC and trio.current_time() < lane.plain_until:
            tls = TlsMode.NONE
        flight.connection = Connection(route, self._hostname, self._connect, tls, flight.transcript)
        failure = await self._deliver(flight, lane, envelope, content)
        if failure is None or failure.stage is not Stage.TLS or tls is not TlsMode.OPPORTUNISTIC or route.credentials:
            return failure
        self._note(flight, failure)
        lane.plain_until = trio.current_time() + PLAIN_FOR_S
        await flight.connection.discard()
        flight.connection = Connection(route, self._hostname, self._connect, TlsMode.NONE, flight.transcript)
        return await self._deliver(flight, lane, envelope, content)

    async def _deliver(self, flight: Flight, lane: Lane, envelope: Envelope, content: Content) -> Failed | None:
        """One transaction on `flight.connection`, which is opened first if it is new.  None: properly answered."""
        connection = flight.connection
        assert connection is not None
        with trio.CancelScope() as scope:
            flight.scope = scope
            patience = Patience(scope, flight.lease_ends - self._margin_s)
            if connection.stage is Stage.CONNECT:
                try:
                    context = lane.tls_context() if lane.route.tls is not TlsMode.NONE else None
                except OSError as error:  # ssl.SSLError is one
                    return Failed(Stage.CONNECT, None, f"tls_ca {lane.route.tls_ca!r} cannot be used: {error}")
                failure = await connection.open(context, patience, self._now_us)
                if failure is not None:
                    return failure
            return await self._transact(flight, connection, envelope, content, patience)
        # Only our own deadline gets here: a drain's cancellation goes through.
        if connection.stage in {Stage.CONNECT, Stage.TLS}:
            return Failed(connection.stage, None, "no answer in time")
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
            end = await connection.send_dot(b".\r\n", LONE_DOT_S, patience.scope, self._now_us)
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
        patience.scope.shield = True
        patience.scope.deadline = trio.current_time() + MARK_TIMEOUT_S
        if not await self._queue.mark_in_doubt(flight.job):
            raise LeaseLost
        flight.lease_ends = trio.current_time() + self._settings.attempt_timeout_s
        machine.content_note(f"(content, {content.size} octets)", self._now_us())
        return await connection.send_dot(last, self._dot_timeout_s, patience.scope, self._now_us)

    async def _send_pieces(
        self, connection: Connection, content: Content, stuffer: DotStuffer, patience: Patience
    ) -> Failed | None:
        """Large content, piece by piece; a spool is read in threads.  ValueError at octets that may not leave."""
        pieces = content.chunks()
        while True:
            if content.is_spooled:
                piece = await trio.to_thread.run_sync(next, pieces, b"", limiter=self._spool_limiter)
            else:
                piece = next(pieces, b"")
            if not piece:
                return None
            failure = await connection.send_content(stuffer.feed(piece), patience, self._now_us)
            if failure is not None:
                return failure

    # What came of it

    def _note(self, flight: Flight, failure: Failed | None) -> None:
        """Say in the transcript what nobody said on the wire."""
        if failure is not None:
            flight.transcript.add(self._now_us(), Who.NOTE, f"{failure.stage}: {failure.text}")

    def _verdicts(self, flight: Flight, failure: Failed | None) -> tuple[Verdict, ...]:
        """A verdict for each recipient, in the job's order."""
        transaction = flight.connection.machine.transaction if flight.connection else None
        if transaction is not None:
            return judge(transaction, failure)
        if failure is None:
            failure = Failed(Stage.LOCAL, None, "the attempt ended without a result")
        return (deferred(failure),) * len(flight.job.recipients)

    async def _report(self, flight: Flight, verdicts: Sequence[Verdict], connection: Connection | None = None) -> None:
        """Record the attempt; insists until the lease ends, since what was delivered must be known as delivered."""
        flight.verdicts = tuple(verdicts)
        ended_at_us = self._now_us()
        connection = connection or flight.connection
        attempt = Attempt(
            job=flight.job,
            started_at_us=flight.started_at_us,
            ended_at_us=ended_at_us,
            host=connection.label if connection else "",
            tls_version=connection.tls_version if connection else "",
            tls_cipher=connection.tls_cipher if connection else "",
            steps=flight.transcript.snapshot(),
            outcomes=tuple(
                self._outcome(flight.job, index, verdict, ended_at_us) for index, verdict in enumerate(verdicts)
            ),
        )
        await self._insist(flight, lambda: self._report_once(attempt))

    async def _report_once(self, attempt: Attempt) -> None:
        job = attempt.job
        if not await self._queue.report(attempt):
            log.warning("report_refused", message_id=job.message_id, route=job.route, token=job.token)
            return
        if self._on_reported is not None:
            self._on_reported(attempt)

    def _outcome(self, job: Job, index: int, verdict: Verdict, now_us: int) -> Outcome:
        recipient = job.recipients[index]
        if verdict.result in {Result.DELIVERED, Result.FAILED}:
            return Outcome(recipient.recipient_id, verdict.result, verdict.reply)
        delay_s = retry_delay_s(
            self._settings.retry_after_s, recipient.attempts + 1, self._random(), hint_s=verdict.hint_s
        )
        due = retry_at_us(now_us, delay_s, job.expires_at_us)
        return Outcome(recipient.recipient_id, verdict.result, verdict.reply, due)

    # The store

    async def _insist(self, flight: Flight, unit: Callable[[], Awaitable[None]]) -> None:
        """Do `unit`, again and again while the store is unavailable, until the attempt's time is over or a drain.

        Shielded: an outcome that is known is worth a moment of the drain.
        """
        delay_s = FIRST_RETRY_S
        with trio.CancelScope(shield=True, deadline=min(flight.lease_ends, self.report_until)) as scope:
            flight.scope = scope
            while True:
                try:
                    await unit()
                except StoreUnavailable:
                    log.warning("store_unavailable", message_id=flight.job.message_id, doing="report")
                else:
                    return
                await trio.sleep(delay_s)
                delay_s = min(2 * delay_s, LONGEST_RETRY_S)
        log.warning("attempt_forsaken", message_id=flight.job.message_id, route=flight.job.route)
        flight.is_forsaken = True
        self._queue.forsake(flight.job)

    async def _try_to_give_back(self, job: Job) -> None:
        try:
            await self._queue.release(job)
        except StoreUnavailable:
            log.warning("attempt_forsaken", message_id=job.message_id, route=job.route)
            self._queue.forsake(job)


def make_envelope(job: Job, content: Content) -> Envelope:
    """What the transaction is about.  A spooled content is taken to hold 8-bit octets: looking would cost a pass."""
    in_memory = not content.is_spooled
    headers_utf8 = False
    if job.smtputf8:
        head = content.head()
        end = head.find(b"\r\n\r\n")
        headers_utf8 = not (head if end < 0 else head[:end]).isascii()
    return Envelope(
        reverse_path=job.reverse_path,
        recipients=tuple([recipient.address for recipient in job.recipients]),
        size=content.size,
        eight_bit=not (in_memory and content.data.isascii()),
        headers_utf8=headers_utf8,
    )


async def take_kept(lane: Lane) -> Connection | None:
    """The kept connection that was used last, if it still lives; dead ones are closed."""
    while lane.kept:
        connection = lane.kept.pop()
        if connection.route is lane.route and connection.is_alive():
            return connection
        await connection.discard()
    return None


def is_trouble(failure: Failed) -> bool:
    """Whether a failure says something about the next hop, rather than about this message."""
    if failure.stage is Stage.LOCAL:
        return False
    return failure.stage is not Stage.CONTENT or failure.reply is None


def died_while_kept(connection: Connection, failure: Failed) -> bool:
    """Whether a failure only says that the kept connection had ended: nothing of the message can have been accepted."""
    transaction = connection.machine.transaction
    if transaction is None or transaction.dot_is_out or transaction.data is not None:
        return False
    return failure.reply is None or failure.reply.code == 421
