# SPDX-License-Identifier: Apache-2.0
"""What every part of the machine stands on: the facts, the input buffer, the replies and actions gathered so far.

The machine is one class in four layers, each in its own file: `core`, `content` (DATA and BDAT), `verbs` (a method a
command), `machine` (its inputs, and the loop).  `machine` is the only one to be used from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from hepmaild.events import Who
from hepmaild.mail.wire import ChunkDecoder, DataDecoder
from hepmaild.smtp import replies
from hepmaild.smtp.actions import AbortMessage, Action, Close, CloseReason, Send
from hepmaild.smtp.facts import SessionFacts, TlsInfo, TransactionFacts
from hepmaild.smtp.replies import Line
from hepmaild.smtp.sasl import Exchange
from hepmaild.smtp.state import State

MAX_WRONG_COMMANDS = 20
MAX_FAILED_AUTH = 3
MAX_SKIPPED_OCTETS = 1 << 20  # of one line without end
OVERRUN_FACTOR = 4  # a client that sends this many times the limit is not going to stop


class Mode(Enum):
    """How the next octets are read."""

    COMMAND = auto()
    AUTH = auto()  # a line of a SASL exchange
    SKIP = auto()  # the rest of a line that was too long
    DATA = auto()
    CHUNK = auto()
    DISCARD = auto()  # a chunk whose BDAT was refused
    CLOSED = auto()


class Phase(Enum):
    """What the machine waits for; the driver's time-outs follow from it."""

    IDLE = auto()  # between commands
    COMMAND = auto()  # inside a line
    CONTENT = auto()


class MachineCore:
    """The facts of one session, and the small words all layers use.

    hostname: as in banner and EHLO.  check_address: `mail.address.check_address`, the normalised address or
    ValueError.  tls: for implicit TLS, the handshake that is already done.
    """

    def __init__(
        self,
        *,
        hostname: str,
        max_message_octets: int,
        max_recipients: int,
        check_address: Callable[[str], str],
        tls: TlsInfo | None = None,
        peer: str = "",
    ) -> None:
        self.session = SessionFacts(tls=tls)
        self._transaction: TransactionFacts | None = None
        self._opening: TransactionFacts | None = None  # MAIL was said, the intake has not answered
        self._hostname = hostname
        self._max_octets = max_message_octets
        self._max_recipients = max_recipients
        self._check_address = check_address
        self._peer = peer
        self._mode = Mode.COMMAND
        self._waiting: type[Action] | None = None
        self._draining = False
        self._forgiving = False  # what is pipelined behind a refused command is no wrong command
        self._buffer = b""
        self._at = 0
        self._skipped = 0
        self._is_collecting = False  # `BeginMessage` was given, `EndMessage` or `AbortMessage` not yet
        self._exchange: Exchange | None = None
        self._decoder: DataDecoder | None = None
        self._chunks: ChunkDecoder | None = None
        self._chunk_left = 0
        self._chunk_octets = 0
        self._chunk_is_last = False
        self._discard_line = replies.NO_TRANSACTION_ANY_MORE
        self._out: list[bytes] = []
        self._actions: list[Action] = []
        self._now_us = 0

    @property
    def state(self) -> State:
        """The row of the table in `state`, derived from the facts."""
        transaction = self._transaction
        if transaction is not None:
            if transaction.chunked:
                return State.CHUNKS
            return State.RCPT if transaction.recipients else State.MAIL
        session = self.session
        if not session.helo:
            return State.CONNECTED
        if session.key is not None:
            return State.READY
        return State.PLAIN if session.tls is None else State.SECURED

    @property
    def phase(self) -> Phase:
        """What the next octets are for."""
        if self._mode is Mode.COMMAND or self._mode is Mode.AUTH:
            return Phase.COMMAND if self._at < len(self._buffer) else Phase.IDLE
        return Phase.COMMAND if self._mode is Mode.SKIP else Phase.CONTENT

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost by ending the session now."""
        return (
            self._transaction is None
            and self._opening is None
            and self._waiting is None
            and self._mode is not Mode.DISCARD
        )

    @property
    def is_closed(self) -> bool:
        """Whether `Close` was given."""
        return self._mode is Mode.CLOSED

    @property
    def buffered_octets(self) -> int:
        """Input held; bounded by the longest line plus one read."""
        return len(self._buffer) - self._at

    def _is_forgiven(self) -> bool:
        """Whether an out-of-order RCPT, DATA or BDAT follows from our own refusal of a command before it."""
        return self._forgiving or (self._transaction is not None and self._transaction.refused_recipient)

    def _new_transaction(self) -> TransactionFacts:
        transaction = TransactionFacts("", smtputf8=False)
        session = self.session
        before = session.messages + session.refused
        if before:
            tls = session.tls.version if session.tls is not None else ""
            text = f"message {before + 1} of this connection, {tls}, EHLO {session.helo}"
            transaction.steps.add(self._now_us, Who.NOTE, text)
        return transaction

    def _drop_transaction(self) -> None:
        """Forget the transaction, whole."""
        if self._is_collecting:
            self._is_collecting = False
            self._actions.append(AbortMessage())
        self._transaction = None
        self._decoder = None
        self._chunks = None

    def _refuse_mail(self, line: Line) -> None:
        """Refuse the whole message, wherever it stands."""
        self.session.refused += 1
        self._drop_transaction()
        self._forgiving = True
        self._finish_with(line)

    def _finish_with(self, line: Line) -> None:
        """Say it; a 421 is the last word (RFC 5321 §3.8)."""
        self._say(line)
        if line.code == 421:
            self._close(CloseReason.REFUSED)

    def _wrong(self, line: Line) -> None:
        """Refuse a wrong command; the last of too many is answered 421."""
        self.session.wrong += 1
        if self.session.wrong >= MAX_WRONG_COMMANDS:
            self._too_many_wrong()
        else:
            self._say(line)

    def _too_many_wrong(self) -> None:
        self._say(replies.TOO_MANY_WRONG)
        self._close(CloseReason.WRONG_COMMANDS)

    def _heard(self, text: str) -> None:
        self._note(Who.PEER, text)

    def _say(self, line: Line) -> None:
        self._out.append(line.wire)
        self._note(Who.US, line.text)

    def _note(self, who: Who, text: str) -> None:
        transaction = self._transaction or self._opening
        if transaction is not None:
            transaction.steps.add(self._now_us, who, text)
        else:
            self.session.note_prelude(self._now_us, who, text)

    def _flush(self) -> None:
        if self._out:
            self._actions.append(Send(self._out[0] if len(self._out) == 1 else b"".join(self._out)))
            self._out.clear()

    def _ask(self, question: Action) -> None:
        self._waiting = type(question)
        self._actions.append(question)

    def _answered(self, question: type[Action], now_us: int) -> None:
        if self._waiting is not question:
            raise RuntimeError(f"an answer to {question.__name__} was not asked for")
        self._waiting = None
        self._now_us = now_us

    def _close(self, reason: CloseReason) -> None:
        self._flush()
        self._actions.append(Close(reason))
        self._mode = Mode.CLOSED
        self._buffer, self._at = b"", 0
        self._decoder = self._chunks = self._exchange = None

    def _end(self, reason: CloseReason, line: Line | None, now_us: int) -> list[Action]:
        if self._mode is Mode.CLOSED:
            return []
        self._now_us = now_us
        self._waiting = None
        if line is not None:
            self._say(line)
        else:
            self._out.clear()
        self._close(reason)
        actions, self._actions = self._actions, []
        return actions
