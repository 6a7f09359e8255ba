# SPDX-License-Identifier: Apache-2.0
"""The client's side of SMTP as a machine without input or output (RFC 5321, RFC 2920, RFC 3207, RFC 4954).

One machine is one connection.  The driver gives it what arrives (`receive`, `eof`, `tls_established`) and does what it
answers: one action, or None for "read on".  First the session opens:

    greeting → EHLO (HELO) → STARTTLS → EHLO → AUTH → `Ready`

then any number of transactions, each begun by `begin`:

    MAIL, RCPT…, DATA → `WantContent` → driver sends content → **commits the in-doubt mark** → `dot_sent` → `Finished`

Where the next hop offers PIPELINING, MAIL, every RCPT and DATA leave in one send.  `Failed` ends the connection at any
time; the transaction then keeps what was answered so far, for `outcome.judge`.

Everything said goes into the transcript in the peer's own words, without secrets.  Times are arguments.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from hepmaild.config import TlsMode
from hepmaild.delivery.capabilities import Capabilities, Envelope, parse_capabilities, refuse_locally
from hepmaild.delivery.reader import ProtocolError, ReplyReader
from hepmaild.events import Transcript, Who
from hepmaild.mail.reply import Reply
from hepmaild.masking import KEY_PREFIX, mask_keys

MASK = "****"
PIECE = 8  # characters of what AUTH says; so many in a row are nobody's to see


class Stage(StrEnum):
    """Where in the conversation something happened; decides what it means and how long it may take."""

    CONNECT = "connect"
    TLS = "TLS handshake"
    GREETING = "greeting"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    IDLE = "idle"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    CONTENT = "content"
    DOT = "final dot"
    RSET = "RSET"
    QUIT = "QUIT"
    LOCAL = "here"  # nothing was sent: our own check refused it


@dataclass(frozen=True, slots=True)
class Credentials:
    """What AUTH says.  Never shown."""

    username: str
    password: str = field(repr=False)


# What the driver is to do.  One action at a time: SMTP is lock-step, and a pipelined group counts as one step.


@dataclass(frozen=True, slots=True)
class Send:
    """Send these octets, then read."""

    data: bytes = field(repr=False)  # may hold AUTH


class Do(Enum):
    """Actions without an argument."""

    START_TLS = "start TLS, then call tls_established"
    READY = "the session is open: begin a transaction"
    WANT_CONTENT = "send content, commit the in-doubt mark, send the dot, call dot_sent, read"
    SEND_LONE_DOT = "nobody was accepted but 354 came: send a lone dot, call dot_sent, read (RFC 2920 §3.1)"
    FINISHED = "the transaction is over; `usable` says whether the connection still is"
    CLOSED = "QUIT was answered: close"


@dataclass(frozen=True, slots=True)
class Failed:
    """The connection is of no further use: close it.  reply: the peer's, if it gave one.  text: safe to show."""

    stage: Stage
    reply: Reply | None
    text: str


Action = Send | Do | Failed


@dataclass(slots=True)
class Transaction:
    """What was answered so far, one reply slot for each command.  rcpt and local: one for each recipient."""

    envelope: Envelope
    local: list[Reply | None]
    rcpt: list[Reply | None]
    mail: Reply | None = None
    data: Reply | None = None
    dot: Reply | None = None
    dot_is_out: bool = False

    @property
    def anybody_accepted(self) -> bool:
        """Whether the next hop accepted a recipient."""
        if self.mail is None or not 200 <= self.mail.code < 300:
            return False
        return any(reply is not None and 200 <= reply.code < 300 for reply in self.rcpt)


