# SPDX-License-Identifier: Apache-2.0
"""What the answers of a next hop mean for each recipient; pure (RFC 5321 §4.2.1, §4.3.2, §6.1).

Three rules stand above the table: what is not understood defers, it never fails mail; what a *route's* setup provoked
(greeting, EHLO, STARTTLS, AUTH, 530 and its like) defers, since an operator's mistake must not bounce a day of mail;
and once the dot is out only a proper answer to it says anything: everything else is in doubt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum, auto

from hepmaild.delivery.client import Failed, Stage, Transaction
from hepmaild.delivery.job import Result
from hepmaild.mail.reply import Reply, printable

MIN_HINT_S = 1
MAX_HINT_S = 4 * 3600
SOON_S = 1  # after "too many recipients in one transaction": the next transaction may follow at once

# Permanent codes that speak about the route, not about the mail: log in first (530), the login was not good enough
# (534, 535, 538), wrong order (503: most servers say it when AUTH is missing).
_ROUTE_CODES = frozenset({503, 530, 534, 535, 538})

IN_DOUBT_REPLY = Reply(451, "4.4.2", "no answer came to the final dot; the next hop may have the message")


class Kind(Enum):
    """What a reply to a command of a transaction means."""

    YES = auto()
    LATER = auto()
    NEVER = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one recipient.

    hint_s: when DEFERRED, the peer's own word on when to try again.  is_next: DEFERRED since others went first, so it
    may follow in SOON_S, however often that was said before.
    """

    result: Result
    reply: Reply
    hint_s: int | None = None
    is_next: bool = False


def classify(stage: Stage, reply: Reply) -> Kind:
    """What one reply at one stage means."""
    if 200 <= reply.code < 300:
        return Kind.YES
    if not reply.is_permanent:
        return Kind.LATER  # 4yz, and 3yz where none belongs
    if stage in _IN_TRANSACTION and reply.code not in _ROUTE_CODES:
        if stage is Stage.RCPT and reply.code == 552 and reply.enhanced in {"", "5.5.3"}:
            return Kind.LATER  # RFC 5321 §4.5.3.1.10: an old way to say "too many recipients"
        return Kind.NEVER
    return Kind.LATER


_IN_TRANSACTION = frozenset({Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.CONTENT, Stage.DOT, Stage.LOCAL})


def judge(transaction: Transaction, failure: Failed | None) -> tuple[Verdict, ...]:
    """A verdict for each recipient of a transaction that ended, properly or by `failure`.

    The most particular answer counts: our own refusal, MAIL's, the recipient's, DATA's, the dot's.
    """
    return tuple(_judge_one(transaction, failure, index) for index in range(len(transaction.rcpt)))


def _judge_one(transaction: Transaction, failure: Failed | None, index: int) -> Verdict:
    local = transaction.local[index]
    if local is not None:
        return _refused(Stage.LOCAL, local)
    if transaction.mail is not None and classify(Stage.MAIL, transaction.mail) is not Kind.YES:
        return _refused(Stage.MAIL, transaction.mail)
    rcpt = transaction.rcpt[index]
    if rcpt is not None and classify(Stage.RCPT, rcpt) is not Kind.YES:
        if _says_too_many(rcpt) and _got_on(transaction):
            # RFC 5321 §4.5.3.1.10: send the rest in another transaction soon, not in an hour.  Where nobody went first,
            # the next transaction would end like this one, and so for days, once a second.
            return Verdict(Result.DEFERRED, rcpt, is_next=True)
        return _refused(Stage.RCPT, rcpt)
    if transaction.dot_is_out:
        return _judge_dot(transaction.dot)
    if transaction.data is not None and transaction.data.code != 354:
        return _refused(Stage.DATA, transaction.data)
    if failure is not None:
        return deferred(failure)
    # Accepted by RCPT, then nothing: cannot happen with our machine; what is not understood defers.
    return Verdict(Result.DEFERRED, Reply(451, "4.3.0", "the transaction ended early"))


