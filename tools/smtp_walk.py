# SPDX-License-Identifier: Apache-2.0
"""Every state of the submission machine, found by saying every command in every state it leads to.

The table in `hepmaild.smtp.state` says what is refused; where an allowed command leads is only in the machine.  So a
machine is asked: a new one for each step, along the shortest way to the state, answered as a willing intake would.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from hepmaild.mail.address import check_address
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import KeyIdentity, RateState, Verified
from hepmaild.smtp.actions import Action, Close, EndMessage, OpenTransaction, Send, StartTls, TakeCall, Verify
from hepmaild.smtp.facts import TlsInfo
from hepmaild.smtp.machine import SubmissionMachine
from hepmaild.smtp.state import State, Verb

_KEY = KeyIdentity("k", "walk", "12345", "a", "owner@example.com", "standard", 120)
_TLS = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
_CONTENT = b"\r\n"

# One good example of each command; what follows a 354 is sent when it comes.
EXAMPLES: dict[str, tuple[Verb, bytes]] = {
    "EHLO": (Verb.EHLO, b"EHLO client.example\r\n"),
    "HELO": (Verb.HELO, b"HELO client.example\r\n"),
    "STARTTLS": (Verb.STARTTLS, b"STARTTLS\r\n"),
    "AUTH": (Verb.AUTH, b"AUTH PLAIN AGEAYg==\r\n"),
    "MAIL": (Verb.MAIL, b"MAIL FROM:<a@client.example>\r\n"),
    "RCPT": (Verb.RCPT, b"RCPT TO:<b@example.com>\r\n"),
    "DATA": (Verb.DATA, b"DATA\r\n"),
    "BDAT": (Verb.BDAT, b"BDAT 2\r\n" + _CONTENT),
    "BDAT LAST": (Verb.BDAT, b"BDAT 2 LAST\r\n" + _CONTENT),
    "RSET": (Verb.RSET, b"RSET\r\n"),
    "NOOP": (Verb.NOOP, b"NOOP\r\n"),
    "QUIT": (Verb.QUIT, b"QUIT\r\n"),
    "VRFY": (Verb.VRFY, b"VRFY b\r\n"),
    "EXPN": (Verb.EXPN, b"EXPN b\r\n"),
    "HELP": (Verb.HELP, b"HELP\r\n"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one command.  reply: the first one, whole.  after: None when the session ended."""

    state: State
    under_tls: bool
    command: str
    reply: str
    after: State | None


class _Session:
    """A machine and a driver that says yes to everything."""

    def __init__(self) -> None:
        self.machine = SubmissionMachine(
            hostname="smtp.example.com", max_message_octets=1000, max_recipients=100, check_address=check_address
        )
        self.is_closed = False
        self.replies: list[str] = []
        self._obey(self.machine.start(0))

    def say(self, octets: bytes) -> str:
        """Send a command, and content where it is asked for; the first reply."""
        self.replies.clear()
        self._obey(self.machine.receive(octets, 0))
        if self.replies[-1].startswith("354"):
            self._obey(self.machine.receive(_CONTENT + b".\r\n", 0))
        return self.replies[0]

    def _obey(self, actions: list[Action]) -> None:
        while actions:
            answers: list[Action] = []
            for action in actions:
                if isinstance(action, Send):
                    self.replies.append(action.octets.decode().replace("\r\n", "\n").rstrip())
                elif isinstance(action, Close):
                    self.is_closed = True
                else:
                    answers += self._answer(action)
            actions = answers

    def _answer(self, question: Action) -> list[Action]:
        machine = self.machine
        if isinstance(question, StartTls):
            return machine.tls_established(_TLS, 0)
        if isinstance(question, Verify):
            return machine.auth_result(Verified(_KEY), 0)
        if isinstance(question, OpenTransaction):
            return machine.mail_result(_KEY, 0)
        if isinstance(question, TakeCall):
            return machine.call_result(RateState(120, 119, 0), 0)
        if isinstance(question, EndMessage):
            return machine.message_result(Reply(250, "2.0.0", "sent as a1b2c3d4e5f6a7b8"), 0)
        return []


def walk() -> list[Step]:
    """Every command in every state there is a way to, nearest states first."""
    steps: list[Step] = []
    ways: dict[tuple[State, bool], list[bytes]] = {(State.CONNECTED, False): []}
    waiting = deque(ways)
    while waiting:
        place = waiting.popleft()
        for name, (_verb, octets) in EXAMPLES.items():
            session = _Session()
            for said in ways[place]:
                session.say(said)
            reply = session.say(octets)
            after = (session.machine.state, session.machine.session.tls is not None)
            steps.append(Step(*place, name, reply, None if session.is_closed else after[0]))
            if not session.is_closed and after not in ways:
                ways[after] = [*ways[place], octets]
                waiting.append(after)
    return steps
