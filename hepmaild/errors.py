# SPDX-License-Identifier: Apache-2.0
"""What can be refused, and how each door says it.

A refusal is a value, not an exception: `Refusal(ErrorKind.X, "sentence")`.  One table gives every kind its HTTP status,
its API code and its SMTP reply, so that both doors always agree.  (Contract: send-api.md "Errors", smtp-relay.md
"Replies".)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from hepmaild.mail.reply import Reply

if TYPE_CHECKING:
    from hepmaild.mail.submission import RateState


@dataclass(frozen=True, slots=True)
class Answer:
    """How one kind of refusal is told: HTTP status and SMTP codes."""

    http_status: int
    smtp_code: int
    enhanced: str


class ErrorKind(Enum):
    """Every kind of refusal.  The member's name is the API code (UPPER_SNAKE); its value says how each door answers.

    The first number in each value only keeps members with equal answers distinct.
    """

    HTTPS_REQUIRED = (1, Answer(403, 530, "5.7.0"))
    NOT_FOUND = (2, Answer(404, 500, "5.5.1"))
    METHOD_NOT_ALLOWED = (3, Answer(405, 500, "5.5.1"))
    MISSING_KEY = (4, Answer(401, 530, "5.7.0"))
    INVALID_KEY = (5, Answer(401, 535, "5.7.8"))
    KEY_DISABLED = (6, Answer(403, 535, "5.7.8"))
    KEY_EXPIRED = (7, Answer(403, 535, "5.7.8"))
    IP_NOT_ALLOWED = (8, Answer(403, 535, "5.7.8"))
    CHANNEL_NOT_ALLOWED = (9, Answer(403, 535, "5.7.8"))
    ACCOUNT_SUSPENDED = (10, Answer(403, 535, "5.7.8"))
    RATE_LIMITED = (11, Answer(429, 421, "4.7.0"))
    DAILY_LIMIT_REACHED = (12, Answer(429, 451, "4.7.0"))
    TOO_MANY_CONNECTIONS = (13, Answer(429, 421, "4.7.0"))
    TOO_MANY_FAILED_KEYS = (14, Answer(429, 535, "5.7.8"))
    REQUEST_TOO_LARGE = (15, Answer(413, 552, "5.3.4"))
    UNSUPPORTED_MEDIA_TYPE = (16, Answer(415, 550, "5.6.0"))
    INVALID_JSON = (17, Answer(400, 550, "5.6.0"))
    NO_RECIPIENTS = (18, Answer(400, 503, "5.5.1"))
    TOO_MANY_RECIPIENTS = (19, Answer(400, 452, "4.5.3"))
    INVALID_ADDRESS = (20, Answer(400, 501, "5.1.3"))
    NO_BODY = (21, Answer(400, 550, "5.6.0"))
    INVALID_FIELD = (22, Answer(400, 550, "5.6.0"))
    INVALID_HEADER_VALUE = (23, Answer(400, 550, "5.6.0"))
    HEADER_NOT_ALLOWED = (24, Answer(400, 550, "5.6.0"))
    INVALID_ATTACHMENT = (25, Answer(400, 550, "5.6.0"))
    INVALID_IDEMPOTENCY_KEY = (26, Answer(400, 550, "5.6.0"))
    UNKNOWN_UPLOAD = (27, Answer(400, 550, "5.6.0"))
    UNKNOWN_TEMPLATE = (28, Answer(400, 550, "5.6.0"))
    BODY_TOO_LARGE = (29, Answer(413, 552, "5.3.4"))
    TOO_MANY_ATTACHMENTS = (30, Answer(413, 552, "5.3.4"))
    ATTACHMENT_TOO_LARGE = (31, Answer(413, 552, "5.3.4"))
    MESSAGE_TOO_LARGE = (32, Answer(413, 552, "5.3.4"))
    SENDER_NOT_ALLOWED = (33, Answer(400, 550, "5.7.1"))
    IDEMPOTENCY_MISMATCH = (34, Answer(409, 554, "5.6.0"))
    IDEMPOTENCY_IN_PROGRESS = (35, Answer(409, 450, "4.3.0"))
    INSUFFICIENT_CREDITS = (36, Answer(402, 451, "4.7.1"))
    RELAY_FAILED = (37, Answer(502, 550, "5.0.0"))
    UNAVAILABLE = (38, Answer(503, 451, "4.3.0"))
    BACKLOG_FULL = (39, Answer(503, 451, "4.3.1"))
    DRAINING = (40, Answer(503, 421, "4.3.2"))
    MALFORMED_MESSAGE = (41, Answer(400, 550, "5.6.0"))
    INTERNAL = (42, Answer(500, 421, "4.3.0"))
    MALFORMED_REQUEST = (43, Answer(400, 500, "5.5.2"))
    MISSING_FIELDS = (50, Answer(400, 550, "5.6.0"))
    SMTP_NOT_FOUND = (51, Answer(404, 550, "5.6.0"))
    CONFLICTING_CONTENT = (60, Answer(400, 550, "5.6.0"))
    UPLOAD_QUOTA_REACHED = (61, Answer(429, 452, "4.2.2"))
    INVALID_UPLOAD = (62, Answer(400, 550, "5.6.0"))

    @property
    def answer(self) -> Answer:
        """How both doors say it."""
        return self.value[1]

    @property
    def api_code(self) -> str:
        """The UPPER_SNAKE code of the JSON API.  Kinds that only operators tell apart share one code."""
        return _SHARED_API_CODES.get(self.name, self.name)

    @property
    def own_smtp_answer(self) -> tuple[int, str]:
        """HTTP status and lower_snake code of `POST /v1/emails`."""
        status = self.answer.http_status
        return _OWN_SMTP.get(self.name) or (status, _OWN_SMTP_BY_STATUS.get(status, self.name.lower()))


_SHARED_API_CODES = {
    "BACKLOG_FULL": "UNAVAILABLE",
    "DRAINING": "UNAVAILABLE",
    "MESSAGE_TOO_LARGE": "REQUEST_TOO_LARGE",
    "CONFLICTING_CONTENT": "INVALID_FIELD",
}

# `POST /v1/emails` (own-smtp-api.md) has codes of its own, coarser ones, and sometimes another status.
_OWN_SMTP = {
    "HTTPS_REQUIRED": (403, "https_required"),
    "MISSING_KEY": (401, "invalid_auth_header"),
    "INVALID_KEY": (401, "invalid_api_key"),
    "KEY_DISABLED": (401, "invalid_api_key"),
    "KEY_EXPIRED": (401, "invalid_api_key"),
    "UNSUPPORTED_MEDIA_TYPE": (400, "invalid_request"),
    "MISSING_FIELDS": (400, "missing_required_fields"),
    "NO_RECIPIENTS": (400, "missing_required_fields"),
    "NO_BODY": (400, "missing_email_content"),
    "TOO_MANY_RECIPIENTS": (400, "invalid_recipient"),
    "INVALID_ADDRESS": (400, "invalid_recipient"),
    "SENDER_NOT_ALLOWED": (400, "from_mismatch"),
    "CONFLICTING_CONTENT": (400, "conflicting_content"),
    "UNKNOWN_TEMPLATE": (404, "template_not_found"),
    "RELAY_FAILED": (502, "email_send_failed"),
}
_OWN_SMTP_BY_STATUS = {
    400: "invalid_request",
    403: "forbidden",
    413: "payload_too_large",
    429: "rate_limit_exceeded",
    500: "internal_server_error",
    503: "service_unavailable",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something was refused; nothing was charged (or it was refunded in the same commit).

    kind: which refusal.  message: a sentence that says what to do; safe to show.  field: the offending input, `cc[2]`.
    retry_after_s: whole seconds after which trying again makes sense.  extra: further members of the JSON answer.
    reply: for RELAY_FAILED, the next hop's reply as SMTP passes it on; the message has it as it came.  rate: where a
    call was refused, the key's window as it stands.
    """

    kind: ErrorKind
    message: str
    field: str | None = None
    retry_after_s: int | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reply: Reply | None = None
    rate: RateState | None = None

    def to_reply(self) -> Reply:
        """The SMTP reply for this refusal."""
        if self.reply is not None:
            return self.reply
        answer = self.kind.answer
        return Reply(answer.smtp_code, answer.enhanced, self.message)


class RefusedError(Exception):
    """Carries a `Refusal` out of a deep call; caught where the door translates it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class StoreUnavailable(Exception):
    """The store did not answer in time, or answered that it cannot: 503 `UNAVAILABLE` / 451 4.3.0 (454 4.7.0 at AUTH).

    Nothing is known to be lost: what was not acknowledged may or may not have been committed.
    """


class NothingCommitted(StoreUnavailable):
    """The same, where it is certain that nothing was: nobody need look for it."""


class SpoolUnavailable(StoreUnavailable):
    """Stored content that is large cannot be put into a file here: the disk is full, or there is no descriptor left."""


class SecretsUnavailable(Exception):
    """What is sealed in the database cannot be opened, or nothing can be sealed: one line that says what to do.

    At the start it ends the daemon; later it is 503 `UNAVAILABLE` / 451 4.3.0 for what needs the secret.
    """


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors that nurseries have wrapped in groups; of any other error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