def _judge_dot(reply: Reply | None) -> Verdict:
    """The answer to the final dot: only a proper one takes the doubt away."""
    if reply is None or 300 <= reply.code < 400:
        return Verdict(Result.IN_DOUBT, IN_DOUBT_REPLY)
    if classify(Stage.DOT, reply) is Kind.YES:
        return Verdict(Result.DELIVERED, reply)
    return _refused(Stage.DOT, reply)


def _refused(stage: Stage, reply: Reply) -> Verdict:
    if classify(stage, reply) is Kind.NEVER:
        return Verdict(Result.FAILED, reply)
    if stage is Stage.LOCAL and _says_too_many(reply):
        return Verdict(Result.DEFERRED, reply, is_next=True)
    return Verdict(Result.DEFERRED, reply, retry_hint_s(reply.text))


def _says_too_many(reply: Reply) -> bool:
    """Too many recipients in this transaction.  Who has no enhanced codes says so with a bare 452, or 552 (RFC 5321
    §4.5.3.1.10); X.5.3 wants the rest in a transaction of its own whatever the code (RFC 3463 §3.6)."""
    if reply.enhanced:
        return reply.enhanced in {"4.5.3", "5.5.3"} and reply.code != 421
    return reply.code in {452, 552} and retry_hint_s(reply.text) is None


def _got_on(transaction: Transaction) -> bool:
    """Whether fewer recipients will be left for the next transaction: somebody was accepted, or refused for good."""
    return transaction.anybody_accepted or any(
        reply is not None and not _says_too_many(reply) and classify(Stage.RCPT, reply) is Kind.NEVER
        for reply in transaction.rcpt
    )


def deferred(failure: Failed) -> Verdict:
    """For a failure outside of a transaction, or one that left a recipient without an answer: always deferred."""
    if failure.reply is not None:
        return Verdict(Result.DEFERRED, failure.reply, retry_hint_s(failure.reply.text))
    text = printable(f"{failure.stage}: {failure.text}")
    return Verdict(Result.DEFERRED, Reply(451, _ENHANCED.get(failure.stage, "4.4.2"), text).shortened())


def without_words(verdict: Verdict) -> Verdict:
    """The same in our own words, should those of others be what the store cannot take."""
    reply = verdict.reply
    return replace(verdict, reply=Reply(reply.code, reply.enhanced, "the text of this reply could not be recorded"))


_ENHANCED = {
    Stage.CONNECT: "4.4.1",
    Stage.TLS: "4.7.5",
    Stage.STARTTLS: "4.7.10",
    Stage.AUTH: "4.7.0",
    Stage.LOCAL: "4.3.0",
}


_HINT_WORDS = re.compile(
    r"\b(?:retry|again|wait|back|after|for|in)\b[^0-9]{0,24}(?<![0-9.])([0-9]{1,9})\s?"
    r"(seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h)\b",
    re.IGNORECASE,
)
_HINT_CLOCK = re.compile(
    r"\b(?:again|back|wait|retry)\b[^0-9]{0,24}([0-9]{1,2}):([0-5][0-9]):([0-5][0-9])\b", re.IGNORECASE
)
_UNIT_S = {"s": 1, "m": 60, "h": 3600}


def retry_hint_s(text: str) -> int | None:
    """Seconds that a peer's refusal asks us to wait, within MIN_HINT_S and MAX_HINT_S; None when it names none.

    Understands "try again in 300 seconds", "for 5 minutes", "come back in 00:05:00".
    """
    text = text[:1000]
    match = _HINT_CLOCK.search(text)
    if match:
        hours, minutes, seconds = (int(group) for group in match.groups())
        asked = hours * 3600 + minutes * 60 + seconds
    else:
        match = _HINT_WORDS.search(text)
        if not match:
            return None
        asked = int(match.group(1)) * _UNIT_S[match.group(2)[0].lower()]
    return max(MIN_HINT_S, min(asked, MAX_HINT_S))