class ClientMachine:
    """One connection.  See the module's page.

    stage: what is waited for.  transaction: the current or last one.  usable: whether another may begin.  replies: how
    many came so far.
    """

    def __init__(
        self,
        hello: str,
        *,
        tls: TlsMode,
        credentials: Credentials | None,
        transcript: Transcript,
        tls_is_on: bool = False,
    ) -> None:
        self.stage = Stage.GREETING
        self.capabilities = Capabilities()
        self.transaction: Transaction | None = None
        self.transcript = transcript
        self.tls_is_on = tls_is_on
        self.replies = 0
        self._hello = hello
        self._tls = tls
        self._credentials = credentials
        self._secrets: tuple[str, ...] = ()
        self._pieces: frozenset[str] = frozenset()  # of what AUTH says, all there are
        self._reader = ReplyReader()
        self._dead = False
        self._helo = False
        self._must_reset = False
        self._auth_lines: list[bytes] = []
        self._unsent: list[tuple[Stage, int, bytes]] = []  # commands of a lock-step transaction
        self._expected: list[tuple[Stage, int]] = []  # commands sent, whose replies are due; reversed
        self._handlers: dict[Stage, Callable[[Reply, int], Action | None]] = {
            Stage.GREETING: self._on_greeting,
            Stage.EHLO: self._on_ehlo,
            Stage.STARTTLS: self._on_starttls,
            Stage.AUTH: self._on_auth,
            Stage.CONTENT: self._on_early_reply,
            Stage.DOT: self._on_dot,
            Stage.QUIT: self._on_quit,
        }

    @property
    def usable(self) -> bool:
        """Whether a transaction may begin: the session is open, in step, and nobody said goodbye."""
        return not self._dead and self.stage is Stage.IDLE and not self._reader.has_leftover

    # What comes in

    def receive(self, data: bytes | bytearray, now_us: int) -> Action | None:
        """Take octets from the peer (b"" at its end).  None: read on."""
        if not data:
            return self.eof()
        if self._dead:
            return self._fail(Stage.IDLE, None, "the connection is already given up")
        self._reader.feed(data)
        try:
            return self._advance(now_us)
        except ProtocolError as error:
            return self._fail(self.stage, None, f"protocol error: {error}")

    def eof(self) -> Failed:
        """The peer closed, or the connection broke."""
        return self._fail(self.stage, None, "the connection was lost")

    def timed_out(self) -> Failed:
        """The peer did not answer in time."""
        return self._fail(self.stage, None, "no answer in time")

    def tls_established(self, version: str, cipher: str, now_us: int) -> Send:
        """The handshake is done; everything learned before it is forgotten (RFC 3207 §4.2)."""
        self.tls_is_on = True
        self.capabilities = Capabilities()
        self.transcript.add(now_us, Who.NOTE, f"{version} {cipher}")
        return self._say_hello(now_us)

    def _advance(self, now_us: int) -> Action | None:
        while True:
            reply = self._reader.next()
            if reply is None:
                return None
            self.replies += 1
            if self._secrets or KEY_PREFIX in reply.text:
                reply = self._masked(reply)
            if self.stage is not Stage.EHLO:  # every line of which counts
                # Kept for each recipient of each attempt, and told to who waits: a hundred of the longest are 5 MB.
                reply = reply.shortened()
            self.transcript.add(now_us, Who.PEER, str(reply))
            handler = self._handlers.get(self.stage)
            action = self._on_transaction_reply(reply, now_us) if handler is None else handler(reply, now_us)
            if action is None:
                continue
            if self._reader.has_leftover and not isinstance(action, Failed):
                if action is Do.FINISHED or action is Do.CLOSED:
                    self._dead = True  # out of step: what it said before still counts
                elif action is Do.START_TLS:
                    raise ProtocolError("plaintext behind the reply to STARTTLS (RFC 3207, CVE-2011-0411)")
                else:
                    return self._on_reply_to_nothing(now_us)
            return action

    def _on_reply_to_nothing(self, now_us: int) -> Failed:
        """The peer says more than it was asked: goodbye, as who refuses one recipient too many (RFC 5321 §3.8)."""
        reply = self._reader.next()
        if reply is None or reply.code != 421:
            raise ProtocolError("a reply to nothing")
        reply = self._masked(reply).shortened()
        self.transcript.add(now_us, Who.PEER, str(reply))
        return self._fail(self.stage, reply, "the next hop ended the session")

    def _fail(self, stage: Stage, reply: Reply | None, text: str) -> Failed:
        self._dead = True
        self.stage = stage
        self._forget_secrets()
        return Failed(stage, reply, text)

    # Opening the session

    def _on_greeting(self, reply: Reply, now_us: int) -> Action:
        if reply.code != 220:
            return self._fail(Stage.GREETING, reply, "the greeting refused us")
        return self._say_hello(now_us)

    def _say_hello(self, now_us: int) -> Send:
        self.stage = Stage.EHLO
        return self._command(f"{'HELO' if self._helo else 'EHLO'} {self._hello}", now_us)

    def _on_ehlo(self, reply: Reply, now_us: int) -> Action:
        if reply.is_permanent and not self._helo:
            self._helo = True
            return self._say_hello(now_us)
        if reply.code != 250:
            return self._fail(Stage.EHLO, reply, "EHLO was refused")
        self.capabilities = Capabilities() if self._helo else parse_capabilities(reply)
        if not self.tls_is_on and self._tls in {TlsMode.STARTTLS, TlsMode.OPPORTUNISTIC}:
            if self.capabilities.starttls:
                self.stage = Stage.STARTTLS
                return self._command("STARTTLS", now_us)
            if self._tls is TlsMode.STARTTLS:
                return self._fail(Stage.STARTTLS, None, "STARTTLS is required but not offered")
        return self._log_in(now_us)

    def _on_starttls(self, reply: Reply, now_us: int) -> Action:
        if reply.code == 220:
            return Do.START_TLS
        if self._tls is TlsMode.OPPORTUNISTIC and reply.code != 421:
            return self._log_in(now_us)
        return self._fail(Stage.STARTTLS, reply, "STARTTLS was refused")

    def _log_in(self, now_us: int) -> Action:
        """AUTH, if the route has a user name (RFC 4954, RFC 4616; LOGIN as everybody does it)."""
        credentials = self._credentials
        if credentials is None:
            return self._open()
        if not self.tls_is_on and self._tls is not TlsMode.NONE:
            return self._fail(Stage.AUTH, None, "the password is not sent without TLS")
        self.stage = Stage.AUTH
        user, password = credentials.username.encode(), credentials.password.encode()
        plain = base64.b64encode(b"\0" + user + b"\0" + password)
        encoded = base64.b64encode(password)
        said = (plain.decode(), encoded.decode())
        self._secrets = tuple(text for text in (*said, credentials.password) if text)
        self._pieces = frozenset(text[n : n + PIECE] for text in said for n in range(len(text) - PIECE + 1))
        offered = self.capabilities.auth
        if "PLAIN" in offered:
            self._auth_lines = []
            return self._secret(f"AUTH PLAIN {MASK}", b"AUTH PLAIN " + plain, now_us)
        if "LOGIN" in offered:
            self._auth_lines = [encoded, base64.b64encode(user)]
            return self._command("AUTH LOGIN", now_us)
        return self._fail(Stage.AUTH, None, "a user name is set but neither AUTH PLAIN nor LOGIN is offered")

    def _on_auth(self, reply: Reply, now_us: int) -> Action:
        if reply.code == 334 and self._auth_lines:
            return self._secret(MASK, self._auth_lines.pop(), now_us)
        if reply.code == 235:
            return self._open()
        return self._fail(Stage.AUTH, reply, "the login was refused")

    def _forget_secrets(self) -> None:
        self._credentials = None
        self._secrets = ()
        self._pieces = frozenset()
        self._auth_lines = []

    def _open(self) -> Action:
        self._forget_secrets()
        self.stage = Stage.IDLE
        return Do.READY

    # Transactions

    def begin(self, envelope: Envelope, transcript: Transcript, now_us: int) -> Action:
        """Begin a transaction on a `usable` connection.

        FINISHED at once when our own checks refuse every recipient: see `transaction.local`.
        """
        if not self.usable:
            raise RuntimeError("the connection is not ready for a transaction")
        self.transcript = transcript
        local = refuse_locally(envelope, self.capabilities)
        self.transaction = Transaction(envelope, local, [None] * len(local))
        commands = self._commands(envelope, local)
        if not commands:
            return Do.FINISHED
        if self._must_reset:
            commands.insert(0, (Stage.RSET, 0, "RSET"))
        self._must_reset = True  # until a reply to a dot ends the transaction at the peer
        for _, _, text in commands:
            if self.capabilities.pipelining:
                transcript.add(now_us, Who.US, text)
        if self.capabilities.pipelining:
            self._unsent = []
            self._expected = [(stage, index) for stage, index, _ in reversed(commands)]
            self.stage = commands[0][0]
            return Send("".join([f"{text}\r\n" for _, _, text in commands]).encode())
        self._expected = []
        self._unsent = [(stage, index, text.encode()) for stage, index, text in reversed(commands)]
        return self._next_command(now_us)

    def _commands(self, envelope: Envelope, local: list[Reply | None]) -> list[tuple[Stage, int, str]]:
        """MAIL, RCPT for everybody who is not refused here, DATA; empty when nobody is left."""
        recipients = [
            (Stage.RCPT, index, f"RCPT TO:<{address}>")
            for index, address in enumerate(envelope.recipients)
            if local[index] is None
        ]
        if not recipients:
            return []
        offered = self.capabilities
        mail = f"MAIL FROM:<{envelope.reverse_path}>"
        if offered.offers_size:
            mail += f" SIZE={envelope.size}"
        if offered.eight_bit and envelope.eight_bit:  # where it is not offered, the content is the same: quirks.md
            mail += " BODY=8BITMIME"
        if offered.smtputf8 and envelope.needs_smtputf8:
            mail += " SMTPUTF8"
        return [(Stage.MAIL, 0, mail), *recipients, (Stage.DATA, 0, "DATA")]

    def _next_command(self, now_us: int) -> Send:
        """Lock-step: the next command of the transaction."""
        stage, index, line = self._unsent.pop()
        self._expected.append((stage, index))
        self.stage = stage
        self.transcript.add(now_us, Who.US, line.decode())
        return Send(line + b"\r\n")

    def _on_transaction_reply(self, reply: Reply, now_us: int) -> Action | None:
        """A reply to RSET, MAIL, RCPT or DATA, in the order in which they were sent."""
        transaction = self.transaction
        if transaction is None or not self._expected:
            raise ProtocolError("a reply to nothing")
        stage, index = self._expected.pop()
        if stage is Stage.MAIL:
            transaction.mail = reply
        elif stage is Stage.RCPT:
            transaction.rcpt[index] = reply
        elif stage is Stage.DATA:
            transaction.data = reply
        if reply.code == 421 or (stage is Stage.RSET and reply.code != 250):
            return self._fail(stage, reply, "the next hop ended the session")
        if stage is Stage.DATA:
            return self._after_data(transaction, reply)
        if self._expected:
            self.stage = self._expected[-1][0]
            return None
        if (stage is Stage.MAIL and not 200 <= reply.code < 300) or (
            self._unsent[-1][0] is Stage.DATA and not transaction.anybody_accepted
        ):
            return self._finish()
        return self._next_command(now_us)

    def _after_data(self, transaction: Transaction, reply: Reply) -> Action:
        accepted = transaction.anybody_accepted
        if reply.code == 354:
            self.stage = Stage.CONTENT
            return Do.WANT_CONTENT if accepted else Do.SEND_LONE_DOT
        if reply.is_positive:
            raise ProtocolError("DATA was answered with neither 354 nor a refusal")
        return self._finish()

    def _on_early_reply(self, reply: Reply, now_us: int) -> Action:
        """A reply before the dot went out: a refusal ends the transaction and the connection; praise is a lie."""
        if self.transaction is None or reply.is_positive:
            raise ProtocolError(f"the content was answered at {now_us} before its end")
        self.transaction.data = reply
        return self._fail(Stage.CONTENT, reply, "the next hop refused the content before its end")

    def check_in_step(self) -> Failed | None:
        """Ask before the dot goes out: what was said too early would be taken for the answer to it."""
        if not self._reader.has_leftover:
            return None
        return self._fail(Stage.CONTENT, None, "protocol error: the content was answered before its end")

    def refuse_content(self, reply: Reply) -> Failed:
        """Our own check refuses the content; the connection cannot be used on, since it waits for the rest."""
        if self.transaction is not None:
            self.transaction.data = reply
        return self._fail(Stage.LOCAL, reply, reply.text)

    def content_note(self, text: str, now_us: int) -> None:
        """The driver sent content: say so in the transcript."""
        self.transcript.add(now_us, Who.US, text)

    def dot_sent(self, now_us: int) -> None:
        """The final dot is about to leave (call it before the send: a broken send may have sent it)."""
        if self.stage is not Stage.CONTENT or self.transaction is None:
            raise RuntimeError("no content was asked for")
        self.transcript.add(now_us, Who.US, ".")
        self.stage = Stage.DOT
        self.transaction.dot_is_out = True

    def _on_dot(self, reply: Reply, now_us: int) -> Action:  # noqa: ARG002 the handlers share a signature
        if self.transaction is not None:
            self.transaction.dot = reply
        self._must_reset = False
        if reply.code == 421:
            self._dead = True
        return self._finish()

    def _finish(self) -> Action:
        self.stage = Stage.IDLE
        self._unsent = []
        return Do.FINISHED

    # Leaving

    def quit(self, now_us: int) -> Send:
        """Say goodbye; the answer is CLOSED or Failed, which mean the same."""
        self.stage = Stage.QUIT
        return self._command("QUIT", now_us)

    def _on_quit(self, reply: Reply, now_us: int) -> Action:  # noqa: ARG002 the handlers share a signature
        self._dead = True
        return Do.CLOSED

    # Small things

    def _command(self, text: str, now_us: int) -> Send:
        self.transcript.add(now_us, Who.US, text)
        return Send(text.encode() + b"\r\n")

    def _secret(self, shown: str, line: bytes, now_us: int) -> Send:
        self.transcript.add(now_us, Who.US, shown)
        return Send(line + b"\r\n")

    def _masked(self, reply: Reply) -> Reply:
        """The reply without our password, should the peer repeat it, be it in part: Sendmail leaves out the middle, and
        long lines were cut by us.  Nor with an API key, which may stand in the address that it refuses."""
        text = mask_keys(reply.text)
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return Reply(reply.code, reply.enhanced, _without(text, self._pieces))


def _without(text: str, pieces: Collection[str]) -> str:
    """With MASK for each stretch that is made of these pieces, which have PIECE characters each."""
    kept, begin, at = [], 0, 0
    while at <= len(text) - PIECE:
        end = at + PIECE
        if text[at:end] not in pieces:
            at += 1
            continue
        while text[end + 1 - PIECE : end + 1] in pieces:
            end += 1
        kept += [text[begin:at], MASK]
        begin = at = end
    return "".join([*kept, text[begin:]])
