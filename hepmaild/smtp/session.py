# SPDX-License-Identifier: Apache-2.0
"""One SMTP connection: reads, lets the machine decide, does what it says.  Owns time-outs and the stream.

This is one of the three places with `except Exception`: a crash here is logged with the session's id, answered
421 4.3.0, and ends nothing but its own connection.
"""

from __future__ import annotations

import contextlib
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from hepmaild.config import LimitSettings, SmtpSettings
from hepmaild.errors import ErrorKind, Refusal, StoreUnavailable
from hepmaild.intake import Intake
from hepmaild.mail.address import check_address
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import (
    Door,
    KeyIdentity,
    Kind,
    Origin,
    RateState,
    Receipt,
    Recipient,
    Submission,
    Verified,
)
from hepmaild.smtp import actions as act
from hepmaild.smtp.core import Phase
from hepmaild.smtp.facts import TlsInfo
from hepmaild.smtp.keep import ContentKeeper
from hepmaild.smtp.machine import SubmissionMachine
from hepmaild.smtp.say import refusal_reply
from hepmaild.timers import Timers, current_clock
from hepmaild.tlsstream import TlsStream

log = structlog.get_logger()

HANDSHAKE_TIMEOUT_S = 30.0
SEND_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 300.0  # from the first octet of a line to its end (RFC 5321 §4.5.3.2.7)
BLOCK_TIMEOUT_S = 180.0  # between two reads of content (RFC 5321 §4.5.3.2.5)
CONTENT_TIMEOUT_S = 3600.0  # for all of it: an octet now and then must not hold a connection for ever
LINGER_S = 3.0
DRAIN_PATIENCE_S = 15.0  # for the next octets of a running transaction, once the daemon stops
DRAIN_HANDSHAKE_S = 3.0  # then, for TLS to be there: nothing is lost with who has not begun
MAX_FAILED_KEY_WAIT_S = 10.0
_NOT_KEPT = Reply(451, "4.3.0", "Temporary failure, nothing was accepted, try again")
_NO_ANSWER = Reply(451, "4.3.0", "Temporary failure, no answer from the store, try again")  # it may have committed


@dataclass(slots=True)
class SessionSetup:
    """What all sessions of a door share.

    ssl_context: called for each handshake, so that a renewed one is used.  timers: somebody runs them.
    """

    hostname: str
    settings: SmtpSettings
    limits: LimitSettings
    intake: Intake
    ssl_context: Callable[[], ssl.SSLContext]
    timers: Timers
    spool_dir: Path | None = None
    spool_limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(4))


