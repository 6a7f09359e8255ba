# SPDX-License-Identifier: Apache-2.0
"""What a caller is told about an accepted message, and the forms in which that is remembered.  Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from hepmaild.delivery.job import Outcome, Result
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.events import to_json, to_record
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import Receipt, Rejected, Status, Submission
from hepmaild.prepare import Prepared
from hepmaild.storage.accept import Accept, Taken


class Vain(Enum):
    """Why a message is not tried now, as its caller is told."""

    AWAY = "The message is queued; its next hop could not be reached for a while, and it leaves when that is back."
    PAUSED = "The message is queued; the way it is to leave by is paused, and it leaves when that is over."
    HELD = "The message is queued; it is held, and leaves when somebody releases it."


# What is said of recipients that ended before anything was tried, by their state.
ENDINGS = {
    "cancelled": Reply(550, "5.3.0", "the message was cancelled before it could leave"),
    "expired": Reply(550, "5.4.7", "the message expired before it could leave"),
}


def first_receipt(member: Accept, taken: Taken | None = None, *, is_paused: bool = False) -> Receipt:
    """The receipt right after the commit: everything still waits, but for who is suppressed.

    taken: what the commit said; None before it.  is_paused: somebody keeps it from leaving.
    """
    suppressed = {} if taken is None else taken.suppressed
    hint = "The message is queued; the first attempt is made as soon as possible."
    if is_paused:
        hint = Vain.PAUSED.value
    turn = None if taken is None else taken.turn
    if turn is not None:
        hint = f"{turn.text[:1].upper()}{turn.text[1:]}."
    return Receipt(
        message_id=member.message_id,
        header_message_id=member.header_message_id,
        status=Status.QUEUED,
        sender=member.sender,
        recipients=len(member.recipients),
        credits_charged=member.price * (len(member.recipients) - len(suppressed)),
        rejected=tuple(Rejected(member.recipients[n].address, reply) for n, reply in sorted(suppressed.items())),
        retry_hint=hint,
        is_capped=turn is not None,
    )


def answer_on_commit(member: Accept, taken: Taken | None = None) -> str:
    """What is remembered where the commit is the answer."""
    return answer_of(first_receipt(member, taken), is_final=True)


def answer_meanwhile(member: Accept, taken: Taken | None = None) -> str:
    """What is remembered until the first attempt says more."""
    return answer_of(first_receipt(member, taken), is_final=False)


def outcome_of_attempt(
    outcomes: Sequence[Outcome], receipt: Receipt, member: Accept, why_none: str
) -> Receipt | Refusal:
    """The answer once the first attempt was made, or nobody waits for it any more (no outcomes).

    receipt: the first one, whose rejected recipients were suppressed and are in no attempt.  why_none: why there are no
    outcomes, if so.
    """
    if not outcomes:
        return replace(receipt, retry_hint=why_none)
    failed = [o for o in outcomes if o.result is Result.FAILED]
    if len(failed) + len(receipt.rejected) == receipt.recipients:
        reply = failed[0].reply or Reply(550, "5.0.0", "refused by the next hop")
        enhanced = reply.enhanced if reply.enhanced.startswith("5") else "5.0.0"
        money = "The credits were refunded." if member.price else "It was a chaos key's sandbox; nothing was charged."
        who = "Nothing was sent" if reply in ENDINGS.values() else "The next hop refused every recipient for good"
        text = f"{who}: {reply}. {money}"
        return Refusal(ErrorKind.RELAY_FAILED, text, reply=Reply(550, enhanced, reply.text))
    attempted = receipt.recipients - len(receipt.rejected)
    rejected = receipt.rejected + tuple(
        Rejected(member.recipients[o.recipient_id].address, o.reply or Reply(550, "5.0.0", "refused")) for o in failed
    )
    charged = member.price * (receipt.recipients - len(rejected))
    receipt = replace(receipt, rejected=rejected, credits_charged=charged)
    waiting = [o for o in outcomes if o.result in (Result.DEFERRED, Result.IN_DOUBT)]
    if waiting or len(outcomes) < attempted:
        return replace(receipt, retry_hint=_hint(waiting))
    return replace(receipt, status=Status.SENT, retry_hint="")


def why_no_attempt(vain: Vain | None, *, is_late: bool, patience_s: float) -> str:
    """What to say without outcomes.  is_late: all of `patience_s` went by.  vain: why it is not tried soon, if so."""
    if is_late:
        return f"The next hop has not answered within {patience_s:g} seconds; delivery goes on without you."
    if vain is not None:
        return vain.value
    return "The message is queued; no attempt could be made at once, and delivery goes on without you."


def _hint(waiting: Sequence[Outcome]) -> str:
    if not waiting:
        return "Some recipients still wait for their first attempt."
    again = [o for o in waiting if o.retry_at_us is not None]
    if not again:
        return "The next hop may have it, but did not say so: it is held until the operator decides."
    first = min(again, key=lambda o: o.retry_at_us or 0)
    when = datetime.fromtimestamp((first.retry_at_us or 0) / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # The reply may be ours: a next hop that cannot be reached says nothing, nor does a name that nobody knows.
    said = f"Not delivered yet: {first.reply}." if first.reply is not None else "The next hop gave no answer."
    return f"{said} The next attempt is at {when}."


def answer_of(answer: Receipt | Refusal, *, is_final: bool) -> str:
    """An answer as JSON, to be remembered.  Not final: what holds should this process end before it can say."""
    if isinstance(answer, Refusal):
        return to_json({"refused": answer.kind.api_code, "reply": str(answer.to_reply())})
    return to_json(
        {
            "final": is_final,
            "id": answer.message_id,
            "header_id": answer.header_message_id,
            "status": answer.status.value,
            "from": answer.sender,
            "recipients": answer.recipients,
            "charged": answer.credits_charged,
            "rejected": [[r.address, r.reply.code, r.reply.enhanced, r.reply.text] for r in answer.rejected],
            "hint": answer.retry_hint,
            "capped": answer.is_capped,
        }
    )


def receipt_from(answer: str, *, even_provisional: bool = False) -> Receipt | None:
    """The remembered receipt, as a replay; None when there is none, or only a provisional one."""
    data: dict[str, Any] = json.loads(answer)
    if "id" not in data or not (data["final"] or even_provisional):
        return None
    return Receipt(
        message_id=data["id"],
        header_message_id=data["header_id"],
        status=Status(data["status"]),
        sender=data["from"],
        recipients=data["recipients"],
        credits_charged=data["charged"],
        rejected=tuple(Rejected(r[0], Reply(r[1], r[2], r[3])) for r in data["rejected"]),
        retry_hint=data["hint"],
        is_capped=data.get("capped", False),
        replayed=True,
    )


def accepted_event(submission: Submission, prepared: Prepared) -> str:
    """The event record of an accepted message: how it came, with the inbound leg's steps so far."""
    origin = submission.origin
    return to_record(
        {
            "door": origin.door.value,
            "peer": origin.peer_ip,
            "session": origin.session_id,
            "tls": [origin.tls_version, origin.tls_cipher] if origin.tls_version else None,
            "helo": origin.helo,
            "size": prepared.content.size,
            "steps": submission.steps,
        }
    )
