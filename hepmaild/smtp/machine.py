# SPDX-License-Identifier: Apache-2.0
"""The submission server as a machine: octets and answers in, actions out; no clock, no socket (design.md section 7).

Each verb has a check, the cell of `state.REFUSALS`, and a proceed, a method in `verbs`.  The machine stops at a
question (`Verify`, `OpenTransaction`, `TakeCall`, `EndMessage`, `StartTls`) and looks at no further input before its
answer.  Replies are gathered while complete commands wait and sent together (RFC 2920).

Every input method takes `now_us`, Unix microseconds, only to date the steps of the transcript.
"""

from __future__ import annotations

from hepmaild.errors import Refusal
from hepmaild.events import Who
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import KeyIdentity, RateState, Verified
from hepmaild.mail.wire import DataDecoder
from hepmaild.smtp import commands, replies
from hepmaild.smtp.actions import (
    Action,
    BeginMessage,
    CloseReason,
    EndMessage,
    OpenTransaction,
    StartTls,
    TakeCall,
    Verify,
)
from hepmaild.smtp.commands import SyntaxRefusal
from hepmaild.smtp.core import MAX_SKIPPED_OCTETS, Mode
from hepmaild.smtp.facts import TlsInfo
from hepmaild.smtp.say import masked_auth, readable, refusal_line
from hepmaild.smtp.state import REFUSALS, VERBS, Verb
from hepmaild.smtp.verbs import VerbLayer

_IN_TRANSACTION = frozenset({Verb.RCPT, Verb.DATA})


