# SPDX-License-Identifier: Apache-2.0
"""What each command does where `state.REFUSALS` lets it proceed."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from hepmaild.mail.address import key_of
from hepmaild.mail.reply import Reply
from hepmaild.mail.wire import ChunkDecoder
from hepmaild.smtp import commands, replies
from hepmaild.smtp.actions import CloseReason, OpenTransaction, StartTls, TakeCall, Verify
from hepmaild.smtp.commands import SyntaxRefusal
from hepmaild.smtp.content import ContentLayer
from hepmaild.smtp.core import MAX_FAILED_AUTH, MAX_WRONG_COMMANDS, OVERRUN_FACTOR, Mode
from hepmaild.smtp.replies import Line
from hepmaild.smtp.sasl import Challenge, Exchange, SaslError, Secret
from hepmaild.smtp.say import ehlo_reply
from hepmaild.smtp.state import Verb


def _text(octets: bytes) -> str:
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise SyntaxRefusal(replies.NOT_UTF8) from None


class VerbLayer(ContentLayer):
    """A method a verb; `proceed` finds it."""

    def _ehlo(self, rest: bytes) -> None:
        self._greeted(rest)
        under_tls = self.session.tls is not None
        self._say(ehlo_reply(self._hostname, self._max_octets, self._max_recipients, under_tls=under_tls))

    def _helo(self, rest: bytes) -> None:
        self._greeted(rest)
        self._say(replies.line(Reply(250, "", self._hostname)))

    def _greeted(self, rest: bytes) -> None:
        self.session.helo = commands.parse_helo(_text(rest))
        self._drop_transaction()
        self._forgiving = False

    def _starttls(self, rest: bytes) -> None:
        if rest.strip():
            raise SyntaxRefusal(replies.NO_ARGUMENT)
        if self._at < len(self._buffer):
            # Would run as if it had come by TLS (CVE-2011-0411).
            self._close(CloseReason.PLAINTEXT_BEHIND_STARTTLS)
            return
        self._say(replies.READY_FOR_TLS)
        self._flush()
        self._ask(StartTls())

    def _auth(self, rest: bytes) -> None:
        mechanism, initial = commands.parse_auth(rest)
        try:
            exchange = Exchange(mechanism)
            self._auth_outcome(exchange, exchange.begin(initial))
        except SaslError as problem:
            self._wrong(problem.line)

    def _auth_line(self, line: bytes) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        self._mode = Mode.COMMAND
        self._heard("*" if line == b"*" else "***")
        try:
            self._auth_outcome(exchange, exchange.step(line))
        except SaslError as problem:
            self._wrong(problem.line)

    def _auth_outcome(self, exchange: Exchange, outcome: Challenge | Secret) -> None:
        if isinstance(outcome, Challenge):
            self._exchange = exchange
            self._mode = Mode.AUTH
            self._say(Line(334, b"334 " + outcome.word + b"\r\n", f"334 {outcome.word.decode()}"))
        else:
            self._flush()
            self._ask(Verify(outcome.value))

    def _key_refused(self, line: Line) -> None:
        """A key was refused: at AUTH, or at MAIL when it happened since."""
        if line.code == 421:
            self._finish_with(line)
            return
        self.session.failed_auth += 1
        if self.session.failed_auth >= MAX_FAILED_AUTH:
            self._say(replies.TOO_MANY_FAILED_AUTH)
            self._close(CloseReason.FAILED_AUTH)
        else:
            self._say(line)

    def _mail(self, rest: bytes) -> None:
        opening, key = self._opening, self.session.key
        assert opening is not None
        assert key is not None
        command = commands.parse_mail(_text(rest))
        if command.size > self._max_octets:
            raise SyntaxRefusal(replies.TOO_LARGE, wrong=False)
        opening.reverse_path = command.reverse_path
        opening.smtputf8 = command.smtputf8
        self._ask(OpenTransaction(key))

    def _rcpt(self, rest: bytes) -> None:
        transaction = self._transaction
        assert transaction is not None
        try:
            given = commands.parse_rcpt(_text(rest))
            if not transaction.smtputf8 and not given.isascii():
                raise SyntaxRefusal(replies.NEEDS_SMTPUTF8, wrong=False)
            address = self._check_address(given)
        except SyntaxRefusal:
            transaction.refused_recipient = True
            raise
        except ValueError as problem:
            transaction.refused_recipient = True
            self._say(replies.line(Reply(501, "5.1.3", str(problem))))
            return
        key = key_of(address)
        if key not in transaction.recipients:
            if len(transaction.recipients) >= self._max_recipients:
                text = f"Too many recipients, {self._max_recipients} at most; send the rest in another message"
                self._say(replies.line(Reply(452, "4.5.3", text)))
                return
            transaction.recipients[key] = address
        self._say(replies.RECIPIENT_OK)

    def _data(self, rest: bytes) -> None:
        transaction, key = self._transaction, self.session.key
        assert transaction is not None
        assert key is not None
        if rest.strip():
            raise SyntaxRefusal(replies.NO_ARGUMENT)
        self._ask(TakeCall(key, len(transaction.recipients)))

    def _bdat(self, rest: bytes) -> None:
        transaction, key = self._transaction, self.session.key
        assert transaction is not None
        assert key is not None
        octets, is_last = self._parse_bdat(rest)
        if self.is_closed:
            return
        self._chunk_left = self._chunk_octets = octets
        self._chunk_is_last = is_last
        sofar = self._chunks.size if self._chunks is not None else 0
        if sofar + octets > self._max_octets:
            self._discard_chunk(replies.TOO_LARGE)
            return
        transaction.chunked = True
        if self._chunks is not None:
            self._begin_chunk()
            return
        self._chunks = ChunkDecoder(self._max_octets)
        self._ask(TakeCall(key, len(transaction.recipients)))

    def _refused_bdat(self, rest: bytes, refusal: Line) -> None:
        """A BDAT out of order: its octets come all the same (RFC 3030 §2)."""
        if not self._is_forgiven():
            self.session.wrong += 1
            if self.session.wrong >= MAX_WRONG_COMMANDS:
                self._too_many_wrong()
                return
        octets, _ = self._parse_bdat(rest)
        if not self.is_closed:
            self._chunk_left = octets
            self._discard_line = refusal
            self._begin_discard()

    def _parse_bdat(self, rest: bytes) -> tuple[int, bool]:
        """Octets and LAST.  Where the octets that follow cannot be told from commands, the session is over."""
        try:
            octets, is_last = commands.parse_bdat(rest)
        except SyntaxRefusal as problem:
            self._say(problem.line)
            self._close(CloseReason.BAD_CHUNK)
            return 0, False
        if octets > OVERRUN_FACTOR * self._max_octets:
            self._say(replies.TOO_LARGE)
            self._close(CloseReason.OVERSIZE)
        return octets, is_last

    def _rset(self, _rest: bytes) -> None:
        self._drop_transaction()
        self._forgiving = False
        self._say(replies.OK)

    def _noop(self, _rest: bytes) -> None:
        self._say(replies.OK)

    def _vrfy(self, _rest: bytes) -> None:
        self._say(replies.CANNOT_VERIFY)

    def _help(self, _rest: bytes) -> None:
        self._say(replies.HELP)

    def _quit(self, _rest: bytes) -> None:
        self._say(replies.BYE)
        self._close(CloseReason.QUIT)

    _PROCEED: ClassVar[dict[Verb, Callable[[VerbLayer, bytes], None]]] = {
        Verb.EHLO: _ehlo,
        Verb.HELO: _helo,
        Verb.STARTTLS: _starttls,
        Verb.AUTH: _auth,
        Verb.MAIL: _mail,
        Verb.RCPT: _rcpt,
        Verb.DATA: _data,
        Verb.BDAT: _bdat,
        Verb.RSET: _rset,
        Verb.NOOP: _noop,
        Verb.QUIT: _quit,
        Verb.VRFY: _vrfy,
        Verb.HELP: _help,
    }
