# SPDX-License-Identifier: Apache-2.0
"""One attempt to deliver one message (Trio).

where to → content → connection → MAIL, RCPT, DATA → in-doubt mark → dot → reply → report.

Before the mark an attempt can be cancelled at any point and the job is given back untried.  From the mark on it is
shielded, always with a deadline: the reply to the dot has `final_dot_timeout_s`, the report until the lease ends.  The
one `except Exception` of the engine is here: a crash is logged with its id and becomes a deferral (in doubt if the dot
was out); it never ends a worker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from hepmaild.config import DeliverySettings, InDoubt, Misbehaviour, RouteKind
from hepmaild.delivery.client import Failed, Stage
from hepmaild.delivery.connections import Connect, Connection
from hepmaild.delivery.courier import Courier, make_envelope
from hepmaild.delivery.flight import ContentGone, End, Flight, Joined, LeaseLost
from hepmaild.delivery.hops import Hops, NoHops
from hepmaild.delivery.job import Attempt, Job, Outcome, Queue, Result
from hepmaild.delivery.outcome import SOON_S, Verdict, deferred, judge, without_words
from hepmaild.delivery.route import Away, Host, OwnWays, Route, host_of
from hepmaild.delivery.sandbox import Sandbox, play
from hepmaild.delivery.track import MISSING_S, job_destination
from hepmaild.errors import SecretsUnavailable, SpoolUnavailable, StoreUnavailable
from hepmaild.events import Transcript, Who
from hepmaild.mail.address import destination_of
from hepmaild.mail.chaos import is_chaos
from hepmaild.mail.content import Content
from hepmaild.mail.reply import Reply
from hepmaild.mail.schedule import retry_at_us, retry_delay_s
from hepmaild.own_routes import is_own
from hepmaild.timers import Timers

log = structlog.get_logger()

LEASE_MARGIN_S = 60
RESOLVE_S = 120  # the resolver has its own, shorter limits
GIVE_BACK_S = 2
FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 5.0

_ANOTHER_DESTINATION = Verdict(
    Result.DEFERRED,
    Reply(451, "4.3.0", "another destination of the same message went first; this one goes next"),
    is_next=True,
)
_REMOVED = Verdict(
    Result.FAILED, Reply(550, "5.3.5", "the SMTP server that this message was to leave by was removed from its account")
)
_LOOK_UP_FAILED = NoHops(Reply(451, "4.4.3", "looking up the destination took too long"))
_NO_RESOLVER = NoHops(Reply(451, "4.3.5", "this process cannot look up destinations"))


class Runner:
    """Runs attempts.  Knows the store, the clock and the dice.

    join: asked when a job turns out to go to another place than the one whose turn it took; see `Joined`.
    timers: somebody runs them, as long as an attempt is under way.  own: who knows the SMTP servers of accounts.
    """

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
        join: Callable[[Flight, str], Joined],
        timers: Timers,
        on_reported: Callable[[Attempt], None] | None = None,
        own: OwnWays | None = None,
    ) -> None:
        self._own = own
        self.flights: dict[Flight, None] = {}  # the longest under way first
        self.report_until = float("inf")  # `end_by` sets it
        self._queue = queue
        self._courier = Courier(queue, hostname, connect=connect, now_us=now_us, timers=timers, own=own)
        self._sandbox = sandbox
        self._now_us = now_us
        self._random = random
        self._join = join
        self._on_reported = on_reported
        self.take_settings(settings)

    def take_settings(self, settings: DeliverySettings) -> None:
        """Timeouts, schedule and policy of the attempts that begin from now on."""
        self._settings = settings
        courier = self._courier
        courier.attempt_timeout_s = settings.attempt_timeout_s
        courier.margin_s = min(LEASE_MARGIN_S, settings.attempt_timeout_s / 10)
        courier.dot_timeout_s = min(settings.final_dot_timeout_s, settings.attempt_timeout_s - courier.margin_s)

    def end_by(self, cut_at: float, report_until: float) -> None:
        """The daemon ends.  What still waits past its dot at `cut_at` is in doubt, and has until then to say so."""
        self.report_until = min(self.report_until, report_until)
        self._courier.cut_at = min(self._courier.cut_at, cut_at)
        for flight in self.flights:
            if flight.bounds is not None:
                until = cut_at if flight.verdicts is None else report_until
                flight.bounds.deadline = min(flight.bounds.deadline, until)

    async def attempt(self, flight: Flight) -> End:
        """Make one attempt and report it.

        Cancelled before the in-doubt mark: the job is given back.  After it: ends by itself, in bounded time.
        """
        job = flight.job
        self.flights[flight] = None
        end: End | None = None
        try:
            end = await self._attempt_or_defer(flight)
            return End.STORE_DOWN if flight.is_forsaken else end
        finally:
            del self.flights[flight]
            if end is not End.PUT_BACK:
                if job.content is not None:
                    job.content.close()
                if end is None and not flight.is_forsaken:  # cancelled, before the mark
                    with trio.move_on_after(GIVE_BACK_S, shield=True):
                        await self._try_to_give_back(job)
                if flight.connection is not None:
                    await flight.connection.discard()

    async def _attempt_or_defer(self, flight: Flight) -> End:
        """The boundary: nothing but a cancellation leaves here."""
        job = flight.job
        try:
            return await self._attempt(flight)
        except LeaseLost:
            log.warning("lease_lost", message_id=job.message_id, route=job.route)
            return End.NEITHER
        except SpoolUnavailable as error:
            log.warning("spool_failed", message_id=job.message_id, route=job.route, error=str(error))
            await self._report_crash(flight, f"the content could not be read: {error}")
            return End.NEITHER
        except StoreUnavailable:
            log.warning("store_unavailable", message_id=job.message_id, route=job.route, doing="attempt")
            await self._insist(flight, lambda: self._queue.release(job))
            return End.STORE_DOWN
        except SecretsUnavailable as error:
            log.error("smtp_server_unusable", message_id=job.message_id, route=job.route, reason=str(error))
            await self._report_crash(flight, "the password of this SMTP server cannot be read here: enter it again")
            return End.NEITHER
        except ContentGone as gone:
            # As a rule somebody cancelled the message while the job stood here: then the report is refused.
            await self._report_crash(flight, str(gone))
            if not (flight.is_refused or flight.is_forsaken):
                log.error("content_gone", message_id=job.message_id, route=job.route)
            return End.NEITHER
        except Exception:
            log.exception("attempt_crashed", message_id=job.message_id, route=job.route)
            await self._report_crash(flight, "internal error; the log has its traceback")
            return End.NEITHER

    async def _report_crash(self, flight: Flight, text: str) -> None:
        """A crashed attempt is a deferral, or in doubt.

        If it was its report that crashed, the same without what others said, which may be what the store cannot take:
        the lease must end, and what was delivered be known as delivered.
        """
        if flight.is_reported or flight.is_forsaken:
            return
        if flight.verdicts is None:
            verdicts = self._verdicts(flight, Failed(Stage.LOCAL, None, text))
        else:
            verdicts = tuple(without_words(verdict) for verdict in flight.verdicts)
            flight.transcript = Transcript()
            flight.transcript.add(self._now_us(), Who.NOTE, "the record of this attempt could not be written")
        try:
            await self._report(flight, verdicts)
        except Exception:
            log.exception("report_crashed", message_id=flight.job.message_id, route=flight.job.route)

    async def _attempt(self, flight: Flight) -> End:
        if self._own is not None and is_own(flight.route.name):
            away = await self._board(flight, self._own)
            if away is not None:
                return await self._attempt_nothing(flight, away)
        route = flight.route
        if route.kind is RouteKind.MX:
            return await self._attempt_mx(flight)
        if route.is_missing:
            return await self._put_off(flight)
        content = await self._content(flight.job)
        try:
            if route.kind is RouteKind.SMTP:
                return await self._attempt_smtp(flight, flight.track.hosts_of(flight.route), content)
            verdicts = await self._attempt_sandbox(flight, route, content, route.misbehave, route.misbehave_s)
        finally:
            content.close()
        await self._report(flight, verdicts)
        return End.NEITHER

    async def _put_off(self, flight: Flight) -> End:
        """This process does not know the route: another may, or this one soon, so it is no attempt, and no mail waits
        longer each time.  Meanwhile nothing more is claimed for it: it is left to those that know it."""
        job = flight.job
        flight.track.closed_until = trio.current_time() + MISSING_S
        why = deferred(Failed(Stage.LOCAL, None, f"there is no route {job.route!r} in the settings of this process"))
        flight.put_off_until_us = self._now_us() + int(MISSING_S * 1_000_000)
        await self._queue.put_off(job, flight.put_off_until_us, str(why.reply))
        return End.NEITHER

    # Servers of accounts

    async def _board(self, flight: Flight, own: OwnWays) -> Away | None:
        """Learn what the account's server is now, which the attempt then uses; or why nothing can leave by it."""
        track = flight.track
        found = await own.find(flight.route.name)
        if isinstance(found, Away):
            return found
        if found != track.route:
            track.replace_route(found, track.cap)  # kept connections are another route's from here on
        flight.route = track.route
        return None

    async def _attempt_nothing(self, flight: Flight, away: Away) -> End:
        job = flight.job
        if away is Away.PAUSED:
            flight.is_given_back = True
            await self._queue.release(job)
            return End.NEITHER
        flight.transcript.add(self._now_us(), Who.NOTE, _REMOVED.reply.text)
        await self._report(flight, (_REMOVED,) * len(job.recipients))
        return End.NEITHER

    async def _content(self, job: Job) -> Content:
        if job.content is not None:
            return job.content
        try:
            return await self._queue.load(job)
        except LookupError as gone:
            raise ContentGone(str(gone)) from gone

    # Kept here instead of sent

    async def _attempt_sandbox(
        self, flight: Flight, route: Route, content: Content, manner: Misbehaviour, seconds: float
    ) -> tuple[Verdict, ...]:
        """manner, seconds: how the sandbox misbehaves towards this message, and for how long."""
        job = flight.job
        if manner is not Misbehaviour.NONE:
            flight.transcript.add(self._now_us(), Who.NOTE, f"the sandbox misbehaves: {manner}")
        part = play(manner, seconds, job, self._now_us())
        if part.refusals is not None:
            return part.refusals
        with trio.CancelScope() as scope:
            if part.doubts is not None:
                flight.bounds = scope
                await self._courier.mark(flight, scope)
                scope.deadline = self._courier.dot_until()
                await trio.sleep(part.wait_s)
            try:
                kept = await self._keep(route, job, content)
            except OSError as error:
                log.warning("sandbox_failed", message_id=job.message_id, error=str(error))
                failure = Failed(Stage.LOCAL, None, f"the sandbox could not write: {error.strerror or error}")
                return (deferred(failure),) * len(job.recipients)
            flight.transcript.add(self._now_us(), Who.NOTE, kept)
            if part.answers:
                reply = Reply(250, "2.0.0", kept)
                return (Verdict(Result.DELIVERED, reply),) * len(job.recipients)
        return part.doubts or (deferred(Failed(Stage.LOCAL, None, "the attempt was cut short")),) * len(job.recipients)

    async def _keep(self, route: Route, job: Job, content: Content) -> str:
        """Raises OSError.  What chaos keys send is not kept: nobody would ever take it away."""
        if is_chaos(route.name):
            return "taken by the sandbox of a chaos key"
        path = await self._sandbox.keep(route.directory, job, content)
        return f"kept as {path.name}"

    # Straight to the recipients' servers

    async def _attempt_mx(self, flight: Flight) -> End:
        job, route = flight.job, flight.route
        destination = job_destination(job)
        answer = await _look_up(flight, destination)
        hosts = () if isinstance(answer, NoHops) else tuple(host_of(h, route.port) for h in answer.hops if h.addresses)
        if isinstance(answer, NoHops) or not hosts:
            reply = answer.reply if isinstance(answer, NoHops) else Reply(451, "4.4.3", "no host has an address")
            return await self._report_nowhere(flight, destination, reply)
        if not job.destination:
            ours = [n for n, r in enumerate(job.recipients) if _domain(r.address) == destination]
            flight.chosen = tuple(ours) if len(ours) < len(job.recipients) else None
        if answer.group != flight.place.key:
            joined = self._join(flight, answer.group)
            if joined is Joined.WAIT:
                return End.PUT_BACK
            if joined is Joined.DEFER:
                text = f"not tried: the hosts of {destination} give trouble just now, and many messages wait for them"
                await self._report(flight, self._verdicts(flight, Failed(Stage.CONNECT, None, text)))
                return End.NEITHER
        content = await self._content(job)
        try:
            return await self._attempt_smtp(flight, hosts, content)
        finally:
            content.close()

    async def _report_nowhere(self, flight: Flight, destination: str, reply: Reply) -> End:
        """There is no host for the destination: for good, or just now."""
        flight.transcript.add(self._now_us(), Who.NOTE, f"{destination}: {reply}")
        verdict = Verdict(Result.FAILED if reply.is_permanent else Result.DEFERRED, reply)
        recipients = flight.job.recipients
        verdicts = [
            verdict if flight.job.destination or _domain(r.address) == destination else _ANOTHER_DESTINATION
            for r in recipients
        ]
        await self._report(flight, verdicts)
        return End.WELL if reply.is_permanent else End.APART

    # A next hop that speaks SMTP

    async def _attempt_smtp(self, flight: Flight, hosts: Sequence[Host], content: Content) -> End:
        envelope = make_envelope(flight, content)
        failure = await self._courier.deliver(flight, hosts, envelope, content)
        self._courier.note(flight, failure)
        verdicts = self._verdicts(flight, failure)
        connection, flight.connection = flight.connection, None
        assert connection is not None
        keep = connection.machine.usable and not connection.is_used_up and flight.is_current
        if keep:
            connection.idle_since = trio.current_time()
            flight.place.kept.append(connection)  # somebody else may use it while the report is written
        try:
            await self._report(flight, verdicts, connection)
        finally:
            if not keep:
                await connection.quit(self._now_us)
        if not flight.is_current:
            return End.NEITHER  # it was at the old host, and says nothing of the new one
        if failure is None or not is_trouble(failure):
            return End.WELL
        if flight.route.kind is RouteKind.MX and failure.stage in {Stage.TLS, Stage.STARTTLS}:
            return End.APART  # others who share the hosts may ask less of their TLS
        return End.TROUBLE

    # What came of it

    def _verdicts(self, flight: Flight, failure: Failed | None) -> tuple[Verdict, ...]:
        """A verdict for each recipient, in the job's order."""
        transaction = flight.connection.machine.transaction if flight.connection else None
        everybody = len(flight.job.recipients)
        if transaction is not None:
            verdicts = judge(transaction, failure)
        else:
            if failure is None:
                failure = Failed(Stage.LOCAL, None, "the attempt ended without a result")
            verdicts = (deferred(failure),) * (everybody if flight.chosen is None else len(flight.chosen))
        if flight.chosen is None:
            return verdicts
        every = [_ANOTHER_DESTINATION] * everybody
        for n, verdict in zip(flight.chosen, verdicts, strict=True):
            every[n] = verdict
        return tuple(every)

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
                [self._outcome(flight.job, index, verdict, ended_at_us) for index, verdict in enumerate(verdicts)]
            ),
            tls_level=connection.level if connection else "",
        )
        await self._insist(flight, lambda: self._report_once(flight, attempt))

    async def _report_once(self, flight: Flight, attempt: Attempt) -> None:
        job = attempt.job
        is_taken = await self._queue.report(attempt)
        flight.is_reported = True
        if not is_taken:
            flight.is_refused = True
            log.warning("report_refused", message_id=job.message_id, route=job.route, token=job.token)
            return
        if self._on_reported is not None:
            self._on_reported(attempt)

    def _outcome(self, job: Job, index: int, verdict: Verdict, now_us: int) -> Outcome:
        recipient = job.recipients[index]
        if verdict.result in {Result.DELIVERED, Result.FAILED}:
            return Outcome(recipient.recipient_id, verdict.result, verdict.reply)
        if verdict.result is Result.IN_DOUBT and self._settings.in_doubt is InDoubt.HOLD:
            return Outcome(recipient.recipient_id, verdict.result, verdict.reply, None)
        if verdict.is_next:
            delay_s: float = SOON_S
        else:
            delay_s = retry_delay_s(
                self._settings.retry_after_s,
                recipient.attempts + 1,
                self._random(),
                hint_s=verdict.hint_s,
                age_s=(now_us - job.accepted_at_us) / 1_000_000,
            )
        due = retry_at_us(now_us, delay_s, job.expires_at_us)
        return Outcome(recipient.recipient_id, verdict.result, verdict.reply, due)

    # The store

    async def _insist(self, flight: Flight, unit: Callable[[], Awaitable[None]]) -> None:
        """Do `unit`, again and again while the store is unavailable, until the attempt's time is over or a drain.

        Shielded: an outcome that is known is worth a moment of the drain.  The first time without a scope of its own,
        which was a quarter of a report's time: the store bounds its own, and what is cancelled there has not begun.
        """
        flight.bounds = None
        try:
            await unit()
        except StoreUnavailable:
            log.warning("store_unavailable", message_id=flight.job.message_id, doing="report")
            await self._insist_shielded(flight, unit, FIRST_RETRY_S)
        except trio.Cancelled:
            await self._insist_shielded(flight, unit, 0)
            raise

    async def _insist_shielded(self, flight: Flight, unit: Callable[[], Awaitable[None]], delay_s: float) -> None:
        """After `delay_s`, and then again and again."""
        with trio.CancelScope(shield=True, deadline=min(flight.lease_ends, self.report_until)) as scope:
            flight.bounds = scope
            while True:
                await trio.sleep(delay_s)
                try:
                    await unit()
                except StoreUnavailable:
                    log.warning("store_unavailable", message_id=flight.job.message_id, doing="report")
                else:
                    return
                delay_s = min(max(FIRST_RETRY_S, 2 * delay_s), LONGEST_RETRY_S)
        log.warning("attempt_forsaken", message_id=flight.job.message_id, route=flight.job.route)
        flight.is_forsaken = True
        self._queue.forsake(flight.job)

    async def _try_to_give_back(self, job: Job) -> None:
        try:
            await self._queue.release(job)
        except StoreUnavailable:
            log.warning("attempt_forsaken", message_id=job.message_id, route=job.route)
            self._queue.forsake(job)


def is_trouble(failure: Failed) -> bool:
    """Whether a failure says something about the next hop, rather than about this message."""
    if failure.stage is Stage.LOCAL:
        return False
    return failure.stage is not Stage.CONTENT or failure.reply is None


def _domain(address: str) -> str:
    return destination_of(address, RouteKind.MX)


async def _look_up(flight: Flight, destination: str) -> Hops | NoHops:
    """Where the destination's mail goes; bounded."""
    resolve = flight.track.resolve
    if resolve is None:
        return _NO_RESOLVER
    with trio.move_on_after(RESOLVE_S):
        return await resolve(destination)
    return _LOOK_UP_FAILED