class SmtpSession:
    """One connection, from accept to close.  `run` serves it; `drain` asks it, from another task, to end when idle."""

    def __init__(
        self,
        setup: SessionSetup,
        stream: trio.abc.HalfCloseableStream,
        *,
        peer_ip: str,
        session_id: str,
        implicit: bool,
    ) -> None:
        self._setup = setup
        self._stream = stream
        self._transport = stream  # below TLS
        self._peer_ip = peer_ip
        self._id = session_id
        self._implicit = implicit
        self._machine = SubmissionMachine(
            hostname=setup.hostname,
            max_message_octets=setup.settings.max_message_bytes,
            max_recipients=setup.limits.recipients_per_message,
            check_address=check_address,
            peer=peer_ip,
        )
        self._keeper = ContentKeeper(setup.spool_dir, setup.spool_limiter)
        self._scope = trio.CancelScope()
        self._timer = setup.timers.open(self._scope)
        self._time = current_clock()
        self._drain_wanted = False
        self._drain_told = False
        self._reading = False
        self._shaking_hands = False
        self._reading_phase = Phase.IDLE
        self._reading_behind = 0  # so many commands: a later line, or a later content, has its own time
        self._phase_began = 0.0
        self._reason = ""

    def drain(self) -> None:
        """The daemon stops.  An idle session gets 421 4.3.2 now, a running transaction goes on to its reply, as long
        as its client goes on too; who shakes hands or takes what is sent is not waited for as long as otherwise."""
        self._drain_wanted = True
        if self._reading and self._machine.is_idle:
            self._timer.expire()
        elif self._timer.deadline < math.inf:  # while the intake is asked there is none
            patience_s = DRAIN_HANDSHAKE_S if self._shaking_hands else DRAIN_PATIENCE_S
            self._timer.deadline = min(self._timer.deadline, self._time() + patience_s)

    async def run(self) -> None:
        """Serve until the end.  Raises nothing; cancellation cuts the connection."""
        began = self._time()
        try:
            await self._run_bounded()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as problem:
            self._reason = self._reason or f"broken: {problem}"
        except Exception:
            self._reason = "crash"
            log.exception("session_crashed", session=self._id, peer=self._peer_ip)
            await self._last_words(self._machine.crash(_now_us()))
        finally:
            self._setup.timers.close(self._timer)
            self._keeper.discard()
            self._log_end(self._time() - began)
            await trio.aclose_forcefully(self._stream)  # the last: cancelled, it closes and raises

    async def _run_bounded(self) -> None:
        with self._scope:
            await self._serve()
        if self._scope.cancelled_caught:
            if not self._reading:
                what = "TLS began" if self._shaking_hands else "sending"
                self._reason = f"{act.CloseReason.DRAIN if self._drain_wanted else 'timeout'} while {what}"
                return
            if self._drain_wanted:
                await self._last_words(self._machine.shut_down(_now_us()))
            else:
                await self._last_words(self._machine.timeout(_now_us()))
        elif self._reason != act.CloseReason.EOF:
            await self._close_cleanly()

    async def _serve(self) -> None:
        machine = self._machine
        if self._implicit:
            await self._act(machine.start_tls_first(await self._shake_hands(), _now_us()))
        else:
            await self._act(machine.start(_now_us()))
        while not machine.is_closed:
            if self._drain_wanted and not self._drain_told:
                self._drain_told = True
                await self._act(machine.drain(_now_us()))
                continue
            data = await self._read()
            await self._act(machine.receive(data, _now_us()) if data else machine.eof(_now_us()))

    async def _read(self) -> bytes:
        """The next octets, within the time that what they are for may take."""
        now = self._time()
        phase, commands = self._machine.phase, self._machine.session.commands
        if phase is not self._reading_phase or phase is Phase.IDLE or commands != self._reading_behind:
            self._reading_phase, self._reading_behind = phase, commands
            self._phase_began = now
        if phase is Phase.IDLE:
            deadline = now + self._setup.limits.idle_timeout_s
        elif phase is Phase.COMMAND:
            deadline = self._phase_began + COMMAND_TIMEOUT_S
        else:
            deadline = min(now + BLOCK_TIMEOUT_S, self._phase_began + CONTENT_TIMEOUT_S)
        self._timer.deadline = min(deadline, now + DRAIN_PATIENCE_S) if self._drain_wanted else deadline
        self._reading = True
        data = await self._stream.receive_some()
        if self._timer.is_over:
            # Both happened at once.  Now is the time to be cancelled, not inside the intake.
            await trio.lowlevel.checkpoint()
        self._reading = False
        return bytes(data)

    async def _act(self, actions: list[act.Action]) -> None:
        """Do what the machine says, and what it says to the answers."""
        while actions:
            answer: list[act.Action] = []
            for action in actions:
                kind = type(action)
                if kind is act.Send:
                    await self._send(action.octets)  # type: ignore[union-attr]
                elif kind is act.MessageChunk:
                    if not await self._keeper.write(action.octets):  # type: ignore[union-attr]
                        self._machine.content_lost()
                elif kind is act.BeginMessage:
                    self._keeper.begin()
                elif kind is act.AbortMessage:
                    self._keeper.discard()
                elif isinstance(action, act.Close):
                    self._reason = action.reason
                else:
                    answer = await self._ask(action)
            actions = answer

    async def _send(self, octets: bytes) -> None:
        self._timer.deadline = self._time() + (DRAIN_PATIENCE_S if self._drain_wanted else SEND_TIMEOUT_S)
        await self._stream.send_all(octets)

    async def _ask(self, question: act.Action) -> list[act.Action]:
        """Get the answer to a question.  The intake bounds its own time; so does `_shake_hands`."""
        self._timer.deadline = math.inf
        machine = self._machine
        if isinstance(question, act.OpenTransaction):
            return machine.mail_result(await self._open_transaction(question.key), _now_us())
        if isinstance(question, act.TakeCall):
            return machine.call_result(await self._take_call(question), _now_us())
        if isinstance(question, act.EndMessage):
            return machine.message_result(await self._accept(question), _now_us())
        if isinstance(question, act.Verify):
            return machine.auth_result(await self._authenticate(question.secret), _now_us())
        assert isinstance(question, act.StartTls)
        return machine.tls_established(await self._shake_hands(), _now_us())

    # ------------------------------------------------------------------ questions

    async def _authenticate(self, secret: str) -> Verified | Refusal | None:
        try:
            result = await self._setup.intake.authenticate(secret, door=Door.SMTP, peer_ip=self._peer_ip)
        except StoreUnavailable:
            return None
        if isinstance(result, Refusal) and result.kind is ErrorKind.TOO_MANY_FAILED_KEYS:
            await trio.sleep(min(result.retry_after_s or 1, MAX_FAILED_KEY_WAIT_S))
        return result

    async def _open_transaction(self, key: KeyIdentity) -> KeyIdentity | Refusal | None:
        try:
            return await self._setup.intake.open_transaction(key, door=Door.SMTP, peer_ip=self._peer_ip)
        except StoreUnavailable:
            return None

    async def _take_call(self, question: act.TakeCall) -> RateState | Refusal | None:
        try:
            return await self._setup.intake.take_call(question.key, recipients=question.recipients)
        except StoreUnavailable:
            return None

    async def _accept(self, question: act.EndMessage) -> Reply:
        """Hand the message over.  From the answer `Receipt` on its content belongs to the intake."""
        content = await self._keeper.finish()
        if content is None:
            return _NOT_KEPT
        envelope, facts = question.envelope, self._machine.session
        tls = facts.tls or TlsInfo("", "")
        submission = Submission(
            key=question.key,
            origin=Origin(Door.SMTP, self._peer_ip, self._id, tls.version, tls.cipher, facts.helo),
            recipients=tuple([Recipient(address, Kind.TO) for address in envelope.recipients]),
            source=content,
            reverse_path=envelope.reverse_path,
            smtputf8=envelope.smtputf8,
            steps=envelope.steps,
        )
        result: Receipt | Refusal | None = None
        try:
            result = await self._setup.intake.accept(submission)
        except StoreUnavailable:
            return _NO_ANSWER
        finally:
            if not isinstance(result, Receipt):
                content.close()
        if isinstance(result, Refusal):
            return refusal_reply(result)
        said = f"{result.status.value} as {result.message_id}"
        return Reply(250, "2.0.0", f"{said}\n{result.retry_hint}" if result.is_capped else said)

    # ------------------------------------------------------------------ TLS, the end

    async def _shake_hands(self) -> TlsInfo:
        self._timer.deadline = self._time() + (DRAIN_HANDSHAKE_S if self._drain_wanted else HANDSHAKE_TIMEOUT_S)
        self._shaking_hands = True
        stream = TlsStream(self._transport, self._setup.ssl_context())
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as problem:
            self._reason = f"TLS handshake failed: {problem}"
            raise
        self._shaking_hands = False
        self._stream = stream
        return TlsInfo(*stream.negotiated())

    async def _last_words(self, actions: list[act.Action]) -> None:
        """Say why the session ends, if the peer listens, and close."""
        with trio.move_on_after(LINGER_S), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for action in actions:
                if isinstance(action, act.Send):
                    await self._stream.send_all(action.octets)
                elif isinstance(action, act.Close):
                    self._reason = action.reason
            await self._close_cleanly()

    async def _close_cleanly(self) -> None:
        """End our side, then read what the peer still sends: closing with octets unread would reset the connection,
        and with it the reply that tells the peer why."""
        with trio.move_on_after(LINGER_S), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.send_eof()
            while await self._transport.receive_some():
                pass

    def _log_end(self, seconds: float) -> None:
        facts = self._machine.session
        log.info(
            "session_closed",
            session=self._id,
            peer=self._peer_ip,
            reason=str(self._reason) or "cancelled",
            tls=facts.tls.version if facts.tls is not None else "",
            key=facts.key.key_id if facts.key is not None else "",
            commands=facts.commands,
            messages=facts.messages,
            refused=facts.refused,
            wrong=facts.wrong,
            failed_auth=facts.failed_auth,
            seconds=round(seconds, 3),
        )


def _now_us() -> int:
    return time.time_ns() // 1000
