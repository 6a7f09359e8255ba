# SPDX-License-Identifier: Apache-2.0
"""An intake that answers what a dialogue says, for testing the door alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from hepmaild.errors import ErrorKind, Refusal, StoreUnavailable
from hepmaild.intake import Intake
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import Door, KeyIdentity, Permission, RateState, Receipt, Status, Submission, Verified

KEY = KeyIdentity("key1", "test", "abcde", "account1", "owner@example.com", "standard", 120)
RATE = RateState(120, 119, 0)
MESSAGE_ID = "a1b2c3d4e5f6a7b8"
_SENTENCES = {
    ErrorKind.INSUFFICIENT_CREDITS: "Not enough credits: 1 required, the balance is 0",
    ErrorKind.RATE_LIMITED: "Too many calls with this key",
}


@dataclass
class Script:
    """Answers by question: `auth`, `mail`, `call`, `message`."""

    answers: dict[str, list[str]] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def next(self, question: str) -> str:
        answers = self.answers.get(question, ["ok"])
        count = self.asked.get(question, 0)
        self.asked[question] = count + 1
        return answers[min(count, len(answers) - 1)]

    def answer(self, question: str) -> Refusal | str | None:
        """A refusal, None where the store is down, or the word itself."""
        word = self.next(question)
        if word == "store-down":
            return None
        name, _, seconds = word.partition(":")
        if name not in ErrorKind.__members__:
            return word
        kind = ErrorKind[name]
        reply = Reply(550, "5.1.1", "No such user here\nsays the next hop") if name == "RELAY_FAILED" else None
        text = _SENTENCES.get(kind, f"Refused ({name})")
        return Refusal(kind, text, retry_after_s=int(seconds) if seconds else None, reply=reply)


class ScriptedIntake(Intake):
    """Keeps what it accepts."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.accepted: list[Submission] = []
        self.bodies: list[bytes] = []
        self.secrets: list[str] = []

    def _answer(self, question: str) -> Refusal | str:
        answer = self.script.answer(question)
        if answer is None:
            raise StoreUnavailable("scripted")
        return answer

    async def authenticate(
        self, secret: str, *, door: Door, peer_ip: str, needs: Permission | None = None
    ) -> Verified | Refusal:
        assert needs is None
        self.secrets.append(secret)
        answer = self._answer("auth")
        return answer if isinstance(answer, Refusal) else Verified(KEY)

    async def open_transaction(self, key: KeyIdentity, *, door: Door, peer_ip: str) -> KeyIdentity | Refusal:
        answer = self._answer("mail")
        return answer if isinstance(answer, Refusal) else key

    async def take_call(self, key: KeyIdentity, *, recipients: int = 0) -> RateState | Refusal:
        answer = self._answer("call")
        return answer if isinstance(answer, Refusal) else RATE

    async def accept(self, submission: Submission) -> Receipt | Refusal:
        answer = self._answer("message")
        if isinstance(answer, Refusal):
            return answer
        if answer == "crash":
            raise RuntimeError("scripted crash")
        self.accepted.append(submission)
        self.bodies.append(b"".join(submission.source.chunks()))
        submission.source.close()
        status = Status.SENT if answer == "sent" else Status.QUEUED
        return Receipt(MESSAGE_ID, "<x@example.com>", status, "noreply@example.com", len(submission.recipients), 1)
