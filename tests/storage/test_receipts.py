# SPDX-License-Identifier: Apache-2.0
"""What a caller is told: who was refused, what was charged, what still waits; and that it is remembered as it was told.

credits_charged is money: it is the debit without what the first attempt gave back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hepmaild.delivery.job import Outcome, Result
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail import chaos
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import KeyIdentity, Receipt, Rejected, Status
from hepmaild.receipts import ENDINGS, Vain, answer_of, first_receipt, outcome_of_attempt, receipt_from, why_no_attempt
from hepmaild.storage.accept import Accept, Taken
from hepmaild.storage.caps import Turn
from tests.storage.books import Books, Clock

IDENTITY = KeyIdentity("key-1", "app", "", "account-1", "", "standard", 120)
BOOKS = Books(None, Clock(), identity=IDENTITY)  # type: ignore[arg-type]  # no store is asked
THREE = BOOKS.accept("a@x.test", "b@x.test", "c@x.test")
SANDBOX = BOOKS.accept("a@x.test", route=chaos.route_of(next(iter(chaos.KINDS))))
NO, GREY = Reply(551, "5.1.6", "moved"), Reply(451, "4.7.1", "grey")
WHY = "Nobody was there."
SENT, FAILED, DEFERRED, DOUBT = Result.DELIVERED, Result.FAILED, Result.DEFERRED, Result.IN_DOUBT


def told(member: Accept, outcomes: Sequence[Outcome], suppressed: dict[int, Reply] | None = None) -> Receipt | Refusal:
    first = first_receipt(member, Taken(1, 0, suppressed=suppressed or {}))
    return outcome_of_attempt(tuple(outcomes), first, member, WHY)


def outcomes(*results: Result, first: int = 0) -> list[Outcome]:
    replies = {FAILED: NO, DEFERRED: GREY}
    return [
        Outcome(n, result, replies.get(result), 1_800_000_060_000_000 if result is DEFERRED else None)
        for n, result in enumerate(results, first)
    ]


@pytest.mark.parametrize(
    ("results", "status", "charged", "rejected"),
    [
        ((SENT, SENT, SENT), Status.SENT, 3, ""),
        ((SENT, FAILED, SENT), Status.SENT, 2, "b"),
        ((FAILED, SENT, FAILED), Status.SENT, 1, "ac"),
        ((FAILED, DEFERRED, FAILED), Status.QUEUED, 1, "ac"),
        ((SENT, DEFERRED, SENT), Status.QUEUED, 3, ""),
        ((SENT, DOUBT, SENT), Status.QUEUED, 3, ""),
        ((SENT, FAILED), Status.QUEUED, 2, "b"),
        ((FAILED, FAILED), Status.QUEUED, 1, "ab"),
        ((), Status.QUEUED, 3, ""),
    ],
)
def test_what_the_first_attempt_came_to(
    results: tuple[Result, ...], status: Status, charged: int, rejected: str
) -> None:
    """Fewer outcomes than recipients: another destination was not heard of yet."""
    receipt = told(THREE, outcomes(*results))
    assert isinstance(receipt, Receipt)
    assert (receipt.status, receipt.recipients, receipt.credits_charged) == (status, 3, charged)
    assert receipt.rejected == tuple(Rejected(f"{name}@x.test", NO) for name in rejected)
    assert bool(receipt.retry_hint) == (status is Status.QUEUED)


def test_who_is_suppressed_is_refused_too_and_never_charged() -> None:
    gone = Reply(550, "5.1.1", "suppressed")
    first = first_receipt(THREE, Taken(1, 0, suppressed={2: gone, 0: gone}))
    assert [r.address for r in first.rejected] == ["a@x.test", "c@x.test"]
    assert (first.credits_charged, first.recipients) == (1, 3)
    receipt = told(THREE, outcomes(SENT, first=1), {0: gone, 2: gone})
    assert isinstance(receipt, Receipt)
    assert (receipt.status, receipt.credits_charged, len(receipt.rejected)) == (Status.SENT, 1, 2)
    refusal = told(THREE, outcomes(FAILED, first=1), {0: gone, 2: gone})
    assert isinstance(refusal, Refusal)
    assert refusal.kind is ErrorKind.RELAY_FAILED
    waits = told(THREE, outcomes(FAILED, first=1), {0: gone})
    assert isinstance(waits, Receipt)
    assert (waits.status, waits.credits_charged, len(waits.rejected)) == (Status.QUEUED, 1, 2)


def test_what_nobody_took_is_refused_as_the_next_hop_said() -> None:
    refusal = told(THREE, outcomes(FAILED, FAILED, FAILED))
    assert isinstance(refusal, Refusal)
    assert (refusal.kind, refusal.reply) == (ErrorKind.RELAY_FAILED, Reply(550, "5.1.6", "moved"))
    assert refusal.message.endswith("551 5.1.6 moved. The credits were refunded.")
    refusal = told(SANDBOX, [Outcome(0, FAILED, Reply(554, "", "no"))])
    assert isinstance(refusal, Refusal)
    assert refusal.reply == Reply(550, "5.0.0", "no")
    assert refusal.message.endswith("nothing was charged.")
    refusal = told(SANDBOX, [Outcome(0, FAILED, None)])
    assert isinstance(refusal, Refusal)
    assert refusal.reply == Reply(550, "5.0.0", "refused by the next hop")


@pytest.mark.parametrize(
    ("waiting", "hint"),
    [
        ([], WHY),
        (outcomes(SENT), "Some recipients still wait for their first attempt."),
        (outcomes(DOUBT), "The next hop may have it, but did not say so: it is held until the operator decides."),
        (
            [Outcome(0, DEFERRED, NO, 1_800_000_120_000_000), *outcomes(DOUBT, DEFERRED, first=1)],
            "Not delivered yet: 451 4.7.1 grey. The next attempt is at 2027-01-15T08:01:00Z.",
        ),
        (
            [Outcome(0, DEFERRED, None, 1_800_000_000_000_000)],
            "The next hop gave no answer. The next attempt is at 2027-01-15T08:00:00Z.",
        ),
    ],
)
def test_why_it_waits(waiting: list[Outcome], hint: str) -> None:
    receipt = told(THREE, waiting)
    assert isinstance(receipt, Receipt)
    assert receipt.retry_hint == hint


def test_why_nothing_was_tried() -> None:
    for is_late, vain, why in (
        (True, Vain.AWAY, "has not answered within 2.5 seconds"),
        (False, Vain.AWAY, "could not be reached for a while"),
        (False, Vain.HELD, "is held"),
        (False, None, "no attempt could be made at once"),
    ):
        assert why in why_no_attempt(vain, is_late=is_late, patience_s=2.5)


def test_what_was_cancelled_before_it_left_was_refused_by_nobody() -> None:
    gone = [Outcome(n, FAILED, ENDINGS["cancelled"]) for n in range(3)]
    refusal = told(THREE, gone)
    assert isinstance(refusal, Refusal)
    assert refusal.reply == Reply(550, "5.3.0", "the message was cancelled before it could leave")
    assert refusal.message == f"Nothing was sent: {refusal.reply}. The credits were refunded."
    receipt = told(THREE, [*outcomes(SENT), *gone[1:]])
    assert isinstance(receipt, Receipt)
    assert (receipt.status, receipt.credits_charged, len(receipt.rejected)) == (Status.SENT, 1, 2)


def test_a_message_in_a_line_says_when_it_leaves() -> None:
    receipt = first_receipt(THREE, Taken(1, 0, turn=Turn(1, "the cap is used up: leaves at about noon")))
    assert receipt.retry_hint == "The cap is used up: leaves at about noon."
    assert receipt.is_capped
    assert "paused" in first_receipt(THREE, Taken(1, 0), is_paused=True).retry_hint
    plain = first_receipt(THREE)
    assert (plain.is_capped, plain.credits_charged, first_receipt(SANDBOX).credits_charged) == (False, 3, 0)


def test_an_answer_is_remembered_as_it_was_told() -> None:
    """Only a final one is told again; one that holds for now, if nobody can say more."""
    told_now = told(THREE, outcomes(SENT, FAILED, DEFERRED))
    assert isinstance(told_now, Receipt)
    told_now = replace(told_now, is_capped=True)
    again = replace(told_now, replayed=True)
    assert receipt_from(answer_of(told_now, is_final=True)) == again
    assert receipt_from(answer_of(told_now, is_final=False)) is None
    assert receipt_from(answer_of(told_now, is_final=False), even_provisional=True) == again
    refusal = told(THREE, outcomes(FAILED, FAILED, FAILED))
    assert receipt_from(answer_of(refusal, is_final=True), even_provisional=True) is None
    assert receipt_from("{}", even_provisional=True) is None