class SubmissionMachine(VerbLayer):
    """One SMTP session.  `MachineCore` says what it is made from."""

    def start(self, now_us: int) -> list[Action]:
        """The connection stands: the banner."""
        self._now_us = now_us
        transport = f"TLS ({self.session.tls.version})" if self.session.tls else "TCP"
        self.session.note_prelude(now_us, Who.NOTE, f"connected by {transport} {self._peer}".rstrip())
        self._say(replies.line(Reply(220, "", f"{self._hostname} ESMTP hepmaild")))
        return self._run()

    def start_tls_first(self, info: TlsInfo, now_us: int) -> list[Action]:
        """The connection stands, and began with TLS (RFC 8314): the banner."""
        self.session.tls = info
        return self.start(now_us)

    def receive(self, data: bytes, now_us: int) -> list[Action]:
        """Octets arrived, at least one."""
        if self._mode is Mode.CLOSED:
            return []
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0
        self._now_us = now_us
        return self._run()

    def eof(self, now_us: int) -> list[Action]:
        """The peer will send nothing more.  What was complete has been acted on; the rest is dropped."""
        return self._end(CloseReason.EOF, None, now_us)

    def timeout(self, now_us: int) -> list[Action]:
        """The peer was silent for too long."""
        return self._end(CloseReason.TIMEOUT, replies.TIMED_OUT, now_us)

    def crash(self, now_us: int) -> list[Action]:
        """The driver failed: 421 4.3.0."""
        return self._end(CloseReason.CRASH, replies.CRASHED, now_us)

    def shut_down(self, now_us: int) -> list[Action]:
        """The daemon stops and waits no longer for this client."""
        return self._end(CloseReason.DRAIN, replies.SHUTTING_DOWN, now_us)

    def drain(self, now_us: int) -> list[Action]:
        """The daemon stops: an idle session ends now, a running transaction after its reply."""
        self._draining = True
        self._now_us = now_us
        return self._run() if self.is_idle and not self.is_closed else []

    def tls_established(self, info: TlsInfo, now_us: int) -> list[Action]:
        """The handshake asked for by `StartTls` succeeded: forget what was said before it (RFC 3207 §4.2)."""
        self._answered(StartTls, now_us)
        self._drop_transaction()
        self.session.tls = info
        self.session.helo = ""
        self.session.key = None
        self.session.note_prelude(now_us, Who.NOTE, f"TLS established: {info.version} {info.cipher}")
        return self._run()

    def auth_result(self, result: Verified | Refusal | None, now_us: int) -> list[Action]:
        """The answer to `Verify`; None: the store did not answer."""
        self._answered(Verify, now_us)
        if result is None:
            self._say(replies.STORE_DOWN_AT_AUTH)
        elif isinstance(result, Refusal):
            self._key_refused(refusal_line(result))
        else:
            self.session.key = result.key
            self._say(replies.AUTHENTICATED)
        return self._run()

    def mail_result(self, result: KeyIdentity | Refusal | None, now_us: int) -> list[Action]:
        """The answer to `OpenTransaction`; None: the store did not answer.  535: the session is as before AUTH."""
        self._answered(OpenTransaction, now_us)
        opening, self._opening = self._opening, None
        if isinstance(result, KeyIdentity):
            self.session.key = result
            self._transaction = opening
            self._forgiving = False
            self._say(replies.SENDER_OK)
            return self._run()
        self._forgiving = True
        line = replies.STORE_DOWN if result is None else refusal_line(result)
        if line.code == 535:
            self.session.key = None
            self._key_refused(line)
        else:
            self._refuse_mail(line)
        return self._run()

    def call_result(self, result: RateState | Refusal | None, now_us: int) -> list[Action]:
        """The answer to `TakeCall`; None: the store did not answer."""
        self._answered(TakeCall, now_us)
        if not isinstance(result, RateState):
            line = replies.STORE_DOWN if result is None else refusal_line(result)
            if self._chunks is None or line.code == 421:
                self._refuse_mail(line)
            else:
                self._discard_chunk(line)
            return self._run()
        self._is_collecting = True
        self._actions.append(BeginMessage())
        if self._chunks is None:
            self._decoder = DataDecoder(self._max_octets)
            self._mode = Mode.DATA
            self._say(replies.START_CONTENT)
            self._flush()
        else:
            self._begin_chunk()
        return self._run()

    def message_result(self, reply: Reply, now_us: int) -> list[Action]:
        """The answer to `EndMessage`."""
        self._answered(EndMessage, now_us)
        if reply.is_positive:
            self.session.messages += 1
        else:
            self.session.refused += 1
        self._drop_transaction()
        self._finish_with(replies.line(reply))
        self.session.prelude.steps.clear()
        return self._run()

    def content_lost(self) -> None:
        """The driver cannot keep the content (disk full): its end will be answered 451 4.3.0."""
        if self._transaction is not None:
            self._transaction.content_lost = True

    def _run(self) -> list[Action]:
        """Consume what can be consumed, and hand out the actions."""
        while self._waiting is None:
            mode = self._mode
            if mode is Mode.COMMAND or mode is Mode.AUTH:
                if not self._read_line():
                    break
            elif mode is Mode.CLOSED or self._at >= len(self._buffer):
                break
            elif mode is Mode.DATA:
                self._read_data()
            elif mode is Mode.CHUNK:
                self._read_chunk()
            elif mode is Mode.DISCARD:
                self._read_discarded()
            elif not self._skip_line():
                break
        if self._draining and self.is_idle and self._mode is not Mode.CLOSED:
            self._say(replies.SHUTTING_DOWN)
            self._close(CloseReason.DRAIN)
        if self._waiting is None and self._out:
            self._flush()
        actions, self._actions = self._actions, []
        return actions

    def _read_line(self) -> bool:
        """Act on one complete line; False when there is none."""
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\n", at) + 1
        octets = (end or len(buffer)) - at
        if octets >= commands.LINE_OCTETS:
            limit = commands.AUTH_LINE_OCTETS
            if self._mode is Mode.COMMAND:
                limit = commands.line_limit(buffer[at : at + 4].upper())
            if octets > limit or (octets == limit and not end):
                self._refuse_long_line()
                return True
        if not end:
            return False
        self._at = end
        line = buffer[at:end]
        self.session.commands += 1
        if line[-2:] != b"\r\n" or line.count(b"\r") != 1 or b"\0" in line:
            self._exchange, self._mode = None, Mode.COMMAND
            self._heard(f"*** ({len(line)} octets)")
            self._wrong(replies.BAD_LINE_END)
        elif self._mode is Mode.AUTH:
            self._auth_line(line[:-2])
        else:
            self._command(line[:-2])
        return True

    def _refuse_long_line(self) -> None:
        """Answer now, for its end may never come, and skip to it."""
        self._exchange = None
        self._mode = Mode.SKIP
        self._skipped = 0
        self._heard("*** (a line that is too long)")
        self._wrong(replies.LINE_TOO_LONG)

    def _skip_line(self) -> bool:
        """Skip the rest of a line that was too long; False when its end has not come."""
        end = self._buffer.find(b"\n", self._at) + 1
        self._skipped += (end or len(self._buffer)) - self._at
        self._at = end or len(self._buffer)
        if self._skipped > MAX_SKIPPED_OCTETS:
            self._say(replies.ENDLESS_LINE)
            self._close(CloseReason.ENDLESS_LINE)
        elif end:
            self._mode = Mode.COMMAND
        return end > 0

    def _command(self, line: bytes) -> None:
        """One command line, without CRLF."""
        word, _, rest = line.partition(b" ")
        verb = VERBS.get(word) or VERBS.get(word.upper())
        if verb is None:
            # It may be a secret that was meant for an AUTH we refused, so it is neither kept nor repeated.
            self._heard(f"*** (unknown command, {len(line)} octets)")
            self._wrong(replies.UNKNOWN_COMMAND)
            return
        refusal = REFUSALS[self.state][verb]
        if refusal is None and verb is Verb.MAIL:
            self._opening = self._new_transaction()
        self._heard(masked_auth(rest) if verb is Verb.AUTH else readable(line))
        try:
            if refusal is None:
                self._PROCEED[verb](self, rest)
            elif verb is Verb.BDAT:
                self._refused_bdat(rest, refusal)
            elif verb in _IN_TRANSACTION and self._is_forgiven():
                self._say(refusal)
            else:
                self._wrong(refusal)
        except SyntaxRefusal as problem:
            self._opening = None
            if verb is Verb.MAIL:
                self._forgiving = True
            if problem.wrong:
                self._wrong(problem.line)
            else:
                self._say(problem.line)
